"""Overlapping windows: each frame decoded once, against every window read by itself, side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vmae.core.video import augment
from vmae.core.video.probe import VideoInfo, probe_video
from vmae.core.video.reader import read_clip
from vmae.core.video.windows import WindowConfig, read_windows


@dataclass(frozen=True, kw_only=True)
class WindowRates:
    """Windows delivered per second of wall time by the two ways on one file; whether the pixels are equal."""

    file: str
    windows: int
    once: float
    by_itself: float
    equal: bool


def bench_windows(path: str | Path, config: WindowConfig, *, rounds: int = 3) -> WindowRates:
    """Both ways over the whole file, alternating, the best of `rounds` each."""
    info = probe_video(path)
    rates: dict[str, list[float]] = {"once": [], "by_itself": []}
    ways: dict[str, Callable[[], Iterable[np.ndarray]]] = {
        "once": lambda: read_windows(str(path), config, info=info, timeout_s=600.0),
        "by_itself": lambda: (row[None] for row in _by_themselves(info, config)),
    }
    sums: dict[str, list[int]] = {}
    for _ in range(rounds):
        for name, way in ways.items():
            began, count, seen = time.perf_counter(), 0, []
            for clips in way():
                count += len(clips)
                seen += [int(c.sum()) for c in clips]
            rates[name].append(count / (time.perf_counter() - began))
            sums[name] = seen
    return WindowRates(
        file=Path(path).name,
        windows=len(sums["once"]),
        once=max(rates["once"]),
        by_itself=max(rates["by_itself"]),
        equal=sums["once"] == sums["by_itself"],
    )


def _by_themselves(info: VideoInfo, config: WindowConfig) -> Iterable[np.ndarray]:
    side = max(config.size)
    short = side if side < min(info.height, info.width) else None
    for indices in config.indices(info.num_frames):
        frames = read_clip(info.path, indices, short, info=info, timeout_s=600.0)
        out = np.empty((config.views, config.frames, *config.size, 3), np.uint8)
        height, width = frames.shape[1:3]
        regions = augment.view_boxes(height, width, config.views, config.size[1] / config.size[0])
        for view, region in zip(out, regions, strict=True):
            augment.crop_resize(frames, region, view)
        yield out
