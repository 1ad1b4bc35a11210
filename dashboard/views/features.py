"""Attention and features: where a token looks, which clips are near each other."""

from __future__ import annotations

import numpy as np
import streamlit as st

from vmae.core.errors import InputError
from vmae.core.model.videomae import VideoMAE
from vmae.core.video.folds import groups_beside
from vmae.core.video.samples import Sample
from vmae.dashboard import charts, features, render, viewer
from vmae.dashboard.clips import ClipInfo, clip_info, frame_indices
from vmae.dashboard.components import picked, player_data, show_player
from vmae.dashboard.frame import catalog, empty_state, guarded
from vmae.dashboard.settings import Settings
from vmae.dashboard.sources import (
    CheckpointEntry,
    DatasetEntry,
    class_name,
    class_names,
    read_samples,
    sample_name,
)
from vmae.dashboard.thumbnails import THUMB_FRAMES, THUMB_SIZE, thumbnail

NEIGHBOURS = 8
MAX_HEADS = 16


def page() -> None:
    """The page."""
    settings = Settings.from_env()
    found = catalog(settings)
    if not found.checkpoints or not found.datasets:
        empty_state(
            "Nothing to look into yet",
            "This page needs a pre-trained model and a validation list on this machine.",
            {
                "vmae sweep masking_ratio": "Both at once, in minutes on a CPU:",
                "vmae dashboard --checkpoint model.safetensors --data val.csv": "Your own:",
            },
        )
        return
    labels = {c.id: c.label for c in found.checkpoints}
    a, b, c = st.columns([3, 2, 3], vertical_alignment="bottom")
    chosen = a.selectbox(
        "Checkpoint", list(labels), format_func=lambda i: labels.get(i, i), key="features_checkpoint"
    )
    entry = found.checkpoint(chosen)
    sets = {d.id: d.label for d in found.datasets}
    own = list(sets).index(entry.dataset_id) if entry.dataset_id in sets else 0
    dataset = found.dataset(
        b.selectbox("Data set", list(sets), own, format_func=lambda i: sets.get(i, i), key="features_set")
    )
    assert dataset is not None
    samples, names = read_samples(dataset), class_names(dataset)
    if not samples:
        st.error(f"The list {dataset.label} cannot be read any more.")
        return
    index = c.selectbox(
        "Clip",
        range(len(samples)),
        format_func=lambda i: f"{i} · {sample_name(samples[i], names)}",
        key="features_clip",
    )
    sample = samples[index]
    clip = clip_info(sample.path, str(index), sample.start, sample.num_frames)
    _attention(entry, dataset, clip)
    _neighbourhood(entry, dataset, samples, names, index)


@st.fragment
@guarded
def _attention(entry: CheckpointEntry, dataset: DatasetEntry, clip: ClipInfo) -> None:
    model = viewer.load_videomae(entry.path, entry.stamp)
    grid = model.grid
    st.subheader(
        "Attention", anchor=False, help="Softmax weights of one encoder layer on the whole, unmasked clip."
    )
    a, b, c = st.columns([3, 2, 3], vertical_alignment="bottom")
    depth = model.config.depth
    layer = a.slider("Layer", 1, depth, depth, key="attention_layer") if depth > 1 else 1
    heads = b.toggle("Every head", key="attention_heads")
    token = min(st.session_state.get("attention_token", _middle(model)), grid.num_tokens - 1)
    slot, place = divmod(token, grid.tokens_per_frame)
    row, column = divmod(place, grid.w)
    first = slot * grid.tubelet_size + 1
    c.markdown(
        f"From the patch in row {row + 1}, column {column + 1} of frames {first} to"
        f" {first + grid.tubelet_size - 1}. Click another patch to look from there, or press"
        " Shift+arrows and Enter on a picture."
    )
    stride = dataset.stride(clip, grid.frames)
    indices = frame_indices(clip.num_frames, grid.frames, stride, -1)
    frames = viewer.load_frames(clip, stride, -1, grid, viewer.grid_key(grid))
    key = f"{clip.key}|{stride}|-1|{viewer.grid_key(grid)}"
    weights = features.attention_row(entry.path, entry.stamp, key, frames, layer - 1, token)
    maps = [("mean of the heads", weights.mean(0))]
    if heads:
        maps += [(f"head {h + 1}", weights[h]) for h in range(min(len(weights), MAX_HEADS))]
    even = 1 / grid.num_tokens
    panels = [("clip", "click a patch", viewer.original_sheet(key, frames), True)]
    for title, values in maps:
        # The chosen token often looks at itself most: the scale ends below that, so that the rest is seen.
        top = max(float(np.quantile(values, 0.995)), 2 * even)
        picture = features.overlay(frames, values, top, grid.tubelet_size, (slot, row, column))
        note = f"bright: {top / even:.0f} times an even share or more"
        panels.append((title, note, render.sprite_sheet(picture), True))
    data = player_data(
        panels,
        shape=(grid.frames, grid.height, grid.width),
        fps=clip.fps / stride,
        per_row=5,
        indices=indices,
        start=slot * grid.tubelet_size,
        cells=(grid.w, grid.h),
    )
    show_player(data, key="attention", on_pick=lambda: _look_from(model, len(panels)))
    by_slot = weights.mean(0).sum((1, 2))
    rows = [{"name": f"slot {i + 1}", "count": round(float(v), 5)} for i, v in enumerate(by_slot)]
    with st.expander("Attention over time"):
        st.caption("Share of the token's attention that goes to each time slot.")
        st.vega_lite_chart(charts.bars(rows, x="", y="share"), width="stretch", key="attention_time")


