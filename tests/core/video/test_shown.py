"""What counts is what a decode from start to end shows: of cut, trimmed, late and put-together files."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from vmae.core.errors import VideoError
from vmae.core.video.cache import DecodedCache
from vmae.core.video.check import check_file
from vmae.core.video.clips import ClipDataset
from vmae.core.video.config import DataConfig
from vmae.core.video.probe import probe_video
from vmae.core.video.reader import read_clip
from vmae.core.video.samples import Sample

Truth = Callable[[Path], list[np.ndarray]]
Recut = Callable[..., Path]


def require_same(path: Path, shown: list[np.ndarray]) -> None:
    """Count, every frame in several orders, the cache, dense evaluation and the check agree with `shown`."""
    info = probe_video(path)
    n = info.num_frames
    assert n == len(shown)
    rng = np.random.default_rng(0)
    every = list(range(n))
    strided = [np.minimum(s + 4 * np.arange(8), n - 1).tolist() for s in rng.integers(0, n, 3)]
    for order in (every, every[::-1], [0], [n - 1], rng.integers(0, n, 5).tolist(), *strided):
        for got, i in zip(read_clip(path, order, info=info), order, strict=True):
            assert np.abs(got.astype(int) - shown[i]).mean() < 0.5, f"{info.backend}: frame {i} of {order}"
    sample = Sample(path=str(path), label=0)
    cached = DecodedCache.build([sample], path.parent / "cache", 4096).frames(str(path))
    assert len(cached) == n
    assert max(np.abs(c.astype(int) - f).mean() for c, f in zip(cached, shown, strict=True)) < 0.5
    size = info.resized(None)
    config = DataConfig(frames=4, sampling_rate=2, size=size, short_side=0, segments=5, crops=1, workers=0)
    dense = ClipDataset([sample], config, "test")
    views = dense[0]["clip"].numpy()
    wanted = dense._frame_indices(sample, n, 2, None).reshape(-1)
    for got, i in zip(views.reshape(-1, *size, 3), wanted, strict=True):
        assert np.abs(got.astype(int) - shown[i]).mean() < 0.5
    for full in (False, True):
        report = check_file(sample, full=full)
        assert (report.status, "inexact_seek" in report.notes) == ("ok", False)


CUT = [
    "h264_open_gop",
    "hevc_open_gop",
    "h264_bframes",
    "h264_intra",
    "intra_refresh",
    "mpeg4_mp4_bframes",
    "vp8",
    "vp9",
    "av1_mkv",
]


def encoded(
    kind: str, video_kind: Callable[[str], Path], make_video: Callable[..., Path], folder: Path
) -> Path:
    if kind == "intra_refresh":
        return make_video(folder / "ir.mkv", options={"g": "12", "bf": "2", "x264-params": "intra-refresh=1"})
    return video_kind(kind)


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "ts", "avi", "mov"])
@pytest.mark.parametrize("kind", CUT)
@pytest.mark.parametrize(("start_s", "drop"), [(1.0, 0), (0.9, 5), (0.0, 7)])
def test_cut_without_re_encoding(
    kind: str,
    suffix: str,
    start_s: float,
    drop: int,
    video_kind: Callable[[str], Path],
    make_video: Callable[..., Path],
    recut: Recut,
    truth: Truth,
    tmp_path: Path,
) -> None:
    """The first packets of an open group, and those before a key frame, refer to frames that are gone."""
    source = encoded(kind, video_kind, make_video, tmp_path)
    path = tmp_path / f"cut.{suffix}"
    try:
        recut(source, path, start_s=start_s, drop=drop)
        shown = truth(path)
    except (av.error.FFmpegError, ValueError, AttributeError):
        pytest.skip(f"no {kind} in {suffix}")
    if not shown:
        with pytest.raises(VideoError):
            probe_video(path)
        return
    require_same(path, shown)


def test_frames_that_never_come_out_are_not_counted(
    video_kind: Callable[[str], Path], make_video: Callable[..., Path], recut: Recut, tmp_path: Path
) -> None:
    path = recut(video_kind("h264_open_gop"), tmp_path / "open.mkv", start_s=1.0)
    with av.open(str(path)) as container:
        packets = sum(p.size > 0 for p in container.demux(video=0))
    info = probe_video(path)
    assert (info.backend, info.num_frames) == ("seek", packets - 3)
    begun = recut(video_kind("h264_one_gop"), tmp_path / "begun.mkv", drop=9)
    with pytest.raises(VideoError, match="no frame could be decoded"):
        probe_video(begun)  # its only key frame is gone
    begun = recut(video_kind("vp9"), tmp_path / "begun.webm", drop=9)
    assert (probe_video(begun).backend, probe_video(begun).num_frames) == ("seek", 48)


def test_a_file_whose_time_stamps_do_not_find_its_frames_is_decoded_from_the_start(
    make_video: Callable[..., Path], truth: Truth, tmp_path: Path
) -> None:
    path = make_video(tmp_path / "a.avi", codec="mpeg4", options={"g": "12", "bf": "2"}, frames=40)
    assert probe_video(path).backend == "sequential"
    require_same(path, truth(path))


TRIMS: dict[str, tuple[list[tuple[float, float]], str]] = {
    "start": ([(1.2, 0.8)], "seek"),
    "end": ([(0.0, 0.7)], "seek"),
    "both": ([(0.5, 0.9)], "seek"),
    "later": ([(-1, 0.5), (0.0, 2.0)], "seek"),
    "later_and_trimmed": ([(-1, 0.5), (0.7, 0.6)], "seek"),
    "longer_than_it_is": ([(0.0, 9.0)], "seek"),
    "two_stretches": ([(0.0, 0.5), (1.2, 0.6)], "sequential"),
    "the_second_first": ([(1.2, 0.6), (0.1, 0.5)], "sequential"),
    "one_stretch_three_times": ([(0.5, 0.4)] * 3, "sequential"),
    "overlapping": ([(0.0, 0.9), (0.5, 0.9)], "sequential"),
    "every_other_tenth": ([(0.2 * k, 0.1) for k in range(9)], "sequential"),
}


@pytest.mark.parametrize("name", TRIMS)
@pytest.mark.parametrize(
    "kind", ["h264_bframes", "h264_open_gop", "h264_one_gop", "hevc_open_gop", "mpeg4_mp4_bframes"]
)
def test_edit_lists(
    name: str,
    kind: str,
    video_kind: Callable[[str], Path],
    edit: Callable[..., Path],
    truth: Truth,
    tmp_path: Path,
) -> None:
    """A trimmed file has fewer packets than its header says frames, and is whole."""
    edits, backend = TRIMS[name]
    path = edit(video_kind(kind), tmp_path / "a.mp4", edits)
    shown = truth(path)
    if kind == "h264_bframes" and name != "longer_than_it_is":
        seconds = sum(t for start, t in edits if start >= 0 and t < 2)
        assert abs(len(shown) - 30 * seconds) <= 2 * len(edits) or name == "later"
    require_same(path, shown)
    if kind != "mpeg4_mp4_bframes":
        assert probe_video(path).backend == backend


def test_an_edit_list_that_shows_nothing(
    video_kind: Callable[[str], Path], edit: Callable[..., Path], tmp_path: Path
) -> None:
    path = edit(video_kind("h264_bframes"), tmp_path / "a.mp4", [(5.0, 1.0)])
    with pytest.raises(VideoError, match="no_frames"):
        probe_video(path)


@pytest.mark.parametrize("suffix", ["mkv", "webm", "flv", "mp4", "mov", "ts", "avi"])
@pytest.mark.parametrize("shift_s", [0.5, 3.0, 1000.0])
def test_files_that_do_not_start_at_zero(
    suffix: str,
    shift_s: float,
    video_kind: Callable[[str], Path],
    recut: Recut,
    truth: Truth,
    tmp_path: Path,
) -> None:
    """Segments keep the clock of the whole; Matroska then states when they end, not how long they are."""
    source = video_kind("vp9" if suffix == "webm" else "h264_avi_no_b" if suffix == "avi" else "h264_mkv")
    path = recut(source, tmp_path / f"a.{suffix}", shift_s=shift_s)
    require_same(path, truth(path))


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs FFmpeg's command line")
@pytest.mark.parametrize("suffix", ["mkv", "webm", "flv", "mp4", "mov", "ts"])
def test_segments(suffix: str, video_kind: Callable[[str], Path], truth: Truth, tmp_path: Path) -> None:
    source = video_kind("vp9" if suffix == "webm" else "h264_mkv")
    command = ["ffmpeg", "-v", "error", "-i", source, "-c", "copy", "-f", "segment", "-segment_time", "0.5"]
    subprocess.run([*command, tmp_path / f"%d.{suffix}"], check=True)
    pieces = sorted(tmp_path.glob(f"*.{suffix}"))
    assert len(pieces) > 2
    for piece in pieces:
        require_same(piece, truth(piece))
    if suffix == "ts":  # put one after the other the pieces are a stream again, whose counters jump
        joined = tmp_path / "joined" / "all.ts"
        joined.parent.mkdir()
        joined.write_bytes(b"".join(p.read_bytes() for p in pieces))
        assert len(truth(joined)) == 60
        require_same(joined, truth(joined))


def test_lost_packets_of_a_transport_stream_are_damage(
    video_kind: Callable[[str], Path], tmp_path: Path
) -> None:
    data = video_kind("h264_mpegts").read_bytes()
    for lost in (40, 60, 80):
        path = tmp_path / "a.ts"
        path.write_bytes(data[: 188 * lost] + data[188 * (lost + 5) :])
        with pytest.raises(VideoError, match="corrupt"):
            probe_video(path)


def test_a_stated_length_counts_only_where_bytes_are_missing(
    video_kind: Callable[[str], Path], truth: Truth, tmp_path: Path
) -> None:
    data = bytearray(video_kind("h264_mkv").read_bytes())
    at = data.index(b"\x44\x89\x88") + 3  # the segment's duration, a float of 8 bytes in milliseconds
    data[at : at + 8] = np.array([9_000.0], ">f8").tobytes()
    path = tmp_path / "longer.mkv"
    path.write_bytes(data)
    require_same(path, truth(path))
    path = tmp_path / "cut.mkv"
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(VideoError, match=r"truncated: the header says 9\.00 s"):
        probe_video(path)
    without_index = video_kind("h264_mkv").read_bytes()[:-120]
    path = tmp_path / "no_cues.mkv"
    path.write_bytes(without_index)
    require_same(path, truth(path))


def test_an_avi_whose_header_counts_too_many_frames(
    video_kind: Callable[[str], Path], truth: Truth, tmp_path: Path
) -> None:
    data = bytearray(video_kind("mpeg4_avi").read_bytes())
    at = data.index(b"strh") + 8 + 32
    assert int.from_bytes(data[at : at + 4], "little") == 60
    data[at : at + 4] = (90).to_bytes(4, "little")
    path = tmp_path / "a.avi"
    path.write_bytes(data)
    require_same(path, truth(path))
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(VideoError, match="truncated"):
        probe_video(path)


@pytest.mark.parametrize("codec", ["mpeg4", "mjpeg", "libx264"])
def test_empty_packets_of_an_avi_with_gaps(
    codec: str, make_video: Callable[..., Path], truth: Truth, tmp_path: Path
) -> None:
    """AVI has no time stamps: a gap is written as packets without bytes, which show nothing."""
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options={"bf": "0"} if codec != "mjpeg" else {})
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        rng = np.random.default_rng(0)
        for i in [*range(10), *range(30, 40)]:
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 255, (48, 64, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            for packet in stream.encode(frame):
                container.mux(packet)
        container.mux(stream.encode())
    shown = truth(path)
    assert len(shown) == 20
    require_same(path, shown)
