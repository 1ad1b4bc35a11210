"""Sweeps: what was varied, what came of it, and what the models see."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from vmae.core.model.grid import TokenGrid
from vmae.dashboard import charts, viewer
from vmae.dashboard.clips import ClipInfo, clip_info, frame_indices
from vmae.dashboard.components import player_data, show_player
from vmae.dashboard.frame import catalog, empty_state, guarded
from vmae.dashboard.settings import Settings
from vmae.dashboard.sources import DatasetEntry, read_samples, short_id, weights_file
from vmae.dashboard.state import RATIO_MAX, RATIO_MIN
from vmae.dashboard.trials import (
    TrialRow,
    beside_published,
    curve_index,
    published_rows,
    reference_lines,
    swept_fields,
    trial_rows,
)
from vmae.experiments import stages
from vmae.experiments.runs import Run, children, history, list_sweeps
from vmae.experiments.stages.stage import Metric
from vmae.experiments.sweeps.space import task_fields
from vmae.experiments.tracking import tags

MAX_STRIP_ROWS = 10


def page() -> None:
    """The page."""
    settings = Settings.from_env()
    sweeps = list_sweeps(settings.store)
    if not sweeps:
        empty_state(
            "No sweep yet",
            f"There is no sweep under `{settings.store.runs_dir}`.",
            {
                "vmae sweep masking_ratio": "The built-in demo, a few minutes on a CPU:",
                "vmae sweep masking_ratio --data train.csv": "Your own videos:",
                "vmae sweep --list": "The sweeps that have a name:",
            },
        )
        return
    left, right = st.columns([2, 5], vertical_alignment="bottom")
    names = {s.run_id: s.name for s in sweeps}
    chosen = left.selectbox("Sweep", list(names), format_func=lambda i: names.get(i, i), key="sweep")
    parent = next(s for s in sweeps if s.run_id == chosen)
    with right:
        _headline(parent)
    live = "5s" if parent.status == "RUNNING" else None
    st.fragment(guarded(_results), run_every=live)(settings, parent)
    _strip(settings, parent)


def _headline(parent: Run) -> None:
    best, verdict = parent.tags.get(tags.BEST), parent.tags.get(tags.VERDICT)
    parts = [parent.tags.get(tags.DEFINITION, ""), parent.status.lower()]
    if best:
        parts.append(f"best mean: **{best}**")
    if failed := parent.tags.get(tags.FAILED):
        parts.append(f":red[failed: {failed}]")
    st.markdown(" · ".join(p for p in parts if p))
    if verdict:
        st.caption(verdict)


def _results(settings: Settings, parent: Run) -> None:
    trials = children(settings.store, parent)
    rows = trial_rows(parent, trials)
    if not rows:
        st.info("The sweep has started; its first trial has not reported yet.")
        return
    metric = stages.ranked_by(parent.tags)
    fields = swept_fields(parent, trials)
    left, right = st.columns(2, gap="large")
    with left:
        _ranking(rows, fields, metric)
    with right:
        _curves(settings, rows, fields)
    _table(rows, fields, metric)
    left, right = st.columns(2, gap="large")
    with left:
        _parallel(rows, fields, metric)
    with right:
        _published(parent, rows, fields, metric)


def _title(fields: list[str]) -> str:
    return ", ".join(map(_plain, fields)) or "trial"


def _ranking(rows: list[TrialRow], fields: list[str], metric: Metric) -> None:
    st.subheader(
        "Ranking", anchor=False, help="Mean over seeds, spread as one standard deviation, seeds as dots."
    )
    points = [
        {"value": r.value, "order": r.order, "score": r.score, "seed": r.seed}
        for r in rows
        if r.score is not None and not r.baseline
    ]
    if not points:
        st.info("No trial has been measured yet.")
        return
    lines = reference_lines(rows, metric)
    spec = charts.ranking(
        points, field=_title(fields), metric=metric.label, lines=lines, percent=metric.percent
    )
    st.vega_lite_chart(spec, width="stretch", key="ranking")


def _curves(settings: Settings, rows: list[TrialRow], fields: list[str]) -> None:
    trained = tuple(f"{job}/" for job in stages.JOBS)
    names = sorted({m for r in rows for m in r.run.metrics if m.startswith(trained)})
    head, pick = st.columns([1, 1], vertical_alignment="center")
    head.subheader("Learning curves", anchor=False)
    if not names:
        st.info("No trial has trained yet.")
        return
    first = curve_index(names)
    metric = pick.selectbox("Curve", names, index=first, label_visibility="collapsed", key="sweep_curve")
    points = [
        {"run": r.run.run_id, "name": r.value, "step": step, "score": value}
        for r in rows
        for step, value in charts.thin(history(settings.store, r.run.run_id, metric))
    ]
    st.vega_lite_chart(
        charts.curves(points, colour=_title(fields), x="step", y=metric), width="stretch", key="sweep_curves"
    )
    changed = task_fields(fields)
    if changed and not stages.metric(metric.replace("/step_", "/")).comparable:
        st.caption(
            f"What the loss measures depends on {', '.join(changed)}: its height does not rank the trials."
        )


def _columns(rows: list[TrialRow], ranked: Metric) -> dict[str, Metric]:
    """The metrics that some trial has, by the titles of their columns; the ranking one is the last score."""
    return {
        "accuracy" if m is ranked and m.percent else _plain(m.title): m
        for m in stages.columns(ranked=ranked)
        if any(m.name in r.run.metrics for r in rows)
    }


def _column(title: str, metric: Metric) -> Any:
    if metric.percent:
        return st.column_config.ProgressColumn(title, format="percent", min_value=0.0, max_value=1.0)
    digits = ".4g" if metric.digits is None else f".{metric.digits}f"
    return st.column_config.NumberColumn(format=f"%{digits}", help=metric.label)


def _table(rows: list[TrialRow], fields: list[str], metric: Metric) -> None:
    st.subheader("Trials", anchor=False)
    shown = _columns(rows, metric)
    table = pd.DataFrame(
        [
            {
                _title(fields): r.value,
                "seed": r.seed,
                "status": r.run.status.lower(),
                **{title: r.run.metrics.get(m.name) for title, m in shown.items()},
                "minutes": None if r.run.duration_s is None else r.run.duration_s / 60,
                "run": r.run.run_id[:8],
            }
            for r in rows
        ]
    )
    config = {title: _column(title, m) for title, m in shown.items()}
    config["minutes"] = st.column_config.NumberColumn(format="%.1f")
    st.dataframe(table, hide_index=True, width="stretch", column_config=config, key="sweep_table")


def _parallel(rows: list[TrialRow], fields: list[str], metric: Metric) -> None:
    st.subheader("Parallel coordinates", anchor=False)
    shown = _columns(rows, metric)
    points = []
    for r in rows:
        if r.baseline or r.score is None:
            continue
        point: dict[str, Any] = {"trial": f"{r.value} · seed {r.seed}", "score": r.score}
        for field in fields:
            point[_plain(field)] = _as_number(r.run.params.get(field, ""), r.order)
        points.append(point | {t: r.run.metrics[m.name] for t, m in shown.items() if m.name in r.run.metrics})
    if len(points) < 2:
        st.info("Two finished trials make the first picture.")
        return
    ranked = next(title for title, m in shown.items() if m is metric)
    columns = [*map(_plain, fields), *(t for t in shown if t != ranked), ranked]
    st.vega_lite_chart(
        charts.parallel(points, columns=columns, colour=ranked), width="stretch", key="parallel"
    )


def _plain(name: str) -> str:
    """A column's name without dots, which Vega reads as a path."""
    return name.replace(".", " ")


