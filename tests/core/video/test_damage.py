"""Damaged files end as a classified error: no crash, no hang, no open handle, nothing invented.

A flipped byte inside a frame may still be a valid stream that says something else; no decoder can know. Such
a file must give exactly what FFmpeg's sequential decode shows of it, without a frame flagged as damaged.
"""

from __future__ import annotations

import gc
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from vmae.core.errors import VideoError
from vmae.core.video.probe import probe_video
from vmae.core.video.reader import read_clip

LIMIT_S = 5.0
REASONS = {
    "missing",
    "empty",
    "no_permission",
    "not_a_file",
    "no_frames",
    "no_video_stream",
    "unreadable",
    "truncated",
    "corrupt",
    "too_large",
    "timeout",
}


def open_handles() -> int:
    """Of this process; what earlier tests left to the collector is closed first."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def read_all(path: Path) -> list[np.ndarray]:
    """Every frame in windows of 16, as training would meet them."""
    info = probe_video(path, timeout_s=LIMIT_S)
    frames: list[np.ndarray] = []
    for start in range(0, info.num_frames, 16):
        indices = range(start, min(start + 16, info.num_frames))
        frames += list(read_clip(path, list(indices), info=info, timeout_s=LIMIT_S))
    return frames


def must_fail(path: Path, *reasons: str) -> VideoError:
    handles = open_handles()
    start = time.monotonic()
    with pytest.raises(VideoError) as caught:
        read_all(path)
    assert time.monotonic() - start < LIMIT_S
    assert len(os.listdir("/proc/self/fd")) <= handles
    assert caught.value.reason in (reasons or REASONS)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("tenth", range(1, 10))
@pytest.mark.parametrize(
    ("kind", "reasons"),
    [
        ("h264_faststart", ("truncated",)),
        ("h264_bframes", ("truncated",)),  # the index was at the end and is gone
        ("h264_mkv", ("truncated",)),
        ("mpeg4_avi", ("truncated", "unreadable")),
        ("vp9", ("truncated",)),
    ],
)
def test_cut_at_every_tenth(
    kind: str, reasons: tuple[str, ...], tenth: int, video_kind: Callable[[str], Path], tmp_path: Path
) -> None:
    whole = video_kind(kind).read_bytes()
    path = tmp_path / video_kind(kind).name
    path.write_bytes(whole[: len(whole) * tenth // 10])
    must_fail(path, *reasons)


@pytest.mark.parametrize("position", [0, 4, 8])
@pytest.mark.parametrize("kind", ["h264_faststart", "h264_mkv", "vp9", "hevc", "av1"])
def test_damaged_header(kind: str, position: int, video_kind: Callable[[str], Path], tmp_path: Path) -> None:
    source = video_kind(kind)
    data = bytearray(source.read_bytes())
    data[position : position + 32] = random.Random(position).randbytes(32)
    path = tmp_path / source.name
    path.write_bytes(data)
    if kind == "h264_faststart" and position == 4:
        # The first box of an mp4 (ftyp) is optional: without its name the file is still whole.
        assert np.array_equal(read_all(path), read_all(source))
    else:
        must_fail(path)


def test_damaged_index(video_kind: Callable[[str], Path], tmp_path: Path) -> None:
    data = video_kind("h264_faststart").read_bytes()
    for name in (b"moov", b"trak", b"stbl", b"stsd", b"avcC"):
        assert name in data
        path = tmp_path / f"{name.decode()}.mp4"
        path.write_bytes(data.replace(name, b"oops", 1))
        must_fail(path)


@pytest.mark.parametrize("trial", range(8))
@pytest.mark.parametrize("kind", ["h264_faststart", "h264_mkv", "mpeg4_avi", "hevc", "vp9", "h264_mpegts"])
def test_flipped_bytes_in_frames_are_an_error_or_what_ffmpeg_shows(
    kind: str, trial: int, video_kind: Callable[[str], Path], tmp_path: Path
) -> None:
    source = video_kind(kind)
    data = bytearray(source.read_bytes())
    rng = random.Random(trial)
    for _ in range(1 + trial % 4):
        at = rng.randrange(len(data) // 4, len(data))
        for i in range(at, min(at + rng.choice([1, 8, 64]), len(data))):
            data[i] ^= rng.randrange(1, 256)
    path = tmp_path / source.name
    path.write_bytes(data)
    handles = open_handles()
    try:
        frames = read_all(path)
    except VideoError as e:
        assert e.reason in REASONS
        return
    finally:
        assert len(os.listdir("/proc/self/fd")) <= handles
    with av.open(str(path)) as container:
        shown = list(container.decode(container.streams.best("video")))
    assert not any(f.is_corrupt for f in shown)
    assert len(frames) == len(shown)
    for mine, theirs in zip(frames, shown, strict=True):
        assert np.array_equal(mine, theirs.to_ndarray(format="rgb24"))


def test_zeroed_stretch(video_kind: Callable[[str], Path], tmp_path: Path) -> None:
    for kind in ("h264_faststart", "h264_mkv", "mpeg4_avi", "h264_mpegts"):
        data = bytearray(video_kind(kind).read_bytes())
        data[len(data) // 2 :][:2048] = b""
        data[len(data) // 2 : len(data) // 2 + 2048] = bytes(2048)
        path = tmp_path / video_kind(kind).name
        path.write_bytes(data)
        must_fail(path, "corrupt", "truncated")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.mp4", b"", "empty"),
        ("zeros.mp4", bytes(10_000), "unreadable"),
        ("noise.mp4", random.Random(0).randbytes(10_000), "unreadable"),
        ("text.mp4", b"404: not found\n" * 100, "unreadable"),
        ("page.avi", b"<!DOCTYPE html><html><body>Sign in</body></html>" * 20, "unreadable"),
        ("pickle.npy", b"\x80\x04K\x01.", "unreadable"),
        ("one_byte.webm", b"\x1a", "unreadable"),
    ],
)
def test_not_a_video(name: str, content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    must_fail(path, reason)


def test_audio_only(tmp_path: Path) -> None:
    for name in ("sound.mp4", "sound.wav", "sound.mkv"):
        path = tmp_path / name
        with av.open(str(path), "w") as container:
            stream = container.add_stream("pcm_s16le" if name.endswith("wav") else "aac", rate=48_000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), format="s16", layout="mono")
            frame.rate = 48_000
            for _ in range(10):
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        must_fail(path, "no_video_stream")


def test_folders_and_special_files(tmp_path: Path) -> None:
    must_fail(tmp_path / "absent.mp4", "missing")
    folder = tmp_path / "folder.mp4"
    folder.mkdir()
    must_fail(folder, "no_frames")
    (folder / "0.png").write_bytes(b"not an image")
    must_fail(folder, "corrupt")
    os.mkfifo(tmp_path / "pipe.mp4")  # opening one would wait forever
    must_fail(tmp_path / "pipe.mp4", "not_a_file")
    (tmp_path / "dangling.mp4").symlink_to(tmp_path / "nowhere")
    must_fail(tmp_path / "dangling.mp4", "missing")
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    must_fail(tmp_path / "loop.mp4", "unreadable")
    must_fail(Path("nul\0byte.mp4"), "unreadable")
    np.save(tmp_path / "floats.npy", np.zeros((4, 8, 8, 3), np.float32))
    must_fail(tmp_path / "floats.npy", "corrupt")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_no_permission(video_kind: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "locked.mp4"
    path.write_bytes(video_kind("h264_bframes").read_bytes())
    path.chmod(0)
    must_fail(path, "no_permission")


def test_a_file_that_shrinks_or_goes_after_the_probe(
    video_kind: Callable[[str], Path], tmp_path: Path
) -> None:
    whole = video_kind("h264_faststart").read_bytes()
    path = tmp_path / "a.mp4"
    path.write_bytes(whole)
    info = probe_video(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(VideoError) as caught:
        read_clip(path, [55], info=info)
    assert caught.value.reason in ("corrupt", "truncated")
    path.unlink()
    with pytest.raises(VideoError) as caught:
        read_clip(path, [5], info=info)
    assert caught.value.reason == "missing"


@pytest.mark.parametrize(
    "name", ["日本語 видео é.mp4", "with space.mp4", "quote'\".mp4", "%d{}[]*.mp4", "-dash.mp4"]
)
def test_strange_names_are_read(name: str, video_kind: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(video_kind("h264_bframes").read_bytes())
    assert read_clip(path, [0, 59]).shape == (2, 96, 128, 3)


def test_a_cover_picture_is_not_a_video(video_kind: Callable[[str], Path], tmp_path: Path) -> None:
    # A still frame in an image file is read as images are: through a folder, not as a video.
    path = tmp_path / "a.mp4"
    path.write_bytes(cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    try:
        assert probe_video(path).num_frames == 1
    except VideoError as e:
        assert e.reason in REASONS


@pytest.mark.slow
def test_the_real_clips_damaged(shared_dir: Path, tmp_path: Path) -> None:
    for source in sorted((shared_dir / "clips").iterdir()):
        if source.suffix == ".md":
            continue
        whole = source.read_bytes()
        for tenth in range(1, 10):
            path = tmp_path / source.name
            data = bytearray(whole[: len(whole) * tenth // 10] if tenth % 2 else whole)
            if tenth % 2 == 0:
                at = len(data) * tenth // 10
                data[at : at + 64] = random.Random(tenth).randbytes(64)
            path.write_bytes(data)
            start = time.monotonic()
            try:
                info = probe_video(path, timeout_s=LIMIT_S)
                read_clip(path, list(range(0, info.num_frames, 9)), info=info, timeout_s=LIMIT_S)
            except VideoError as e:
                assert e.reason in REASONS
            assert time.monotonic() - start < 2 * LIMIT_S
