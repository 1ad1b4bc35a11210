"""Reconstruct: a clip, a mask, and what the model makes of it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import streamlit as st

from vmae.core.errors import VmaeError
from vmae.core.model.grid import TokenGrid
from vmae.core.model.masking import MASK_TYPES
from vmae.core.model.videomae import VideoMAE
from vmae.core.video.fit import fit
from vmae.core.video.samples import Sample
from vmae.dashboard import export, viewer
from vmae.dashboard.clips import ClipInfo, clip_info, frame_indices, last_start
from vmae.dashboard.components import show_viewer
from vmae.dashboard.frame import catalog, empty_state, guarded, plain, show_error
from vmae.dashboard.settings import Settings
from vmae.dashboard.sources import (
    Catalog,
    CheckpointEntry,
    DatasetEntry,
    class_names,
    read_samples,
    sample_name,
)
from vmae.dashboard.state import (
    RATIO_MAX,
    RATIO_MIN,
    SEED_MAX,
    STRIDE_MAX,
    ViewState,
    from_query,
    to_query,
    unpack_mask,
)
from vmae.dashboard.upload import Upload, decode_upload

MASK_NAMES = {
    "tube": "tube (same places in every slot)",
    "random": "random",
    "frame": "frame (whole slots)",
    "block": "block (space-time boxes)",
    "causal": "causal (predict the future)",
    "running_cell": "running cell",
}
FORM_NAMES = {"as_trained": "as trained", "model_only": "model only"}
COMPARE_NAMES = {"none": "nothing", "checkpoint": "a checkpoint", "ratio": "a ratio"}
# Widget keys are this and the field's name; the view itself outlives the widgets when the page is left.
_KEY = "view_"


def page() -> None:
    """The page."""
    settings = Settings.from_env()
    found = catalog(settings)
    if not found.checkpoints:
        empty_state(
            "No checkpoint yet",
            f"There is no pre-trained model under `{settings.store.runs_dir}` (classifiers and detectors "
            "have no decoder). Ways to get one:",
            {
                "vmae sweep masking_ratio": "The built-in demo: makes videos, trains small models"
                " on the CPU, in minutes.",
                "vmae pretrain --data train.csv": "Your own videos.",
                "vmae dashboard --checkpoint model.safetensors": "A checkpoint that you have already.",
            },
        )
        return
    _start(found)
    _workspace(settings, found)


@st.fragment
@guarded
def _workspace(settings: Settings, found: Catalog) -> None:
    with st.container(horizontal=True, gap="medium"):
        controls = st.container(width=264, gap="small")
        stage = st.container(width="stretch")
    with controls:
        entry = _choose_checkpoint(found)
        model = viewer.load_videomae(entry.path, entry.stamp)
        clip = _choose_clip(settings, found)
        _choose_mask(model.grid)
        _choose_frames(clip, model.grid)
        _choose_form(model)
        other = _choose_comparison(found, entry)
    with stage:
        _stage(model, entry, clip, other, has_clips=bool(found.datasets))


@guarded
def _stage(
    model: VideoMAE,
    entry: CheckpointEntry,
    clip: ClipInfo | None,
    other: CheckpointEntry | None,
    *,
    has_clips: bool,
) -> None:
    for sentence in st.session_state.pop("view_refused", []):
        st.warning(sentence)
    if clip is None:
        if has_clips:
            st.info("This clip cannot be read. Choose another on the left.")
            return
        empty_state(
            "No clip yet",
            "The checkpoint's validation list is not on this machine. Upload a video on the left, or:",
            {"vmae dashboard --data val.csv": "Start the dashboard with a list of videos."},
        )
        return
    _show(model, entry, clip, other)


# -- the view's state ----------------------------------------------------------------------------------


def _start(found: Catalog) -> None:
    """Once per session: the view from the link, or the best checkpoint on the first clip at its own ratio."""
    if "view" in st.session_state:
        return
    best = found.checkpoints[0]
    linked = st.query_params.get("checkpoint")
    entry = found.checkpoint(linked) if linked else best
    data = found.dataset(entry.dataset_id)
    default = ViewState(
        checkpoint=entry.id,
        stride=min(_stride(data), STRIDE_MAX) if data else 1,
        dataset=entry.dataset_id,
        ratio=min(max(entry.ratio or 0.9, RATIO_MIN), RATIO_MAX),
        mask=entry.mask_type if entry.mask_type in MASK_TYPES else "tube",
        other=found.checkpoints[min(1, len(found.checkpoints) - 1)].id,
    )
    state, refused = from_query(st.query_params.to_dict(), default)
    known = {c.id for c in found.checkpoints}
    for name in ("checkpoint", "other"):
        if getattr(state, name) not in known:
            refused.append(f"The link's {name} is not among the runs here; another one is shown.")
            state = dataclasses.replace(state, **{name: getattr(default, name)})
    dataset = found.dataset(state.dataset)
    st.session_state["view"] = dataclasses.replace(state, dataset=dataset.id if dataset else "")
    st.session_state["view_refused"] = refused


def _stride(data: DatasetEntry) -> int:
    """That of the first clip of a list, where it follows from the video."""
    with contextlib.suppress(VmaeError):
        for first in read_samples(data)[:1]:
            clip = clip_info(first.path, "0", first.start, first.num_frames)
            return data.stride(clip, data.frames)
    return data.sampling_rate


def _view() -> ViewState:
    state: ViewState = st.session_state["view"]
    return state


def _set(**changes: Any) -> None:
    st.session_state["view"] = dataclasses.replace(_view(), **changes)


def _bind(name: str) -> dict[str, Any]:
    """Arguments that tie a widget to a field of the view; the widget shows what the view says."""
    key = _KEY + name
    # Only what differs is written: a value that is written goes to the browser, where it would undo what
    # has been typed or dragged since this run of the page began.
    value = getattr(_view(), name)
    if key not in st.session_state or st.session_state[key] != value:
        st.session_state[key] = value

    def changed() -> None:
        value = st.session_state[key]
        if value is None:  # a segmented control that was clicked off
            return
        # Another mask, or another number of tokens, ends a mask drawn by hand.
        hand = (
            {} if name in ("form", "start", "stride", "clip", "compare", "other", "dataset") else {"hand": ""}
        )
        _set(**{name: value}, **hand)
        if name in ("clip", "dataset"):
            st.session_state.pop("upload", None)
            _set(start=-1)

    return {"key": key, "on_change": changed}


# -- controls ------------------------------------------------------------------------------------------


def _choose_checkpoint(found: Catalog) -> CheckpointEntry:
    labels = {c.id: c.label for c in found.checkpoints}
    if _view().checkpoint not in labels:
        _set(checkpoint=found.checkpoints[0].id)
    st.selectbox(
        "Checkpoint",
        list(labels),
        format_func=lambda id: labels.get(id, id),
        help="Runs, best first by probe accuracy on held-out videos, then files: those under the run"
        " directory and those that the dashboard was started with. Type to search.",
        **_bind("checkpoint"),
    )
    return found.checkpoint(_view().checkpoint)


@st.cache_data(ttl=10, max_entries=16, show_spinner=False)
def _samples(dataset: DatasetEntry) -> tuple[list[Sample], dict[int, str]]:
    return read_samples(dataset), class_names(dataset)


def _choose_clip(settings: Settings, found: Catalog) -> ClipInfo | None:
    if len(found.datasets) > 1:
        labels = {d.id: d.label for d in found.datasets}
        st.selectbox("Data set", list(labels), format_func=lambda id: labels.get(id, id), **_bind("dataset"))
    dataset = found.dataset(_view().dataset)
    samples, names = _samples(dataset) if dataset else ([], {})
    if samples:
        if _view().clip >= len(samples):
            _set(clip=0)
        st.selectbox(
            "Clip", range(len(samples)), format_func=lambda i: _clip_label(i, samples, names), **_bind("clip")
        )
    upload = _upload(settings)
    if upload is not None:
        return upload.info
    if not samples:
        return None
    chosen = _view().clip
    sample = samples[chosen]
    try:
        return clip_info(sample.path, _clip_label(chosen, samples, names), sample.start, sample.num_frames)
    except VmaeError as e:
        # Said here, so that the other controls stay and another clip can be chosen.
        show_error(e)
        return None


def _clip_label(index: int, samples: Sequence[Sample], names: dict[int, str]) -> str:
    if index >= len(samples):
        return str(index)
    return f"{index} · {sample_name(samples[index], names)}"


def _upload(settings: Settings) -> Upload | None:
    with st.expander("Upload a video", expanded=False):
        file = st.file_uploader(
            "Video",
            max_upload_size=settings.upload_mb,
            key="upload_file",
            label_visibility="collapsed",
            help="Decoded in a process of its own and not kept.",
        )
    known = st.session_state.get("upload_id")
    if file is None:
        if known is not None:
            st.session_state.pop("upload", None)
            st.session_state.pop("upload_id", None)
        return None
    if known != file.file_id:
        st.session_state["upload_id"] = file.file_id
        st.session_state.pop("upload", None)
        try:
            with st.spinner("Decoding the upload ..."):
                st.session_state["upload"] = decode_upload(file.getvalue(), file.name)
            _set(start=-1)
        except VmaeError as e:
            st.session_state["upload_error"] = str(e)
    if "upload" not in st.session_state:
        st.error("Not usable: " + plain(st.session_state.get("upload_error", "decoding failed")))
        return None
    upload: Upload = st.session_state["upload"]
    if upload.note:
        st.caption(upload.note)
    return upload


def _choose_mask(grid: TokenGrid) -> None:
    st.selectbox("Mask", MASK_TYPES, format_func=lambda t: MASK_NAMES.get(t, t), **_bind("mask"))
    st.slider("Mask ratio", RATIO_MIN, RATIO_MAX, step=0.01, **_bind("ratio"))
    left, right = st.columns([2, 3], vertical_alignment="bottom")
    left.number_input("Seed", 0, SEED_MAX, step=1, **_bind("seed"))
    right.button("Another mask", on_click=_another, width="stretch", icon=":material/casino:")
    hand = unpack_mask(_view().hand) if _view().hand else None
    if hand is not None and hand.size != grid.num_tokens:
        _set(hand="")
    elif hand is not None:
        st.button(
            "Undo what was drawn", on_click=lambda: _set(hand=""), width="stretch", icon=":material/undo:"
        )


def _another() -> None:
    _set(seed=(_view().seed + 1) % (SEED_MAX + 1), hand="")


def _choose_frames(clip: ClipInfo | None, grid: TokenGrid) -> None:
    if clip is None:
        return
    left, right = st.columns(2)
    left.number_input(
        "Stride", 1, STRIDE_MAX, step=1, help="Frames of the file per frame shown.", **_bind("stride")
    )
    last = last_start(clip.num_frames, grid.frames, _view().stride)
    start = _view().start
    _set(start=last // 2 if start < 0 else min(start, last))
    if last > 0:
        right.number_input("First frame", 0, last, step=1, **_bind("start"))
    else:
        right.number_input(
            "First frame", 0, 0, value=0, disabled=True, help="The video is not longer than the clip."
        )


def _choose_form(model: VideoMAE) -> None:
    raw = model.config.target == "raw"
    st.segmented_control(
        "Reconstruction coloured",
        list(FORM_NAMES),
        format_func=lambda f: FORM_NAMES.get(f, f),
        disabled=raw,
        width="stretch",
        help="The model predicts patches normalised by their own mean and variance. 'As trained' undoes that"
        " with the ground truth's statistics, which the model never saw; 'model only' estimates them from"
        " visible neighbours." + (" This model predicts pixels, so both are the same." if raw else ""),
        **_bind("form"),
    )


def _choose_comparison(found: Catalog, entry: CheckpointEntry) -> CheckpointEntry | None:
    st.segmented_control(
        "Compare with",
        list(COMPARE_NAMES),
        format_func=lambda c: COMPARE_NAMES.get(c, c),
        width="stretch",
        **_bind("compare"),
    )
    if _view().compare == "checkpoint":
        labels = {c.id: c.label for c in found.checkpoints}
        if _view().other not in labels:
            _set(other=entry.id)
        st.selectbox(
            "B: checkpoint", list(labels), format_func=lambda id: labels.get(id, id), **_bind("other")
        )
        return found.checkpoint(_view().other)
    if _view().compare == "ratio":
        st.slider("B: mask ratio", RATIO_MIN, RATIO_MAX, step=0.01, **_bind("other_ratio"))
        return entry
    return None


# -- the stage -----------------------------------------------------------------------------------------


def _show(model: VideoMAE, entry: CheckpointEntry, clip: ClipInfo, other: CheckpointEntry | None) -> None:
    view = _view()
    grid = model.grid
    indices = frame_indices(clip.num_frames, grid.frames, view.stride, view.start)
    frames = _frames(clip, indices, view, grid)
    key = f"{clip.key}|{view.stride}|{view.start}|{viewer.grid_key(grid)}"
    drawn = viewer.draw_mask(view.mask, view.ratio, view.seed, grid)
    mask = view.hand or drawn
    with st.spinner("Reconstructing ..."):
        sides = [viewer.compute_side(entry.path, entry.stamp, key, frames, mask, view.form)]
        editable = [True]
        if other is not None:
            second = _second_mask(view, grid, mask)
            try:
                _same_clip(viewer.load_videomae(other.path, other.stamp).grid, grid)
                sides.append(viewer.compute_side(other.path, other.stamp, key, frames, second, view.form))
                editable.append(view.compare == "checkpoint")
            except VmaeError as e:
                show_error(e)
    _headline(view, entry, clip, other if len(sides) > 1 else None, mask)
    data = viewer.payload(
        grid,
        clip,
        indices,
        viewer.original_sheet(key, frames),
        sides,
        form=view.form,
        stride=view.stride,
        editable=editable,
    )
    show_viewer(data, key="viewer", on_mask=lambda: _drawn(grid.num_tokens))
    _write_link()
    export.controls(model, frames, mask, view, clip.fps / view.stride)
    _token_colours(entry, key, frames)


def _token_colours(entry: CheckpointEntry, key: str, frames: np.ndarray) -> None:
    """What the encoder makes of the whole clip, where it is asked for."""
    if st.toggle("Token colours (PCA)", key="token_colours"):
        st.image(viewer.token_strip(entry.path, entry.stamp, key, frames))
        st.caption(
            "Nothing is masked here. Red, green and blue are the first three principal components of the"
            " encoder's tokens of this clip: alike to the encoder, alike in colour. Colours of two clips or"
            " two checkpoints do not correspond."
        )


def _frames(clip: ClipInfo, indices: np.ndarray, view: ViewState, grid: TokenGrid) -> np.ndarray:
    if clip.path:
        return viewer.load_frames(clip, view.stride, view.start, grid, viewer.grid_key(grid))
    upload: Upload = st.session_state["upload"]
    return fit(upload.frames[indices], grid.height, grid.width)


def _second_mask(view: ViewState, grid: TokenGrid, mask: str) -> str:
    if view.compare == "ratio":
        return viewer.draw_mask(view.mask, view.other_ratio, view.seed, grid)
    return mask


def _same_clip(grid: TokenGrid, wanted: TokenGrid) -> None:
    if viewer.grid_key(grid) != viewer.grid_key(wanted):
        from vmae.core.errors import InputError

        raise InputError(
            f"expected a second checkpoint of the same clip size ({viewer.grid_key(wanted)},"
            f" frames x height x width x channels / patch / tubelet), got {viewer.grid_key(grid)}"
        )


def _headline(
    view: ViewState, entry: CheckpointEntry, clip: ClipInfo, other: CheckpointEntry | None, mask: str
) -> None:
    bits = unpack_mask(mask)
    assert bits is not None
    share = f"{int((~bits).sum())} of {bits.size} tokens visible ({bits.mean():.0%} masked)"
    how = "mask drawn by hand" if view.hand else f"{view.mask} mask, ratio {view.ratio:g}"
    names = f"**{plain(entry.label)}**"
    if other is not None and view.compare == "checkpoint":
        names = f"**A** {plain(entry.label)} · **B** {plain(other.label)}"
    elif other is not None:
        how = f"{view.mask} mask, **A** ratio {view.ratio:g}, **B** ratio {view.other_ratio:g}"
    st.markdown(f"{names} on clip **{plain(clip.label)}** · {how} · {share}")


def _drawn(num_tokens: int) -> None:
    stroke = viewer.stroke_mask(st.session_state["viewer"].get("mask"), num_tokens)
    if stroke is not None:
        _set(hand=stroke[1])


def _write_link() -> None:
    query = to_query(_view())
    if st.query_params.to_dict() != query:
        st.query_params.from_dict(query)
