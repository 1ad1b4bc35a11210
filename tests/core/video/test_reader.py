"""Reading is frame-exact against a sequential decode for every kind of file, in any order of frames."""

from __future__ import annotations

import dataclasses
import gc
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from vmae.core.errors import InputError, VideoError
from vmae.core.video.probe import probe_video, resized_shape
from vmae.core.video.probe_store import cached_info
from vmae.core.video.reader import open_video, read_clip

EDIT_LISTS = ("h264_edit_list", "h264_edit_list_long")
Truth = Callable[[Path | str], list[np.ndarray]]


def orders(num_frames: int) -> list[list[int]]:
    """What a loader may ask for: all, backwards, the edges, repeats, random access, clips at strides."""
    rng = np.random.default_rng(1)
    asked = [
        list(range(num_frames)),
        list(range(num_frames))[::-1],
        [0],
        [num_frames - 1],
        [num_frames // 2] * 3,
    ]
    asked += [rng.integers(0, num_frames, 5).tolist() for _ in range(4)]
    starts = rng.integers(0, num_frames, 4)
    asked += [np.minimum(s + np.arange(16) * 4, num_frames - 1).tolist() for s in starts]
    return asked


def assert_exact(path: Path, frames: list[np.ndarray]) -> None:
    info = probe_video(path)
    assert (info.num_frames, info.height, info.width) == (len(frames), *frames[0].shape[:2])
    for indices in orders(len(frames)):
        clip = read_clip(path, indices, info=info)
        assert clip.dtype == np.uint8
        assert clip.shape == (len(indices), *frames[0].shape)
        for k, i in enumerate(indices):
            difference = np.abs(clip[k].astype(int) - frames[i]).mean()
            assert difference < 0.5, (
                f"{path.name} {info.backend}: frame {i} of {indices} differs by {difference}"
            )


def assert_exact_piecewise(path: Path) -> None:
    """As `assert_exact`, but for frames that do not all fit into memory: what is asked for in random order is
    compared beside windows of 64 that together are the whole file."""
    info = probe_video(path)
    asked = [i for i in orders(info.num_frames) if len(i) < 100]
    kept = {i: np.empty(0) for i in np.unique(np.concatenate(asked))}
    window = np.empty(0)
    count = 0
    with av.open(str(path)) as container:
        for count, frame in enumerate(container.decode(container.streams.best("video")), start=1):
            i, shown = count - 1, frame.to_ndarray(format="rgb24")
            if i % 64 == 0:
                window = read_clip(path, range(i, min(i + 64, info.num_frames)), info=info)
            assert np.abs(window[i % 64].astype(int) - shown).mean() < 0.5, f"{path.name}: frame {i}"
            if i in kept:
                kept[i] = shown
    assert count == info.num_frames
    for indices in asked:
        clip = read_clip(path, indices, info=info)
        for got, i in zip(clip, indices, strict=True):
            assert np.abs(got.astype(int) - kept[i]).mean() < 0.5, f"{path.name}: frame {i} of {indices}"


def test_piecewise_comparison(video_kind: Callable[[str], Path]) -> None:
    assert_exact_piecewise(video_kind("h264_open_gop"))


def test_every_kind_is_frame_exact(any_kind: Path, truth: Truth) -> None:
    assert_exact(any_kind, truth(any_kind))


@pytest.mark.slow
def test_the_real_clips_are_frame_exact(shared_dir: Path, truth: Truth) -> None:
    for path in sorted((shared_dir / "clips").iterdir()):
        if path.suffix == ".md":
            continue
        if "bottle" in path.name:
            assert_exact_piecewise(path)  # 1189 frames of 640x360: 0.8 GB, never all at once
        else:
            assert_exact(path, truth(path))


def test_several_reads_of_one_open_file(video_kind: Callable[[str], Path], truth: Truth) -> None:
    path = video_kind("h264_open_gop")
    frames = truth(path)
    with open_video(path) as video:
        for indices in orders(len(frames)):
            assert np.array_equal(video.read(indices), np.stack([frames[i] for i in indices]))


def test_the_expected_way_of_reading(video_kind: Callable[[str], Path]) -> None:
    expected = {
        "h264_bframes": "seek",
        "h264_mkv": "seek",
        "vp9": "seek",
        "mpeg4_avi": "seek",
        "h264_edit_list": "seek",
        "h264_mpegts": "sequential",
        "mpeg4_avi_bframes": "sequential",
        "mpeg1": "sequential",
    }
    assert {kind: probe_video(video_kind(kind)).backend for kind in expected} == expected


def test_decord_reads_what_it_shows_rightly_and_nothing_else(any_kind: Path, truth: Truth) -> None:
    """On request decord reads a file only after a trial; every kind is frame-exact one way or the other."""
    pytest.importorskip("decord")
    frames = truth(any_kind)
    for indices in orders(len(frames))[1:7]:
        with open_video(any_kind, backend="decord") as video:
            clip = video.read(indices)
        for got, i in zip(clip, indices, strict=True):
            difference = np.abs(got.astype(int) - frames[i]).mean()
            assert difference < 2, f"{any_kind.name} {video.backend}: frame {i} differs by {difference}"
    assert cached_info(any_kind).decord_ok == (video.backend == "decord")  # tried once, remembered
    kind = any_kind.stem
    wrong = ("mpeg4_avi_bframes", "mpeg4_mp4_bframes", "h264_open_gop", "hevc", "h264_mpegts", "mpeg2_ts")
    if kind in (*wrong, "av1", "av1_mkv", *EDIT_LISTS):
        assert video.backend != "decord"
    if kind in ("h264_bframes", "h264_one_gop", "h264_mkv", "vp9", "h264_vfr", "mpeg4_avi"):
        assert video.backend == "decord"


def test_without_decord_its_files_are_not_called_bad(
    make_video: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another machine remembers of a list (`decord_ok`) makes no damaged file here."""
    monkeypatch.setitem(sys.modules, "decord", None)
    path = make_video(tmp_path / "a.mp4", frames=4)
    info = dataclasses.replace(probe_video(path), decord_ok=True)
    with (
        pytest.raises(InputError, match="expected decord to be installed"),
        open_video(path, info=info, backend="decord") as video,
    ):
        video.read(np.arange(2))


def test_decord_shows_wrong_frames_where_the_trial_says_so(
    video_kind: Callable[[str], Path], truth: Truth
) -> None:
    """Why there is a trial: decord itself says nothing."""
    decord = pytest.importorskip("decord")
    path = video_kind("mpeg4_avi_bframes")
    clip = decord.VideoReader(str(path), num_threads=1).get_batch([50, 9, 33]).asnumpy()
    assert np.abs(clip.astype(int) - np.stack([truth(path)[i] for i in (50, 9, 33)])).mean() > 2
    path = video_kind("h264_edit_list_long")
    assert len(decord.VideoReader(str(path), num_threads=1)) != probe_video(path).num_frames


def test_variable_rate_and_rotation_are_seen(video_kind: Callable[[str], Path]) -> None:
    assert probe_video(video_kind("h264_vfr")).variable_rate
    assert not probe_video(video_kind("h264_bframes")).variable_rate
    rotated = probe_video(video_kind("h264_rotated90"))
    assert (rotated.rotation, rotated.height, rotated.width) == (90, 128, 96)


@pytest.mark.parametrize("kind", ["h264_bframes", "h264_rotated90", "mpeg4_avi_bframes"])
def test_short_side(kind: str, video_kind: Callable[[str], Path], truth: Truth) -> None:
    path = video_kind(kind)
    info = probe_video(path)
    clip = read_clip(path, [3, 40], 48)
    assert min(clip.shape[1:3]) == 48
    assert clip.shape[1:3] == info.resized(48)
    for k, i in enumerate([3, 40]):
        expected = cv2.resize(truth(path)[i], clip.shape[2:0:-1], interpolation=cv2.INTER_AREA)
        # Brightness only: at full size FFmpeg repeats colour samples, which the scaler interpolates.
        luma = [cv2.cvtColor(np.ascontiguousarray(x), cv2.COLOR_RGB2GRAY) for x in (clip[k], expected)]
        assert np.abs(luma[0].astype(int) - luma[1]).mean() < 4


def test_resized_shape() -> None:
    assert resized_shape(720, 1280, 256) == (256, 455)
    assert resized_shape(1280, 720, 256) == (455, 256)
    assert resized_shape(100, 100, None) == (100, 100)
    assert resized_shape(2, 1000, 1) == (1, 500)


def test_folders_of_frames_and_npy_clips(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (12, 20, 30, 3), np.uint8)
    folder = tmp_path / "frames é ü"
    folder.mkdir()
    for i, frame in enumerate(frames):
        data = cv2.imencode(".png", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))[1]
        (folder / f"img_{i + 1}.png").write_bytes(data.tobytes())  # img_2 sorts before img_10
    np.save(tmp_path / "clip.npy", frames)
    for path, backend in ((folder, "frames"), (tmp_path / "clip.npy", "npy")):
        info = probe_video(path)
        assert (info.backend, info.num_frames, info.height, info.width) == (backend, 12, 20, 30)
        assert np.array_equal(read_clip(path, [11, 0, 0, 5]), frames[[11, 0, 0, 5]])
        assert read_clip(path, [1], 10).shape == (1, 10, 15, 3)


def test_a_changed_frame_of_another_size_is_an_error(tmp_path: Path) -> None:
    for i, size in enumerate([(8, 8), (8, 9)]):
        data = cv2.imencode(".png", np.zeros((*size, 3), np.uint8))[1]
        (tmp_path / f"{i}.png").write_bytes(data.tobytes())
    with pytest.raises(VideoError, match="frames of different sizes"):
        read_clip(tmp_path, [0, 1])


def test_indices_outside_the_file(video_kind: Callable[[str], Path]) -> None:
    path = video_kind("h264_bframes")
    with pytest.raises(InputError, match=r"expected frame indices in \[0, 60\), got 3..60"):
        read_clip(path, [3, 60])
    with pytest.raises(InputError, match="got -1"):
        read_clip(path, [-1])
    with pytest.raises(InputError, match="at least one frame index"):
        read_clip(path, [])


def test_the_probe_is_remembered_until_the_file_changes(
    tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    path = make_video(tmp_path / "a.mp4", frames=10)
    first = cached_info(path)
    assert cached_info(path) is first
    make_video(path, frames=12)
    os.utime(path, ns=(1, 1))
    assert cached_info(path).num_frames == 12


def test_a_marked_key_frame_that_is_none_is_not_trusted(
    video_kind: Callable[[str], Path], truth: Truth
) -> None:
    path = video_kind("h264_one_gop")
    info = probe_video(path)
    lying = dataclasses.replace(info, key_pts=info.pts, key_dts=info.pts)
    frames = truth(path)
    assert np.array_equal(read_clip(path, [40, 7], info=lying), np.stack([frames[40], frames[7]]))


def test_info_survives_pickling(video_kind: Callable[[str], Path]) -> None:
    info = probe_video(video_kind("h264_bframes"))
    again = pickle.loads(pickle.dumps(info))
    assert again == info
    assert np.array_equal(again.pts, info.pts)


def test_a_time_limit_ends_the_read(video_kind: Callable[[str], Path]) -> None:
    path = video_kind("h264_one_gop")
    info = probe_video(path)
    with pytest.raises(VideoError) as caught:
        read_clip(path, [59], info=info, timeout_s=1e-9)
    assert caught.value.reason == "timeout"


def test_no_handle_is_left_open(video_kind: Callable[[str], Path]) -> None:
    paths = [video_kind("h264_bframes"), video_kind("mpeg4_avi_bframes")]
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        for path in paths:
            probe_video(path)
            read_clip(path, [5, 50])
    assert len(os.listdir("/proc/self/fd")) <= before