def _as_number(text: str, otherwise: float) -> float:
    try:
        return float(text)
    except ValueError:
        return otherwise


def _published(parent: Run, rows: list[TrialRow], fields: list[str], metric: Metric) -> None:
    published = published_rows(parent.tags.get(tags.DEFINITION, ""))
    if not published:
        return
    st.subheader("Beside the published curve", anchor=False)
    ours = rows if metric.percent else []
    spec = charts.beside(beside_published(ours, published), field=_title(fields))
    st.vega_lite_chart(spec, width="stretch", key="published")
    best = ", ".join(
        f"{name} {max(p['score'] for p in published if p['name'] == name):.1%}"
        for name in dict.fromkeys(p["name"] for p in published)
    )
    st.caption(
        f"Published: ViT-B, 800 epochs (best: {best}). Ours: other data, model and length: shapes compare,"
        " heights do not, so each curve is drawn from its own best."
    )


# -- the same clip at every value ----------------------------------------------------------------------


@st.fragment
@guarded
def _strip(settings: Settings, parent: Run) -> None:
    """The same clip reconstructed by every trial's model."""
    st.subheader("The same clip by every trial", anchor=False)
    rows = _one_a_value(trial_rows(parent, children(settings.store, parent)))
    dataset = catalog(settings).dataset(_dataset_id(settings, rows))
    samples = read_samples(dataset) if dataset else []
    if not rows or not samples or dataset is None:
        st.info("This fills when a trial has written its model; its validation list must be on this machine.")
        return
    a, b, c, d = st.columns([2, 2, 3, 2], vertical_alignment="bottom")
    clip_number = a.number_input("Clip", 0, len(samples) - 1, 0, key="strip_clip")
    seed = b.number_input("Mask seed", 0, 9999, 0, key="strip_seed")
    own = c.segmented_control(
        "Mask ratio",
        ["each its own", "one for all"],
        default="each its own",
        key="strip_own",
        width="stretch",
    )
    common = d.slider(
        "Ratio", RATIO_MIN, RATIO_MAX, 0.75, 0.01, disabled=own != "one for all", key="strip_ratio"
    )
    sample = samples[int(clip_number)]
    clip = clip_info(sample.path, str(clip_number), sample.start, sample.num_frames)
    _draw_strip(rows, clip, int(seed), common if own == "one for all" else None, dataset)


