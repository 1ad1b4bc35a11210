"""The reconstruction viewer: from a view's state to what the browser draws."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import streamlit as st
import torch

from vmae.core.errors import InputError
from vmae.core.measure import films
from vmae.core.measure.reconstruct import Reconstruction, reconstruct, reconstruction_metrics, to_rgb
from vmae.core.measure.similarity import token_colours
from vmae.core.model.grid import TokenGrid
from vmae.core.model.masking import mask_from_bool, sample_mask
from vmae.core.model.videomae import VideoMAE
from vmae.core.video.fit import to_channels
from vmae.core.weights.checkpoint import load_model
from vmae.core.weights.models import expect_model
from vmae.dashboard import render
from vmae.dashboard.clips import ClipInfo, frame_indices, read_frames
from vmae.dashboard.components import with_version
from vmae.dashboard.state import pack_mask, unpack_mask

# Bounds of what the server keeps, for all viewers together.
MODELS_KEPT = 4
CLIPS_KEPT = 64
SIDES_KEPT = 64


@st.cache_resource(max_entries=MODELS_KEPT, show_spinner="Loading the checkpoint ...")
def load_videomae(path: str, stamp: int) -> VideoMAE:
    """The pre-training model of a checkpoint, in evaluation mode, shared by all viewers.

    Raises InputError where the checkpoint holds a classifier, CheckpointError where it cannot be read.
    """
    model = expect_model(load_model(path)[0], VideoMAE, path, wanted="a pre-training checkpoint")
    return model.eval().requires_grad_(False)


@st.cache_data(max_entries=CLIPS_KEPT, show_spinner=False)
def load_frames(clip: ClipInfo, stride: int, start: int, _grid: TokenGrid, shape: str) -> np.ndarray:
    """A data set's clip at the model's size, uint8 [T, H, W, 3]; `shape` stands for the grid in the cache."""
    return read_frames(clip, frame_indices(clip.num_frames, _grid.frames, stride, start), _grid)


def grid_key(grid: TokenGrid) -> str:
    """A text that is equal for equal grids."""
    return f"{grid.frames}x{grid.height}x{grid.width}x{grid.channels}/{grid.patch_size}/{grid.tubelet_size}"


def draw_mask(kind: str, ratio: float, seed: int, grid: TokenGrid) -> str:
    """A sampled mask of one clip, packed. Raises InputError where nothing would be visible or masked."""
    mask = sample_mask(kind, ratio, grid, 1, torch.Generator().manual_seed(seed))
    return pack_mask(mask.to_bool()[0].numpy())


@dataclass(frozen=True, kw_only=True)
class Side:
    """One model's answer to one mask, ready for the browser."""

    made: str
    error: str
    mask: str
    label: str
    target: str
    metrics: dict[str, list[float | None]]
    overall: dict[str, float | None]


# Below this, threads cost more than they bring (measured: 11 ms against 540 ms for the demo's model on two
# busy cores), and every run of a page would start a team of its own.
_SMALL_MODEL = 20_000_000


def use_threads(model: VideoMAE) -> None:
    """Set this page run's thread count to what suits the model."""
    small = sum(p.numel() for p in model.parameters()) < _SMALL_MODEL
    torch.set_num_threads(1 if small else os.cpu_count() or 1)


def reconstruct_clip(model: VideoMAE, frames: np.ndarray, mask: str) -> Reconstruction:
    """Reconstruct uint8 [T, H, W, 3] under a packed mask. Raises InputError for another grid's mask."""
    bits = unpack_mask(mask)
    if bits is None or bits.size != model.grid.num_tokens:
        raise InputError(f"expected a mask of {model.grid.num_tokens} tokens, got {mask.partition('.')[0]}")
    use_threads(model)
    clip = torch.from_numpy(to_channels(frames, model.grid.channels))
    video = clip.permute(3, 0, 1, 2)[None]  # [1, C, T, H, W]
    return reconstruct(model, video, mask_from_bool(torch.from_numpy(bits)[None]))


