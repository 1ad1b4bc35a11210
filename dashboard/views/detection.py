"""Action detection: boxes over the playing clip, truth beside prediction, and every action's precision."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

from vmae.core.config import from_dict
from vmae.core.errors import InputError
from vmae.core.files import read_json
from vmae.core.measure import box_films
from vmae.core.measure.films import KINDS, film
from vmae.core.video.config import DataConfig
from vmae.core.video.probe_store import cached_info
from vmae.core.video.samples import Sample
from vmae.core.video.whole import WholeFrames
from vmae.dashboard import charts, render
from vmae.dashboard.components import player_data, show_player
from vmae.dashboard.frame import empty_state, plain
from vmae.dashboard.settings import Settings
from vmae.experiments.data import read_list
from vmae.experiments.layout import EvaluationDir
from vmae.experiments.runs import list_runs
from vmae.experiments.tracking import tags

MIME = {"png": "image/png", "gif": "image/gif", "mp4": "video/mp4"}


def page() -> None:
    """The page."""
    settings = Settings.from_env()
    tested = _tested(settings)
    if not tested:
        empty_state(
            "No detector was tested yet",
            "This page shows what a detector says of the people in key frames (AVA), beside the truth.",
            {
                "vmae finetune --task detection": "The built-in films, a quarter of an hour on a CPU:",
                "vmae evaluate --checkpoint RUN --data val.csv": "A detector of yours:",
            },
        )
        return
    a, b, c = st.columns([2, 3, 2], vertical_alignment="bottom")
    chosen = a.selectbox("Run", list(tested), key="detection_run")
    folder = tested[chosen]
    facts = read_json(folder.metrics) or {}
    samples, data = _samples(str(folder.metrics), folder.metrics.stat().st_mtime_ns)
    predicted = _predictions(str(folder.predictions), folder.predictions.stat().st_mtime_ns)
    index = b.selectbox(
        "Key frame",
        range(len(samples)),
        format_func=lambda i: f"{Path(samples[i].path).stem} at {samples[i].time_s:g} s",
        key="detection_frame",
    )
    least = c.slider("Actions from a score of", 0.0, 1.0, 0.5, 0.05, key="detection_score")
    left, right = st.columns([3, 2], gap="large")
    with left:
        _clip(chosen, samples[index], data, predicted, facts, least)
    with right:
        _precision(facts)


def _tested(settings: Settings) -> dict[str, EvaluationDir]:
    """Folders with a detector's predictions by the name of their run, newest first."""
    layout = settings.store.layout
    runs = list_runs(settings.store, columns=[tags.KIND])
    found = {r.name: layout.run(r.name).evaluation for r in runs if r.name}
    return {n: p for n, p in found.items() if p.predictions.is_file() and _is_detection(p)}


def _is_detection(folder: EvaluationDir) -> bool:
    facts = read_json(folder.metrics)
    return isinstance(facts, dict) and "frame_map" in facts


@st.cache_data(max_entries=4, show_spinner="Reading the list ...")
def _samples(file: str, stamp: int) -> tuple[list[Sample], DataConfig]:
    facts = read_json(Path(file)) or {}
    data = from_dict(DataConfig, {**facts["data"], "short_side": box_films.SMALLEST, "workers": 0})
    return read_list(data, facts["list"]), data


@st.cache_data(max_entries=4, show_spinner="Reading the predictions ...")
def _predictions(file: str, stamp: int) -> box_films.Predicted:
    return box_films.read_predictions(Path(file))


@st.cache_data(max_entries=32, show_spinner=False)
def _frames(_sample: Sample, _data: DataConfig, key: str) -> np.ndarray:
    batch = WholeFrames([_sample], _data, multiple=2).load_batch([(0, 0)])
    if batch["failed"]:
        raise InputError(f"{_sample.path}: expected a readable film, got {batch['failed'][0]['detail']}")
    frames: np.ndarray = batch["clip"][0].numpy()
    return frames


def _clip(
    run: str,
    sample: Sample,
    data: DataConfig,
    predicted: box_films.Predicted,
    facts: dict[str, Any],
    least: float,
) -> None:
    names = {c["id"]: c["name"] for c in facts["names"]}
    name = functools.partial(_name, names)
    frames = _frames(sample, data, f"{sample.path}:{sample.time_s}:{data.frames}:{data.sampling_rate}")
    drawn = {
        "true": box_films.true_boxes(sample, name),
        "predicted": box_films.predicted_boxes(sample, predicted, name, min_score=least),
    }
    key = len(frames) // 2
    rows = box_films.film_of(frames, drawn, key=key)
    notes = {"true": "annotated", "predicted": f"blue: all true, orange: not all; from {least:g}"}
    panels = [
        (title.capitalize(), notes[title], render.sprite_sheet(pictures), False) for title, pictures in rows
    ]
    fps = _rate(sample.path) / data.sampling_rate
    show_player(
        player_data(panels, shape=rows[0][1].shape[:3], fps=fps, per_row=2, start=key),  # type: ignore[arg-type]
        key="detection_player",
    )
    st.caption(
        "Boxes belong to the key frame (bold, with names); in the other frames they stay where they are."
    )
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.caption("Keep it:", width="content")
        for kind in KINDS:
            st.download_button(
                kind.upper(),
                functools.partial(film, kind, rows, fps),
                file_name=f"{run}_{Path(sample.path).stem}_{sample.time_s:g}.{kind}",
                mime=MIME[kind],
                key=f"detection_{kind}",
                on_click="ignore",
                icon=":material/download:",
            )


def _rate(path: str) -> float:
    """Frames a second of a film; 25 of a folder of clips."""
    return 25.0 if Path(path).is_dir() else cached_info(path).fps or 25.0


def _precision(facts: dict[str, Any]) -> None:
    st.metric(
        "Frame-mAP at IoU 0.5",
        f"{facts['frame_map']:.1%}",
        f"random scores {facts['chance']:.1%}",
        delta_color="off",
        delta_arrow="off",
        help=f"{facts['people']} people in {facts['key_frames']} key frames of {Path(facts['list']).name}",
    )
    if ends := facts.get("interval"):
        low, high = ends
        st.caption(f"95% interval over films: {low:.1%} to {high:.1%}.")
    rows = [
        {"name": c["name"], "count": round(c["ap"], 4)}
        for c in sorted(facts["classes"], key=lambda c: -c["ap"])
    ]
    st.vega_lite_chart(charts.bars(rows, x="", y="average precision"), width="stretch", key="detection_ap")
    if facts["proposals"] is None:
        st.caption("On annotated boxes: with a person detector's (`detect.proposals`) it is lower.")
    else:
        p = facts["proposals"]
        without = f"{p['key_frames_without']} key frames without"
        st.caption(f"On proposals: {p['below']} below the score left out, {without}.")
    if bad := facts["unreadable"]:
        st.caption(f"{len(bad)} key frames could not be read, first {plain(bad[0])}")


def _name(names: dict[int, str], action: int) -> str:
    return names.get(action, str(action))
