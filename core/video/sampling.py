"""Which frames of a video make a clip: exact index functions, all zero-based.

Pad rule, everywhere: a video shorter than what is asked repeats its last reachable frame; no index ever
leaves `[0, num_frames)`.
"""

from __future__ import annotations

import math

import numpy as np

from vmae.core.errors import InputError


def _require(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise InputError(f"{name}: expected at least 1, got {value}")


def _require_stride(stride: float) -> None:
    if not stride > 0:
        raise InputError(f"sampling_rate: expected at least 1, got {stride:g}")


def dense_indices(
    num_frames: int,
    frames: int,
    sampling_rate: float,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """`frames` frames at a fixed stride from a random (or, without `rng`, the central) start.

    Official: `VideoMAE._sample_train_indices` and `_video_TSN_decord_batch_loader` (V1 kinetics.py) with one
    segment. With `span = frames * sampling_rate`, the start is uniform on
    `0 .. num_frames - span` inclusive (0 where the video is shorter); then the index advances by the stride
    as long as it stays below `num_frames - 1`, and repeats where it would not. A stride that is no whole
    number (`data.fps`) is not the official code's: places on its grid are rounded down to frames.

    Returns:
        int64 `[frames]`, non-decreasing, in `[0, num_frames)`.
    """
    _require(num_frames=num_frames, frames=frames)
    _require_stride(sampling_rate)
    starts = math.floor(num_frames - frames * sampling_rate) + 1
    start = 0
    if starts > 1:
        start = int(rng.integers(starts)) if rng is not None else (starts - 1) // 2
    # The last index on the stride grid that the official loop reaches: it steps only while
    # (index + 1) + stride < num_frames.
    reachable = max(0, (num_frames - 2 - start) // sampling_rate) if num_frames >= 2 else 0
    return start + np.floor(sampling_rate * np.minimum(np.arange(frames), reachable)).astype(np.int64)


def centred_indices(num_frames: int, frames: int, sampling_rate: float, centre: int) -> np.ndarray:
    """`frames` frames at a fixed stride around a key frame (AVA), which is number `frames // 2` of them.

    Indices before the first and after the last frame become the first and the last, as in SlowFast's
    `get_sequence` (the same for an even number of frames; it leaves the key frame out of an odd one).

    Returns:
        int64 `[frames]`, non-decreasing, in `[0, num_frames)`.
    """
    _require(num_frames=num_frames, frames=frames)
    _require_stride(sampling_rate)
    k = np.arange(frames) - frames // 2
    return np.clip(centre + np.floor(sampling_rate * k).astype(np.int64), 0, num_frames - 1)


def uniform_indices(num_frames: int, frames: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """One frame from each of `frames` equal segments (TSN; Something-Something).

    Official: `SSVideoClsDataset.loadvideo_decord` (V1 ssv2.py): segments of `num_frames // frames`, a random
    frame in each. Shorter videos: sorted random frames there; here the pad rule, `min(k, num_frames - 1)`
    (departure: the order of motion is kept and the result does not depend on luck). Without `rng`: the
    middle of each segment, `int((k + 0.5) * num_frames / frames)`, as the official test views.

    Returns:
        int64 `[frames]`, non-decreasing, in `[0, num_frames)`.
    """
    _require(num_frames=num_frames, frames=frames)
    k = np.arange(frames, dtype=np.int64)
    if rng is None:
        return np.minimum(((k + 0.5) * num_frames / frames).astype(np.int64), num_frames - 1)
    length = num_frames // frames
    if length == 0:
        return np.minimum(k, num_frames - 1)
    return k * length + rng.integers(length, size=frames)


def multi_view_indices(
    num_frames: int,
    frames: int,
    sampling_rate: float,
    segments: int,
    *,
    uniform: bool = False,
) -> np.ndarray:
    """The temporal views of a test video.

    Dense (official `VideoClsDataset`, mode test): the video is thinned to every `sampling_rate`-th frame
    (padded with its last to `frames`), and view `s` starts at `int(s * (thinned - frames) / (segments - 1))`.
    With one segment (where the official code divides by zero) the view is validation's central clip.

    Uniform (official `SSVideoClsDataset`, mode test): view `s` of `S` takes frame
    `int((k + s / S) * num_frames / frames)`; for `S = 2` these are the official interleaved views.

    Returns:
        int64 `[segments, frames]` in `[0, num_frames)`.
    """
    _require(num_frames=num_frames, frames=frames, segments=segments)
    _require_stride(sampling_rate)
    if uniform:
        if segments == 1:
            return uniform_indices(num_frames, frames)[None]
        k = np.arange(frames)[None, :] + np.arange(segments)[:, None] / segments  # [S, T]
        return np.minimum((k * num_frames / frames).astype(np.int64), num_frames - 1)
    if segments == 1:
        return dense_indices(num_frames, frames, sampling_rate)[None]
    thinned = np.arange(math.ceil(num_frames / sampling_rate))
    thinned = np.floor(sampling_rate * thinned).astype(np.int64)
    if len(thinned) < frames:
        thinned = np.pad(thinned, (0, frames - len(thinned)), mode="edge")
    spare = len(thinned) - frames
    step = max(1.0 * spare / (segments - 1), 0)
    starts = np.array([int(s * step) for s in range(segments)])
    return thinned[starts[:, None] + np.arange(frames)[None, :]]
