"""Overlapping windows of a whole video, each frame decoded, scaled and cropped once."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from vmae.core.errors import InputError, VideoError
from vmae.core.video import augment
from vmae.core.video.probe import VideoInfo
from vmae.core.video.reader import OpenVideo, open_video

CHUNK = 64
"""Frames of a folder of images or a .npy clip that are read at a time."""


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """Which frames of a video a feature is made of, and what of a frame is seen."""

    frames: int = 16
    """Frames that the model takes."""
    window: int = 16
    """Frames of the video that a window spans: `frames` of them, `window // frames` apart."""
    stride: int = 4
    """Frames between the starts of two windows."""
    size: tuple[int, int] = (224, 224)
    """Height and width of a view in pixels; the video keeps its aspect ratio and is cropped to it."""
    fps: float = 0.0
    """With a number, `window` and `stride` count frames at this rate, whatever the video's is; 0: its own."""
    views: int = 1
    """Crops along the longer side, from end to end; one: the centre."""

    def __post_init__(self) -> None:
        for name in ("frames", "window", "stride", "views"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.fps < 0:
            raise InputError(f"fps: expected 0 or more frames a second, got {self.fps:g}")
        if self.window % self.frames:
            raise InputError(
                f"window: expected a multiple of the model's {self.frames} frames, got {self.window}"
            )

    @property
    def sampling_rate(self) -> int:
        """Frames of the video between two frames of a window."""
        return self.window // self.frames

    def timeline(self, num_frames: int, rate: float) -> tuple[int, float]:
        """How many frames `window` and `stride` count in a video, and how many of them are a second."""
        if not self.fps or not rate:
            return num_frames, rate
        return math.floor((num_frames - 1) * self.fps / rate) + 1, self.fps

    def indices(self, num_frames: int, rate: float = 0.0) -> np.ndarray:
        """The frames of each window of a video (of `rate` frames a second), int64 `[num_windows, frames]`.

        As in V2's feature extractor (`range(0, num_frames - 15, stride)` for 16 frames); a video shorter than
        a window gives one, whose last frames repeat the video's. With `fps` places are
        rounded down to frames.
        """
        count, own = self.timeline(num_frames, rate)
        span = (self.frames - 1) * self.sampling_rate + 1
        starts = np.arange(0, max(1, count - span + 1), self.stride, dtype=np.int64)
        windows = starts[:, None] + self.sampling_rate * np.arange(self.frames, dtype=np.int64)[None]
        step = rate / own if self.fps and rate else 1.0
        return np.floor(np.minimum(windows, count - 1) * step).astype(np.int64)


def read_windows(
    path: str,
    config: WindowConfig,
    *,
    batch: int = 8,
    info: VideoInfo | None = None,
    timeout_s: float = 30.0,
) -> Generator[np.ndarray, None, None]:
    """The windows of a video in order, uint8 `[B, views, T, H, W, 3]` with up to `batch` at a time.

    Frames that a later window needs again are kept, so memory is that of a batch and a window, whatever the
    video's length. `timeout_s` limits the opening, and the reading of each batch. Raises VideoError for a bad
    file, also in its middle.
    """
    with open_video(path, info=info, timeout_s=timeout_s) as video:
        info = video.info
        if config.fps and not info.fps:
            raise VideoError(path, "no_rate", "fps: expected a video with a frame rate, not images or .npy")
        windows = config.indices(info.num_frames, info.fps)
        side = max(config.size)
        height, width = info.resized(side if side < min(info.height, info.width) else None)
        regions = augment.view_boxes(height, width, config.views, config.size[1] / config.size[0])
        held: dict[int, np.ndarray] = {}
        shape = (config.views, config.frames, *config.size, 3)
        out = np.empty((min(batch, len(windows)), *shape), np.uint8)
        row = done = 0
        with closing(_frames(video, np.unique(windows), height, width)) as frames:
            for index, frame in frames:
                views = held[index] = np.empty((config.views, 1, *config.size, 3), np.uint8)
                for region, view in zip(regions, views, strict=True):
                    augment.crop_resize(frame[None], region, view)
                while done < len(windows) and index == windows[done, -1]:
                    for t, i in enumerate(windows[done].tolist()):
                        out[row, :, t] = held[i][:, 0]
                    row, done = row + 1, done + 1
                    if row == len(out):
                        yield out
                        video.restart_clock()
                        row, out = 0, np.empty((min(batch, max(1, len(windows) - done)), *shape), np.uint8)
                first = int(windows[min(done, len(windows) - 1), 0])
                held = {i: v for i, v in held.items() if i >= first}
        if done < len(windows):
            decoded = max(held, default=-1) + 1
            raise VideoError(path, "truncated", f"expected {info.num_frames} frames, decoded {decoded}")


def _frames(
    video: OpenVideo, wanted: np.ndarray, height: int, width: int
) -> Generator[tuple[int, np.ndarray], None, None]:
    """Each frame of `wanted` (sorted, each once) with its number, uint8 `[height, width, 3]`."""
    if video.info.backend in ("npy", "frames"):
        short = min(height, width) if (height, width) != (video.info.height, video.info.width) else None
        for start in range(0, len(wanted), CHUNK):
            chunk = wanted[start : start + CHUNK]
            yield from zip(chunk.tolist(), video.read(chunk, short), strict=True)
        return
    ahead = iter(wanted.tolist())
    index = next(ahead)
    with closing(video.decode()) as frames:
        for count, frame in enumerate(frames):
            if count == index:
                yield count, video.to_array(frame, (height, width))
                index = next(ahead, -1)
                if index < 0:
                    return
