"""Runs: the store's runs as a table; several side by side."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import streamlit as st

from vmae.core.errors import InputError
from vmae.dashboard import charts
from vmae.dashboard.frame import empty_state, guarded
from vmae.dashboard.settings import Settings
from vmae.dashboard.trials import CURVES, curve_index, training_loss
from vmae.dashboard.views.errors import error_browser
from vmae.experiments import stages
from vmae.experiments.runs import Filter, Run, history, list_runs, pictures
from vmae.experiments.stages import RESULTS, SCORES, result
from vmae.experiments.stages.measure import ERROR
from vmae.experiments.tracking import tags

MAX_COMPARED = 12
MAX_ROWS = 2000
# What the table shows: of ten thousand runs, reading all else takes seconds.
_COLUMNS = (tags.KIND, tags.SWEEP, "mask.ratio", *RESULTS, *CURVES)


def page() -> None:
    """The page."""
    settings = Settings.from_env()
    runs = list_runs(settings.store, columns=[tags.KIND])
    if not runs:
        empty_state(
            "No run yet",
            f"There is no run under `{settings.store.runs_dir}`.",
            {
                "vmae sweep masking_ratio": "The built-in demo, a few minutes on a CPU:",
                "vmae pretrain --data train.csv": "One run on your own videos:",
            },
        )
        return
    kinds, where, fresh = st.columns([3, 4, 2], vertical_alignment="bottom")
    known = sorted({r.kind for r in runs if r.kind})
    kind = kinds.pills("Kind", known, selection_mode="multi", key="runs_kind")
    text = where.text_input(
        "Condition",
        placeholder=f"{SCORES[0]} >= 0.3",
        key="runs_where",
        help="COLUMN OP VALUE, with a metric, parameter, tag, name, kind or status; several with a comma.",
    )
    live = fresh.toggle("Live", value=any(r.status == "RUNNING" for r in runs), key="runs_live")
    st.fragment(guarded(_table), run_every="5s" if live else None)(settings, tuple(kind or ()), text)


def _conditions(text: str) -> list[Filter]:
    return [Filter.parse(part) for part in text.split(",") if part.strip()]


def _table(settings: Settings, kinds: tuple[str, ...], text: str) -> None:
    try:
        conditions = _conditions(text)
    except InputError as e:
        st.error(str(e).removeprefix("--where: ").capitalize())
        return
    found = list_runs(settings.store, where=conditions, columns=_COLUMNS)
    runs = [r for r in found if not kinds or r.kind in kinds]
    if not runs:
        st.info("No run meets this condition.")
        return
    st.caption(f"{len(runs)} runs" + (f", the newest {MAX_ROWS} shown" if len(runs) > MAX_ROWS else ""))
    runs = runs[:MAX_ROWS]
    chosen = st.dataframe(
        _frame(runs),
        hide_index=True,
        width="stretch",
        height=min(420, 38 + 35 * len(runs)),
        on_select="rerun",
        selection_mode="multi-row",
        column_config={
            "started": st.column_config.DatetimeColumn(format="D MMM HH:mm:ss"),
            "accuracy": st.column_config.ProgressColumn(format="percent", min_value=0.0, max_value=1.0),
            ERROR.title: st.column_config.NumberColumn(format="%.3f"),
            "loss": st.column_config.NumberColumn(format="%.3f"),
            "minutes": st.column_config.NumberColumn(format="%.1f"),
        },
        key="runs_table",
    )
    picked = [runs[i] for i in chosen["selection"]["rows"] if i < len(runs)]
    compare(settings, _whole(settings, picked[:MAX_COMPARED] or _default(runs)))


def _whole(settings: Settings, runs: Sequence[Run]) -> list[Run]:
    """The same runs with all their parameters and metrics."""
    return [
        whole
        for r in runs
        for whole in list_runs(settings.store, where=[Filter(column="run_id", op="=", value=r.run_id)])
    ]


def _default(runs: Sequence[Run]) -> list[Run]:
    """What is shown before anything is selected: the newest run with pictures, else with metrics."""
    recent = [r for r in runs[:100] if r.kind != "sweep"]
    pictured = next((r for r in recent if pictures(r)), None)
    return [pictured or next((r for r in recent if r.metrics), runs[0])]


def _frame(runs: Sequence[Run]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "name": r.name,
                "kind": r.kind,
                "status": r.status.lower(),
                "started": datetime.datetime.fromtimestamp(r.start_ms / 1000),
                "minutes": None if r.duration_s is None else r.duration_s / 60,
                "accuracy": accuracy,
                "of": title,
                ERROR.title: r.metrics.get(ERROR.name),
                "loss": training_loss(r),
                "mask ratio": r.params.get("mask.ratio"),
                "sweep": r.sweep,
                "run": r.run_id[:8],
            }
            for r in runs
            for accuracy, title in [_accuracy(r)]
        ]
    )


def _accuracy(run: Run) -> tuple[float | None, str]:
    """The share that a run is for, and of what it is."""
    found = result(run.metrics)
    return (None, "") if found is None or not found[1].percent else (found[2], found[0])


def compare(settings: Settings, runs: Sequence[Run]) -> None:
    """Curves, differing parameters and pictures of some runs."""
    st.subheader(" · ".join(r.name for r in runs[:4]) + (" ..." if len(runs) > 4 else ""), anchor=False)
    if len(runs) == 1:
        st.caption("Select rows above to compare several.")
    left, right = st.columns([3, 2], gap="large")
    with left:
        _curves(settings, runs)
    with right:
        _parameters(runs)
        _mlflow(settings, runs)
    _pictures(runs)
    error_browser(runs)


def _curves(settings: Settings, runs: Sequence[Run]) -> None:
    names = sorted({m for r in runs for m in r.metrics})
    if not names:
        st.info("These runs have no metrics yet.")
        return
    first = curve_index(names)
    left, right = st.columns([3, 1], vertical_alignment="bottom")
    metric = left.selectbox("Metric", names, index=first, key="runs_metric")
    log = right.toggle("Log scale", key="runs_log")
    found = [
        (r, step, value)
        for r in runs
        for step, value in charts.thin(history(settings.store, r.run_id, metric))
        if math.isfinite(value)
    ]
    values = [value for _, _, value in found]
    points = [
        {"run": r.run_id, "name": f"{r.name} {r.run_id[:4]}", "step": step, "score": value}
        for r, step, value in found
    ]
    if len(points) == len({p["run"] for p in points}):
        # One number a run makes no curve, and of one run no chart.
        if len(points) == 1:
            st.metric(metric, stages.metric(metric).text(found[0][2]))
            return
        latest = [{"name": p["name"], "count": p["score"]} for p in points]
        st.vega_lite_chart(charts.bars(latest, x="", y=metric), width="stretch", key="runs_bars")
        return
    log = log and all(value > 0 for value in values)
    st.vega_lite_chart(
        charts.curves(points, colour="run", x="step", y=metric, log=log), width="stretch", key="runs_curves"
    )


def _parameters(runs: Sequence[Run]) -> None:
    # The name stands over its column already.
    names = sorted({n for r in runs for n in r.params} - {"name"})
    differing = [n for n in names if len({r.params.get(n) for r in runs}) > 1]
    every = st.toggle(
        "All parameters", value=len(runs) == 1, disabled=len(runs) == 1, key=f"runs_all_{len(runs) == 1}"
    )
    shown = names if every else differing
    if not shown:
        st.info("No parameter differs between these runs.")
        return
    table = pd.DataFrame(
        {f"{r.name} {r.run_id[:4]}": [r.params.get(n, "") for n in shown] for r in runs}, index=shown
    )
    st.dataframe(table, width="stretch", height=min(330, 38 + 35 * len(shown)))


def _mlflow(settings: Settings, runs: Sequence[Run]) -> None:
    if settings.mlflow_url:
        links = [f"[{r.name}]({_run_address(settings, r)})" for r in runs]
        st.markdown("In MLflow: " + ", ".join(links))
    else:
        st.caption(
            "MLflow's own pages: `vmae ui`, then start the dashboard with `--mlflow-url http://127.0.0.1:5000`."
        )


def _run_address(settings: Settings, run: Run) -> str:
    from vmae.experiments.runs import experiment_id

    return (
        f"{settings.mlflow_url.rstrip('/')}/#/experiments/{experiment_id(settings.store)}/runs/{run.run_id}"
    )


def _pictures(runs: Sequence[Run]) -> None:
    """Reconstructions by epoch, a film strip for each run."""
    strips = {r.run_id: pictures(r) for r in runs}
    if not any(strips.values()):
        return
    st.subheader("Reconstruction by epoch", anchor=False)
    for run in runs:
        found = strips[run.run_id]
        if not found:
            continue
        st.caption(run.name)
        with st.container(horizontal=True, gap="small"):
            for step, path in _spread(found, 8):
                st.image(str(path), caption=f"epoch {step}", width=288)


def _spread(items: list[tuple[int, Path]], most: int) -> list[tuple[int, Path]]:
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