def _draw_strip(
    rows: list[TrialRow], clip: ClipInfo, seed: int, common: float | None, dataset: DatasetEntry
) -> None:
    panels: list[tuple[str, str, str, bool]] = []
    grid: TokenGrid | None = None
    with st.spinner("Reconstructing with every model ..."):
        for row in rows[:MAX_STRIP_ROWS]:
            assert row.run.checkpoint is not None
            file = weights_file(row.run.checkpoint)
            assert file is not None
            stamp = file.stat().st_mtime_ns
            model = viewer.load_videomae(str(file), stamp)
            if grid is None:
                grid = model.grid
                stride = dataset.stride(clip, grid.frames)
                frames = viewer.load_frames(clip, stride, -1, grid, viewer.grid_key(grid))
                key = f"{clip.key}|{stride}|-1|{viewer.grid_key(grid)}"
                panels.append(("original", f"clip {clip.label}", viewer.original_sheet(key, frames), False))
            elif viewer.grid_key(model.grid) != viewer.grid_key(grid):
                continue
            ratio = common or _as_number(row.run.params.get("mask.ratio", ""), 0.75)
            kind = row.run.params.get("mask.type", "tube")
            side = viewer.compute_side(
                str(file), stamp, key, frames, viewer.draw_mask(kind, ratio, seed, grid), "as_trained"
            )
            psnr = side.overall["psnr"]
            note = f"{kind} {ratio:g}" + (f" · PSNR {psnr:.1f} dB" if psnr is not None else "")
            panels.append((row.value, note, side.made, False))
    assert grid is not None
    indices = frame_indices(clip.num_frames, grid.frames, stride, -1)
    data = player_data(
        panels,
        shape=(grid.frames, grid.height, grid.width),
        fps=clip.fps / stride,
        per_row=min(len(panels), 6),
        indices=indices,
    )
    show_player(data, key="strip")
    st.caption(
        "Visible patches pasted in; predicted patches coloured by the ground truth's patch statistics,"
        " as trained. PSNR over masked pixels."
    )


def _one_a_value(rows: list[TrialRow]) -> list[TrialRow]:
    """The first seed of each value that has a model on this machine."""
    found: dict[str, TrialRow] = {}
    for row in rows:
        if row.run.checkpoint is not None and weights_file(row.run.checkpoint) is not None:
            found.setdefault(row.value, row)
    return list(found.values())


def _dataset_id(settings: Settings, rows: list[TrialRow]) -> str:
    csv = next((r.run.params["data.val_csv"] for r in rows if r.run.params.get("data.val_csv")), "")
    return short_id(str(settings.resolve(csv))) if csv else ""