@st.cache_data(max_entries=SIDES_KEPT, show_spinner=False)
def compute_side(path: str, stamp: int, frames_key: str, _frames: np.ndarray, mask: str, form: str) -> Side:
    """Reconstruct and encode; the cache knows the frames by `frames_key`."""
    made = reconstruct_clip(load_videomae(path, stamp), _frames, mask)
    metrics = reconstruction_metrics(made, form)
    picture = getattr(made, form)[0]
    return Side(
        made=render.sprite_sheet(to_rgb(picture)),
        error=render.sprite_sheet(films.error_map(made.original[0], picture)),
        mask=mask,
        label=made.labels[form],
        target=made.target,
        metrics={m: _numbers(getattr(metrics, f"frame_{m}")[0]) for m in ("mse", "psnr", "ssim")},
        overall={m: _numbers(getattr(metrics, m))[0] for m in ("mse", "psnr", "ssim")},
    )


@st.cache_data(max_entries=SIDES_KEPT, show_spinner=False)
def original_sheet(frames_key: str, _frames: np.ndarray) -> str:
    """The clip itself as a sprite sheet."""
    return render.sprite_sheet(_frames)


@st.cache_data(max_entries=CLIPS_KEPT, show_spinner=False)
def token_strip(path: str, stamp: int, frames_key: str, _frames: np.ndarray) -> np.ndarray:
    """The clip above its tokens' principal components, one column a time slot: uint8 [H', W', 3]."""
    model = load_videomae(path, stamp)
    use_threads(model)
    clip = torch.from_numpy(to_channels(_frames, model.grid.channels))
    colours = token_colours(model, clip.permute(3, 0, 1, 2)[None])[0]
    every = slice(None, None, model.grid.tubelet_size)
    scale = max(1, round(films.TARGET_PIXELS / 2 / model.grid.height))
    rows = [("original", to_rgb(_frames[every])), (films.PCA_LABEL, colours[every])]
    return np.asarray(films.contact_sheet(rows, scale=scale))


def captions(side: Side, form: str) -> dict[str, tuple[str, str, bool]]:
    """(title, note, uses the ground truth) of each panel; says what each picture was made with."""
    truth = form == "as_trained" and side.target == "normalized"
    note = side.label[0].upper() + side.label[1:]
    return {
        "original": ("Original", "the clip", False),
        "masked": ("Masked input", "what the encoder sees", False),
        "predicted": ("Reconstruction", f"predicted patches only. {note}", truth),
        "pasted": ("With visible patches pasted in", note, truth),
        "error": ("Error", "original against reconstruction", truth),
    }


def payload(
    grid: TokenGrid,
    clip: ClipInfo,
    indices: np.ndarray,
    original: str,
    sides: list[Side],
    *,
    form: str,
    stride: int,
    editable: list[bool],
) -> dict[str, Any]:
    """What the component gets, JSON types only."""
    tags = ("A", "B") if len(sides) > 1 else ("",)
    data: dict[str, Any] = {
        "frames": grid.frames,
        "width": grid.width,
        "height": grid.height,
        "columns": render.sheet_columns(grid.frames, grid.width),
        "grid": {
            "t": grid.t,
            "h": grid.h,
            "w": grid.w,
            "patch": grid.patch_size,
            "tubelet": grid.tubelet_size,
        },
        "fps": clip.fps / stride,
        "indices": [int(i) for i in indices],
        "original": original,
        "palette": films.palette_stops(),
        "errorMax": films.ERROR_MAX,
        "sides": [
            {
                "tag": tag,
                "made": side.made,
                "error": side.error,
                "mask": side.mask,
                "captions": {k: list(v) for k, v in captions(side, form).items()},
                "metrics": side.metrics,
                "overall": side.overall,
                "editable": can_edit,
            }
            for tag, side, can_edit in zip(tags, sides, editable, strict=True)
        ],
    }
    return with_version(data)


def stroke_mask(value: Any, num_tokens: int) -> tuple[int, str] | None:
    """(side, packed mask) of a stroke as the browser sent it; None for anything that is not one."""
    if (
        not isinstance(value, dict)
        or value.get("side") not in (0, 1)
        or not isinstance(value.get("mask"), str)
    ):
        return None
    mask = unpack_mask(value["mask"])
    return (value["side"], value["mask"]) if mask is not None and mask.size == num_tokens else None


def _numbers(values: np.ndarray) -> list[float | None]:
    # JSON has no NaN or infinity; the browser shows a dash.
    return [float(v) if np.isfinite(v) else None for v in values]
