"""Data: what the clips look like, how the classes are spread, what augmentations and masks do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
import streamlit as st

from vmae.core.errors import VideoError, VmaeError
from vmae.core.measure.films import mp4_bytes
from vmae.core.model.masking import MASK_TYPES, mask_counts, sample_mask
from vmae.core.video.clips import ClipDataset
from vmae.core.video.config import DataConfig
from vmae.core.video.samples import Sample
from vmae.dashboard import charts, render
from vmae.dashboard.clips import ClipInfo, clip_info, data_grid, frame_indices, read_frames
from vmae.dashboard.components import picked, player_data, show_player
from vmae.dashboard.frame import catalog, empty_state, guarded
from vmae.dashboard.settings import Settings
from vmae.dashboard.sources import (
    DatasetEntry,
    check_report,
    class_name,
    class_names,
    read_samples,
    sample_name,
)
from vmae.dashboard.state import RATIO_MAX, RATIO_MIN
from vmae.dashboard.thumbnails import THUMB_FRAMES, THUMB_SIZE, thumbnail

PER_PAGE = 24
AUGMENTS: tuple[Literal["none", "multi_scale_crop", "random_resized_crop"], ...] = (
    "none",
    "multi_scale_crop",
    "random_resized_crop",
)
DRAWS = 5


def page() -> None:
    """The page."""
    settings = Settings.from_env()
    found = catalog(settings)
    if not found.datasets:
        empty_state(
            "No data set yet",
            "No run here names a validation list that is on this machine.",
            {
                "vmae data demo": "Make the built-in data set of moving objects:",
                "vmae dashboard --data val.csv": "Or a list of your own (`path label` lines):",
            },
        )
        return
    labels = {d.id: d.label for d in found.datasets}
    chosen = st.selectbox(
        "Data set", list(labels), format_func=lambda i: labels.get(i, i), key="data_set", width=420
    )
    dataset = found.dataset(chosen)
    assert dataset is not None
    samples, names = read_samples(dataset), class_names(dataset)
    if not samples:
        st.error(f"The list {dataset.label} cannot be read any more.")
        return
    balance, report = st.columns(2, gap="large")
    with balance:
        _balance(samples, names)
    with report:
        _report(dataset)
    _clips(dataset, samples, names)
    _augmentations(dataset, samples, names)


def _balance(samples: Sequence[Sample], names: dict[int, str]) -> None:
    if samples[0].time_s is not None:
        films = len({s.path for s in samples})
        st.subheader(f"{len(samples)} key frames of {films} film{'s' if films > 1 else ''}", anchor=False)
        st.markdown("Who is in them and what they do is on the Detection page.")
        return
    if samples[0].values:
        st.subheader(f"{len(samples)} clips with numbers", anchor=False)
        return
    several = samples[0].labels is not None
    counts = Counter(label for s in samples for label in ((s.labels or ()) if several else (s.label,)))
    if not several and max(counts) < 0:
        st.subheader(f"{len(samples)} clips without labels", anchor=False)
        return
    st.subheader(f"{len(samples)} clips, {len(counts)} classes", anchor=False)
    rows = [{"name": class_name(label, names), "count": n} for label, n in sorted(counts.items())]
    st.vega_lite_chart(charts.bars(rows, x="", y="clips"), width="stretch", key="balance")


def _report(dataset: DatasetEntry) -> None:
    st.subheader("Last check of the files", anchor=False)
    report = check_report(dataset)
    if report is None:
        st.markdown("The files of this list have not been checked here.")
        st.code(f"vmae data check {dataset.csv}", language="bash")
        return
    when, table = report
    counts = Counter(table["status"])
    st.markdown(f"{when}: " + " · ".join(f"**{n}** {name}" for name, n in counts.most_common()))
    bad = table[table["status"] != "ok"]
    st.dataframe(bad if len(bad) else table.head(500), hide_index=True, height=210, width="stretch")


# -- clips ---------------------------------------------------------------------------------------------


@st.fragment
@guarded
def _clips(dataset: DatasetEntry, samples: list[Sample], names: dict[int, str]) -> None:
    st.subheader("Clips", anchor=False)
    a, b, c = st.columns([3, 1, 4], vertical_alignment="bottom")
    labels = sorted({s.label for s in samples})
    only = a.multiselect("Classes", labels, format_func=lambda i: class_name(i, names), key="data_classes")
    kept = [i for i, s in enumerate(samples) if not only or s.label in only]
    pages = -(-len(kept) // PER_PAGE)
    number = b.number_input("Page", 1, max(1, pages), 1, key="data_page")
    c.caption(f"of {pages}; {len(kept)} clips. Play moves them all; a click opens one.")
    shown = kept[(number - 1) * PER_PAGE : number * PER_PAGE]
    panels, broken, clips = [], [], []
    with st.spinner("Reading clips ..."):
        for i in shown:
            sample = samples[i]
            try:
                clip = clip_info(sample.path, str(i), sample.start, sample.num_frames)
                panels.append((sample_name(sample, names), f"clip {i}", thumbnail(clip), True))
                clips.append(clip)
            except VmaeError as e:
                broken.append(f"clip {i}: {e.reason if isinstance(e, VideoError) else e}")
    if broken:
        st.warning("Not readable: " + "; ".join(broken))
    if not panels:
        return
    seconds = max(clips[0].num_frames / clips[0].fps, 0.1)
    data = player_data(
        panels,
        shape=(THUMB_FRAMES, THUMB_SIZE, THUMB_SIZE),
        fps=THUMB_FRAMES / seconds,
        per_row=12,
    )
    show_player(data, key="gallery", on_pick=lambda: _open(clips))
    opened = st.session_state.get("data_open")
    match = next((k for k in clips if k.key == opened), clips[0])
    _one(match, samples[int(match.label)], names)


def _open(clips: list[ClipInfo]) -> None:
    pick = picked(st.session_state["gallery"].get("pick"), len(clips))
    if pick is not None:
        st.session_state["data_open"] = clips[pick[0]].key


@st.cache_data(max_entries=16, show_spinner=False)
def _video_bytes(clip: ClipInfo) -> bytes:
    """The whole clip (at most 300 frames) re-encoded small, so that every browser plays it."""
    count = min(clip.num_frames, 300)
    side = max(2, min(clip.height, clip.width, 320) // 2 * 2)
    height = round(clip.height * side / min(clip.height, clip.width)) // 2 * 2
    width = round(clip.width * side / min(clip.height, clip.width)) // 2 * 2
    frames = read_frames(clip, np.arange(count), data_grid(count, height, width))
    return mp4_bytes(frames, clip.fps)


def _one(clip: ClipInfo, sample: Sample, names: dict[int, str]) -> None:
    left, right = st.columns([2, 3], gap="large")
    left.video(_video_bytes(clip), format="video/mp4", loop=True, width=360)
    facts = {
        "clip": clip.label,
        "class": sample_name(sample, names),
        "frames": str(clip.num_frames),
        "frames a second": f"{clip.fps:.3g}",
        "size": f"{clip.width} x {clip.height} pixels",
        "file": f"`{sample.path}`",
    }
    right.markdown("\n".join(f"- {name}: **{value}**" for name, value in facts.items()))


# -- augmentations and masks ---------------------------------------------------------------------------


@st.fragment
@guarded
def _augmentations(dataset: DatasetEntry, samples: list[Sample], names: dict[int, str]) -> None:
    st.subheader("What training sees of a clip", anchor=False)
    a, b, c, d, e = st.columns([2, 3, 2, 2, 3], vertical_alignment="bottom")
    index = int(a.number_input("Clip", 0, len(samples) - 1, 0, key="aug_clip"))
    crop = b.selectbox("Crop", AUGMENTS, index=1, key="aug_kind")
    flip = c.toggle("Flip", key="aug_flip")
    seed = int(d.number_input("Seed", 0, 9999, 0, key="aug_seed"))
    ratio = e.slider("Mask ratio", RATIO_MIN, RATIO_MAX, 0.75, 0.01, key="aug_ratio")
    sample = samples[index]
    clip = clip_info(sample.path, str(index), sample.start, sample.num_frames)
    grid = data_grid(16, 112, 112, patch_size=14)
    config = DataConfig(
        frames=grid.frames,
        sampling_rate=1,
        size=(grid.height, grid.width),
        short_side=128,
        augment=crop,
        flip=flip,
        workers=0,
    )
    panels = [
        (
            "validation",
            "central clip, central crop",
            render.sprite_sheet(
                read_frames(clip, frame_indices(clip.num_frames, grid.frames, 1, -1), grid), quality=88
            ),
            False,
        )
    ]
    training = ClipDataset([sample], config, "train", seed)
    for draw in range(DRAWS):
        training.set_epoch(draw)
        frames = training[0]["clip"].numpy()
        panels.append((f"epoch {draw}", "a training draw", render.sprite_sheet(frames, quality=88), False))
    for kind in MASK_TYPES:
        try:
            n_vis, _ = mask_counts(kind, ratio, grid)
            frames = masked_frames(
                read_frames(clip, frame_indices(clip.num_frames, 16, 1, -1), grid), kind, ratio, seed
            )
        except VmaeError:
            continue
        note = f"{n_vis} of {grid.num_tokens} tokens visible"
        panels.append((f"{kind} mask", note, render.sprite_sheet(frames, quality=88), False))
    data = player_data(panels, shape=(grid.frames, grid.height, grid.width), fps=clip.fps, per_row=6)
    show_player(data, key="augmented")


def masked_frames(frames: np.ndarray, kind: str, ratio: float, seed: int) -> np.ndarray:
    """uint8 [16, 112, 112, 3] with masked patches grey. Raises InputError where nothing would be left."""
    import torch

    grid = data_grid(len(frames), frames.shape[1], frames.shape[2], patch_size=14)
    mask = sample_mask(kind, ratio, grid, 1, torch.Generator().manual_seed(seed)).to_bool()[0].numpy()
    pixels = mask.reshape(grid.t, grid.h, grid.w).repeat(grid.tubelet_size, 0)
    pixels = pixels.repeat(grid.patch_size, 1).repeat(grid.patch_size, 2)
    out = frames.copy()
    out[pixels] = render.HIDDEN_GREY
    return out
