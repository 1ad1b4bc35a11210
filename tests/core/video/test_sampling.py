"""Index functions against the official formulas, written out here as loops, at the edges and in bulk."""

from __future__ import annotations

import numpy as np
import pytest

from vmae.core.errors import InputError
from vmae.core.video.sampling import (
    centred_indices,
    dense_indices,
    multi_view_indices,
    uniform_indices,
)

LENGTHS = [1, 2, 3, 5, 15, 16, 17, 31, 32, 61, 62, 63, 64, 65, 66, 100, 300]


def official_dense(num_frames: int, start: int, frames: int, rate: int) -> list[int]:
    """The loop of `_video_TSN_decord_batch_loader` (V1 kinetics.py), whose offsets count from one."""
    offset, result = start + 1, []
    for _ in range(0, frames * rate, rate):
        result.append(offset - 1)
        if offset + rate < num_frames:
            offset += rate
    return result


@pytest.mark.parametrize("num_frames", LENGTHS)
@pytest.mark.parametrize(("frames", "rate"), [(16, 4), (16, 2), (8, 1), (1, 1)])
def test_dense_follows_the_official_loop(num_frames: int, frames: int, rate: int) -> None:
    starts = set()
    for seed in range(40):
        indices = dense_indices(num_frames, frames, rate, np.random.default_rng(seed))
        assert indices.tolist() == official_dense(num_frames, int(indices[0]), frames, rate)
        starts.add(int(indices[0]))
    last_start = max(0, num_frames - frames * rate)
    assert max(starts) <= last_start
    if 0 < last_start <= 4:  # every start, the last included, is drawn
        assert starts == set(range(last_start + 1))


def test_dense_without_rng_is_central() -> None:
    assert dense_indices(100, 16, 4)[[0, -1]].tolist() == [18, 78]
    assert dense_indices(10, 16, 4).tolist() == [0, 4, 8] + [8] * 13


@pytest.mark.parametrize("num_frames", LENGTHS)
def test_uniform_takes_one_frame_of_each_segment(num_frames: int) -> None:
    frames = 16
    indices = uniform_indices(num_frames, frames, np.random.default_rng(0))
    length = num_frames // frames
    if length:
        assert (indices // length).tolist() == list(range(frames))
    else:
        assert indices.tolist() == [min(k, num_frames - 1) for k in range(frames)]
    tick = num_frames / frames
    assert uniform_indices(num_frames, frames).tolist() == [int(tick / 2 + tick * x) for x in range(frames)]


def official_views(num_frames: int, frames: int, rate: int, segments: int) -> list[list[int]]:
    """`VideoClsDataset` in mode test: thin, pad, then starts of equal spacing."""
    every = list(range(0, num_frames, rate))
    while len(every) < frames:
        every.append(every[-1])
    step = max(1.0 * (len(every) - frames) / (segments - 1), 0)
    return [every[int(s * step) : int(s * step) + frames] for s in range(segments)]


@pytest.mark.parametrize("num_frames", LENGTHS)
@pytest.mark.parametrize("segments", [2, 4, 5, 10])
def test_views_follow_the_official_code(num_frames: int, segments: int) -> None:
    views = multi_view_indices(num_frames, 16, 4, segments)
    assert views.tolist() == official_views(num_frames, 16, 4, segments)


@pytest.mark.parametrize("num_frames", LENGTHS)
def test_uniform_views_are_the_official_interleaved_two(num_frames: int) -> None:
    tick = num_frames / 16.0
    every = [int(tick / 2.0 + tick * x) for x in range(16)] + [int(tick * x) for x in range(16)]
    views = multi_view_indices(num_frames, 16, 4, 2, uniform=True)
    assert sorted(views.reshape(-1).tolist()) == sorted(every)
    assert np.sort(every)[0::2].tolist() == views[0].tolist()
    assert np.sort(every)[1::2].tolist() == views[1].tolist()


def test_one_segment_is_central() -> None:
    assert multi_view_indices(200, 16, 4, 1)[0, 0] == 68
    for n in (5, 64, 203, 301):  # one view of a test video is the clip that validation takes
        assert multi_view_indices(n, 16, 4, 1).tolist() == [dense_indices(n, 16, 4).tolist()]
    assert multi_view_indices(160, 16, 4, 1, uniform=True).tolist() == [uniform_indices(160, 16).tolist()]


def test_nothing_leaves_the_video() -> None:
    rng = np.random.default_rng(0)
    for n in range(1, 130):
        for indices in (
            dense_indices(n, 16, 4, rng),
            uniform_indices(n, 16, rng),
            multi_view_indices(n, 16, 3, 5),
            multi_view_indices(n, 16, 3, 3, uniform=True),
        ):
            assert indices.min() >= 0
            assert indices.max() < n
            assert (np.diff(indices, axis=-1) >= 0).all()


def test_refused_values() -> None:
    with pytest.raises(InputError, match="num_frames: expected at least 1, got 0"):
        dense_indices(0, 16, 4)
    with pytest.raises(InputError, match="sampling_rate: expected at least 1, got 0"):
        dense_indices(10, 16, 0)
    with pytest.raises(InputError, match="segments: expected at least 1"):
        multi_view_indices(10, 16, 1, 0)


def test_a_stride_that_is_no_whole_number() -> None:
    assert dense_indices(1000, 8, 4).tolist() == dense_indices(1000, 8, 4.0).tolist()
    assert dense_indices(100, 4, 12.5).tolist() == [25, 37, 50, 62]
    assert centred_indices(100, 4, 2.5, 50).tolist() == [45, 47, 50, 52]
    rng = np.random.default_rng(0)
    for n in range(1, 60):
        for stride in (0.4, 1.3, 12.51):
            indices = [dense_indices(n, 8, stride, rng), multi_view_indices(n, 8, stride, 3).ravel()]
            for found in indices:
                assert found.min() >= 0 and found.max() < n and found.dtype == np.int64
            assert (np.diff(indices[0]) >= 0).all()