def _middle(model: VideoMAE) -> int:
    grid = model.grid
    return (grid.t // 2 * grid.h + grid.h // 2) * grid.w + grid.w // 2


def _look_from(model: VideoMAE, panels: int) -> None:
    pick = picked(st.session_state["attention"].get("pick"), panels)
    if pick is None or pick[3] >= model.grid.frames:
        return
    grid = model.grid
    slot, row, column = pick[3] // grid.tubelet_size, int(pick[2] * grid.h), int(pick[1] * grid.w)
    st.session_state["attention_token"] = (slot * grid.h + row) * grid.w + column


@st.fragment
@guarded
def _neighbourhood(
    entry: CheckpointEntry, dataset: DatasetEntry, samples: list[Sample], names: dict[int, str], index: int
) -> None:
    st.subheader("Features", anchor=False)
    bar = st.empty()

    def progress(done: int, total: int) -> None:
        text = f"Encoding the validation list, once for each checkpoint: {done} of {total} clips"
        bar.progress(done / total, text)

    found = features.list_features(entry.path, entry.stamp, samples, dataset, progress)
    bar.empty()
    row = int(np.abs(found.index - index).argmin())
    if len(found.x) < 3:
        st.info("Three clips make the first picture.")
        return
    left, right = st.columns([3, 2], gap="large")
    with left:
        _map(entry, dataset, found, samples, names, row)
    with right:
        groups, of = _groups(dataset, samples)
        accuracy = features.leave_one_out(found.x, found.labels, [groups[i] for i in found.index])
        chance = 1 / max(1, len(set(found.labels.tolist())))
        st.metric(
            "Five nearest clips vote on the class",
            f"{accuracy:.1%}",
            f"chance {chance:.1%}",
            delta_color="off",
            delta_arrow="off",
            help="Each clip in turn is named by the five clips nearest to it, by cosine similarity. "
            "Those of its own group are left out: clips of one session look alike whatever they show.",
        )
        st.caption(of)
        _nearest(found, samples, names, row)


def _groups(dataset: DatasetEntry, samples: list[Sample]) -> tuple[list[str], str]:
    """The group of each sample, and what is left out of a clip's votes by it."""
    try:
        found = groups_beside(dataset.csv, samples)
    except InputError as e:
        return [s.path for s in samples], f"Only clips of its own file are left out of a vote: {e}"
    if found is not None:
        return found[0], f"A clip's own group ({found[1].name}, {len(set(found[0]))} groups) does not vote."
    return [s.path for s in samples], (
        "Only clips of its own file are left out of a vote: no groups are known (groups.csv or folds.csv "
        "beside the list), so clips of its session may vote."
    )


def _map(
    entry: CheckpointEntry,
    dataset: DatasetEntry,
    found: features.FeatureSet,
    samples: list[Sample],
    names: dict[int, str],
    row: int,
) -> None:
    method = st.segmented_control(
        "Map", ["t-SNE", "PCA"], default="t-SNE", key="features_map", label_visibility="collapsed"
    )
    key = f"{entry.path}:{entry.stamp}:{dataset.csv}:{len(samples)}"
    with st.spinner("Laying out the map ..."):
        place = features.embed(key, "pca" if method == "PCA" else "tsne", found.x)
    rows = [
        {
            "x": float(place[i, 0]),
            "y": float(place[i, 1]),
            "name": class_name(int(found.labels[i]), names),
            "label": str(int(found.index[i])),
            "chosen": i == row,
        }
        for i in range(len(place))
    ]
    st.vega_lite_chart(charts.scatter(rows, title="class"), width="stretch", key="map")
    st.caption(
        f"{len(rows)} clips of {dataset.label}; the diamond is the chosen clip. Drag to move, scroll to zoom."
    )


def _nearest(found: features.FeatureSet, samples: list[Sample], names: dict[int, str], row: int) -> None:
    near = [(row, 1.0), *features.neighbours(found.x, row, NEIGHBOURS)]
    panels = []
    fps = 12.0
    for place, (i, similarity) in enumerate(near):
        index = int(found.index[i])
        sample = samples[index]
        clip = clip_info(sample.path, str(index), sample.start, sample.num_frames)
        fps = THUMB_FRAMES / max(clip.num_frames / clip.fps, 0.1)
        same = "same class" if sample.label == samples[int(found.index[row])].label else "another class"
        note = f"clip {index} · {similarity:.2f} · {same}" if place else f"clip {index} · the chosen one"
        panels.append((sample_name(sample, names), note, thumbnail(clip), False))
    data = player_data(panels, shape=(THUMB_FRAMES, THUMB_SIZE, THUMB_SIZE), fps=fps, per_row=3)
    show_player(data, key="nearest")
