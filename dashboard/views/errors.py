"""What an evaluated classifier takes for what: the confusion matrix, and the videos of a cell, played."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from vmae.core.errors import VmaeError
from vmae.dashboard import charts
from vmae.dashboard.clips import clip_info
from vmae.dashboard.components import player_data, show_player
from vmae.dashboard.frame import guarded
from vmae.dashboard.thumbnails import THUMB_FRAMES, THUMB_SIZE, thumbnail
from vmae.experiments.predictions import (
    Said,
    as_csv,
    chosen,
    classes_of,
    confusions,
    predictions_file,
    read_predictions,
)
from vmae.experiments.runs import Run

SHOWN = 12
_ANY, _WRONG = "any class", "any wrong class"


def error_browser(runs: Sequence[Run]) -> None:
    """For the evaluated ones among some runs; nothing where there is none."""
    files = {r.run_id: predictions_file(r) for r in runs}
    evaluated = [r for r in runs if files[r.run_id] is not None]
    if not evaluated:
        return
    st.subheader(
        "Errors", anchor=False, help="Click a cell of the matrix to see its videos; the surest come first."
    )
    run = evaluated[0]
    if len(evaluated) > 1:
        names = {r.run_id: r.name for r in evaluated}
        key = st.selectbox(
            "Run", list(names), format_func=lambda i: names.get(i, i), key="errors_run", width=420
        )
        run = next(r for r in evaluated if r.run_id == key)
    file = files[run.run_id]
    assert file is not None
    _browse(run.run_id, str(file), file.stat().st_mtime_ns)


@st.cache_data(max_entries=16, show_spinner=False)
def _said(file: str, stamp: int) -> list[Said]:
    return read_predictions(Path(file))


@st.fragment
@guarded
def _browse(run_id: str, file: str, stamp: int) -> None:
    said = _said(file, stamp)
    classes = classes_of(said)
    counts = confusions(said)
    left, right = st.columns([2, 3], gap="large")
    with left:
        rows = [
            {"label": a, "predicted": b, "count": counts[a, b], "share": counts[a, b] / _of_label(counts, a)}
            for a in classes
            for b in classes
        ]
        picked = st.vega_lite_chart(
            charts.confusion(rows, order=classes),
            width="stretch",
            key=f"errors_matrix_{run_id}",
            on_select="rerun",
        )
        wrong = sum(not s.right for s in said)
        st.caption(f"{len(said) - wrong} of {len(said)} videos right; colour: share of the label's videos.")
    with right:
        _cell(run_id, said, classes, _clicked(picked, counts))


def _of_label(counts: dict[tuple[str, str], int], label: str) -> int:
    return max(1, sum(n for (a, _), n in counts.items() if a == label))


def _clicked(picked: Any, counts: dict[tuple[str, str], int]) -> tuple[str, str] | None:
    """The cell that was clicked, else the most frequent confusion; None where all is right."""
    selection = picked.get("selection", {}) if hasattr(picked, "get") else {}
    points = selection.get("cell") or []
    if points and {"label", "predicted"} <= set(points[0]):
        return str(points[0]["label"]), str(points[0]["predicted"])
    wrong = [(n, cell) for cell, n in counts.items() if cell[0] != cell[1]]
    return max(wrong, key=lambda w: w[0])[1] if wrong else None


def _cell(run_id: str, said: list[Said], classes: list[str], cell: tuple[str, str] | None) -> None:
    a, b, c = st.columns([2, 2, 1], vertical_alignment="bottom")
    labels, others = [_ANY, *classes], [_WRONG, *classes, ""]
    # A click on the matrix makes these controls anew, at its cell.
    at = f"{run_id}_{cell}"
    label = a.selectbox("Label", labels, labels.index(cell[0]) if cell else 0, key=f"errors_label_{at}")
    predicted = b.selectbox(
        "Predicted",
        others,
        others.index(cell[1]) if cell else 0,
        format_func=lambda name: name or "not readable",
        key=f"errors_predicted_{at}",
    )
    found = chosen(said, None if label == _ANY else label, None if predicted == _WRONG else predicted)
    least = c.toggle("Unsure first", key="errors_least")
    if least:
        found = found[::-1]
    if not found:
        st.info("No video in this cell.")
        return
    panels, broken, fps = [], [], 12.0
    with st.spinner("Reading clips ..."):
        for s in found[:SHOWN]:
            try:
                clip = clip_info(s.path, s.label)
                note = f"{s.label} taken for {s.predicted}" if not s.right else s.label
                panels.append((f"{s.share:.0%} {s.predicted}", note, thumbnail(clip), False))
                fps = THUMB_FRAMES / max(clip.num_frames / clip.fps, 0.1)
            except VmaeError:
                broken.append(Path(s.path).name)
    more = f", the first {SHOWN} shown" if len(found) > SHOWN else ""
    st.caption(f"{len(found)} videos{more}: " + ", ".join(Path(s.path).name for s in found[:SHOWN]))
    if panels:
        shape = (THUMB_FRAMES, THUMB_SIZE, THUMB_SIZE)
        show_player(player_data(panels, shape=shape, fps=fps, per_row=4), key="errors_player")
    if broken:
        st.warning("Not readable here: " + ", ".join(broken))
    everything = [s for s in said if not s.right]
    here, all_of_them = st.columns(2)
    here.download_button(
        f"These {len(found)} as csv", as_csv(found), "cell.csv", "text/csv", key="errors_csv", width="stretch"
    )
    all_of_them.download_button(
        f"All {len(everything)} errors as csv",
        as_csv(sorted(everything, key=lambda s: -s.share)),
        "errors.csv",
        "text/csv",
        key="errors_all_csv",
        width="stretch",
    )
