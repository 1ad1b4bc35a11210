"""From a clip's name to the pixels a model takes: frames chosen, scaled, cropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vmae.core.video.fit import fit

if TYPE_CHECKING:
    # The process that decodes uploads imports this module and must not import torch.
    from vmae.core.model.grid import TokenGrid


@dataclass(frozen=True, kw_only=True)
class ClipInfo:
    """What the controls need to know of a clip."""

    key: str
    """Identity for caches; changes when the file does."""
    label: str
    num_frames: int
    fps: float
    width: int
    height: int
    path: str = ""
    """The file, for clips of a data set; empty for an upload, whose frames the session holds."""
    first: int = 0
    """First frame of the stretch that the csv names."""


def clip_info(path: str, label: str, first: int = 0, num_frames: int | None = None) -> ClipInfo:
    """Probe a file of a data set. Raises VideoError where it is bad."""
    from vmae.core.video.probe_store import cached_info

    info = cached_info(path)
    available = max(1, info.num_frames - first)
    return ClipInfo(
        key=f"{path}:{info.mtime_ns}:{first}:{num_frames}",
        label=label,
        num_frames=min(available, num_frames or available),
        fps=info.fps or 25.0,
        width=info.width,
        height=info.height,
        path=path,
        first=first,
    )


def frame_indices(num_frames: int, frames: int, stride: int, start: int) -> np.ndarray:
    """int64 [frames]: `start`, `start + stride`, ...; -1: the central clip. Past the end the last repeats."""
    if start < 0:
        start = last_start(num_frames, frames, stride) // 2
    return np.minimum(start + stride * np.arange(frames, dtype=np.int64), num_frames - 1)


def last_start(num_frames: int, frames: int, stride: int) -> int:
    """The last first frame from which no frame repeats; 0 where the video is too short for that."""
    return max(0, num_frames - (frames - 1) * stride - 1)


def read_frames(clip: ClipInfo, indices: np.ndarray, grid: TokenGrid) -> np.ndarray:
    """uint8 [T, H, W, 3] of a data set's clip at the model's size. Raises VideoError where it is bad."""
    from vmae.core.video.reader import read_clip

    side = _short_side(clip.height, clip.width, grid)
    return fit(read_clip(clip.path, indices + clip.first, side), grid.height, grid.width)


def data_grid(frames: int, height: int, width: int, patch_size: int = 2) -> TokenGrid:
    """A frame to fit clips into where no model says one (even number of frames)."""
    from vmae.core.model.grid import TokenGrid

    return TokenGrid(
        frames=frames,
        height=height,
        width=width,
        patch_size=patch_size,
        tubelet_size=2 if frames % 2 == 0 else 1,
    )


def _short_side(height: int, width: int, grid: TokenGrid) -> int:
    scale = max(grid.height / height, grid.width / width)
    return max(1, round(min(height, width) * scale))
