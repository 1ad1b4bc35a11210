"""Generated videos of every kind that reading is held to; made once per session."""

from __future__ import annotations

import contextlib
import fractions
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from vmae.core.video.samples import Sample


def picture(i: int, height: int, width: int, background: np.ndarray) -> np.ndarray:
    """Frame `i`: a moving texture and the number in binary along the lower edge."""
    image = np.ascontiguousarray(background[i % height : i % height + height, (2 * i) % width :][:, :width])
    cell = max(4, width // 12)
    for bit in range(10):
        image[-height // 6 :, bit * cell : (bit + 1) * cell] = 255 if i >> bit & 1 else 0
    return image


def encode(
    path: Path,
    *,
    frames: int = 60,
    size: tuple[int, int] = (96, 128),
    codec: str = "libx264",
    fps: int = 30,
    options: dict[str, str] | None = None,
    pix_fmt: str = "yuv420p",
    rotation: int = 0,
    times: Callable[[int], int] | None = None,
) -> Path:
    """Write a video of `frames` different frames of `size` (height, width); `times` gives ms stamps (VFR)."""
    height, width = size
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (24, 24, 3), np.uint8)
    background = cv2.resize(small, (width * 2, height * 2), interpolation=cv2.INTER_CUBIC)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=fps, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        if times is not None:
            stream.codec_context.time_base = fractions.Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(i, height, width, background), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times(i), fractions.Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def remux(
    source: Path,
    target: Path,
    *,
    start_s: float = 0.0,
    drop: int = 0,
    shift_s: float | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Copy the packets from the key frame before `start_s` without decoding, as `ffmpeg -ss -c copy` does.

    Into mp4 this writes an edit list that hides the frames before the first displayed one. `drop` leaves out
    as many packets first (the file then begins before a key frame); times are moved by `shift_s` (default: so
    that `start_s` is 0).
    """
    with av.open(str(source)) as src, av.open(str(target), "w", options=options or {}) as dst:
        stream = src.streams.video[0]
        out = dst.add_stream_from_template(stream)
        shift = round((-start_s if shift_s is None else shift_s) / stream.time_base)
        if start_s:
            src.seek(int(start_s / stream.time_base), stream=stream)
        for number, packet in enumerate(src.demux(stream)):
            if packet.dts is None or number < drop:
                continue
            packet.pts += shift
            packet.dts += shift
            packet.stream = out
            dst.mux(packet)
    return target


def boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """`(kind, start, end)` of the boxes in a stretch of an MP4."""
    while start + 8 <= end:
        length = int.from_bytes(data[start : start + 4], "big")
        yield data[start + 4 : start + 8], start, start + length
        start += length


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def with_matrix(source: Path, target: Path, matrix: tuple[float, float, float, float]) -> Path:
    """An MP4 or MOV of one track with the display matrix `(a, b, c, d)`."""
    data = bytearray(source.read_bytes())
    a, b, c, d = (round(v * 65536) for v in matrix)
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    target.write_bytes(data)
    return target


def with_edits(source: Path, target: Path, edits: list[tuple[float, float]]) -> Path:
    """An MP4 of one track, index last, whose edit list shows `(from, seconds)` of it one after the other; a
    `from` of -1 shows nothing."""
    data = source.read_bytes()
    (_, start, end), *_ = (b for b in boxes(data, 0, len(data)) if b[0] == b"moov")
    assert end == len(data)
    second = int.from_bytes(data[data.index(b"mdhd") + 16 :][:4], "big")
    movie = int.from_bytes(data[data.index(b"mvhd") + 16 :][:4], "big")
    at = data.find(b"elst")
    origin = int.from_bytes(data[at + 16 : at + 20], "big") if at >= 0 else 0
    rows = b"".join(
        struct.pack(">IiI", round(length * movie), -1 if t < 0 else origin + round(t * second), 1 << 16)
        for t, length in edits
    )
    edts = box(b"edts", box(b"elst", struct.pack(">II", 0, len(edits)) + rows))
    moov = b""
    for kind, a, b in boxes(data, start + 8, end):
        if kind != b"trak":
            moov += data[a:b]
            continue
        inner = [(k, data[x:y]) for k, x, y in boxes(data, a + 8, b) if k != b"edts"]
        moov += box(b"trak", b"".join(part + (edts if k == b"tkhd" else b"") for k, part in inner))
    target.write_bytes(data[:start] + box(b"moov", moov))
    return target


def sequential_frames(path: Path | str) -> list[np.ndarray]:
    """The truth: every frame that a sequential decode shows, uint8 `[H, W, 3]`, rotated for display.

    As FFmpeg's command line: what a decoder says about a packet is no reason to stop.
    """
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        frames = []
        for packet in container.demux(stream):
            with contextlib.suppress(av.error.InvalidDataError):
                for frame in packet.decode():
                    turns = round(frame.rotation / 90) % 4
                    frames.append(np.rot90(frame.to_ndarray(format="rgb24"), turns))
    return frames


def _kinds() -> dict[str, tuple[str, dict[str, Any]]]:
    gop = {"g": "12"}
    altref = {**gop, "auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "5"}
    x264 = {"g": "12", "bf": "3", "x264-params": "b-pyramid=normal:ref=4"}
    return {
        "h264_bframes": ("mp4", {"options": x264}),
        "h264_open_gop": ("mp4", {"options": {"g": "12", "bf": "3", "x264-params": "open-gop=1"}}),
        "h264_one_gop": ("mp4", {"options": {"g": "250"}}),
        "h264_intra": ("mp4", {"options": {"g": "1"}}),
        "h264_mkv": ("mkv", {"options": x264}),
        "h264_mpegts": ("ts", {"options": x264}),
        "h264_avi": ("avi", {"options": {"g": "12", "bf": "2"}}),
        "h264_avi_no_b": ("avi", {"options": {"g": "12", "bf": "0"}}),
        "h264_flv": ("flv", {"options": x264}),
        "h264_444": ("mp4", {"options": x264, "pix_fmt": "yuv444p"}),
        "h264_odd": ("mp4", {"options": x264, "pix_fmt": "yuv444p", "size": (97, 131)}),
        "h264_vfr": ("mp4", {"options": x264, "times": lambda i: 33 * i + (500 * (i // 20)) + (i % 3) * 7}),
        "h264_vfr_mkv": ("mkv", {"options": x264, "times": lambda i: 40 * i + (900 * (i // 25))}),
        "h264_rotated90": ("mp4", {"options": x264, "rotation": 90}),
        "h264_rotated180": ("mp4", {"options": x264, "rotation": 180}),
        "h264_rotated270": ("mov", {"options": x264, "rotation": -90}),
        "hevc": ("mp4", {"codec": "libx265", "options": {"x265-params": "keyint=12:bframes=3:log-level=0"}}),
        "hevc_open_gop": (
            "mp4",
            {"codec": "libx265", "options": {"x265-params": "keyint=12:bframes=3:open-gop=1:log-level=0"}},
        ),
        "mpeg4_avi": ("avi", {"codec": "mpeg4", "options": {"g": "12"}}),
        "mpeg4_avi_bframes": ("avi", {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}}),
        "mpeg4_mp4_bframes": ("mp4", {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}}),
        "mpeg1": ("mpg", {"codec": "mpeg1video", "options": gop}),
        "mpeg2_ts": ("ts", {"codec": "mpeg2video", "options": {"g": "12", "bf": "2"}}),
        "vp8": ("webm", {"codec": "libvpx", "options": {**gop, "auto-alt-ref": "1", "deadline": "realtime"}}),
        "vp9": ("webm", {"codec": "libvpx-vp9", "options": {**gop, "deadline": "realtime", "cpu-used": "8"}}),
        "vp9_altref": ("webm", {"codec": "libvpx-vp9", "options": altref}),
        "av1": ("mp4", {"codec": "libsvtav1", "options": {"g": "12", "preset": "12"}}),
        "av1_mkv": ("mkv", {"codec": "libsvtav1", "options": {"g": "12", "preset": "12"}}),
        "mjpeg": ("avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
        "gif": ("gif", {"codec": "gif", "pix_fmt": "rgb8", "frames": 20, "fps": 10}),
        "one_frame": ("mp4", {"frames": 1}),
        "three_frames": ("mp4", {"frames": 3, "options": x264}),
    }  # fmt: skip


KINDS = _kinds()


@pytest.fixture(scope="session")
def video_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the generated videos of this session."""
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="session")
def video_kind(video_dir: Path) -> Callable[[str], Path]:
    """`video_kind("vp9")`: the path of that generated file; edit lists are cut from other kinds."""

    def get(kind: str) -> Path:
        suffix, arguments = KINDS.get(kind, ("mp4", {}))
        path = video_dir / f"{kind}.{suffix}"
        if path.exists():
            return path
        if kind == "h264_faststart":
            return remux(get("h264_bframes"), path, options={"movflags": "faststart"})
        if kind == "h264_edit_list":
            return remux(get("h264_open_gop"), path, start_s=1.0)
        if kind == "h264_edit_list_long":
            return remux(get("h264_one_gop"), path, start_s=0.8)
        try:
            av.codec.Codec(arguments.get("codec", "libx264"), "w")
        except av.error.FFmpegError:
            pytest.skip(f"this build of PyAV has no {arguments['codec']} encoder")
        return encode(path, **arguments)

    return get


EDIT_LISTS = ("h264_edit_list", "h264_edit_list_long")


@pytest.fixture(params=[*KINDS, *EDIT_LISTS])
def any_kind(request: pytest.FixtureRequest, video_kind: Callable[[str], Path]) -> Path:
    """Each generated kind of file in turn."""
    return video_kind(request.param)


@pytest.fixture(scope="session")
def recut() -> Callable[..., Path]:
    """`recut(source, target, start_s=..., drop=..., shift_s=..., options=...)`; see `remux`."""
    return remux


@pytest.fixture(scope="session")
def turn() -> Callable[..., Path]:
    """`turn(source, target, (a, b, c, d))`; see `with_matrix`."""
    return with_matrix


@pytest.fixture(scope="session")
def edit() -> Callable[..., Path]:
    """`edit(source, target, [(from, seconds), ...])`; see `with_edits`."""
    return with_edits


@pytest.fixture(scope="session")
def truth() -> Callable[[Path | str], list[np.ndarray]]:
    """`truth(path)`: all frames by sequential decode."""
    return sequential_frames


@pytest.fixture(scope="session")
def make_video() -> Callable[..., Path]:
    """`make_video(path, frames=..., size=..., codec=...)`; see `encode`."""
    return encode


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Eleven videos of 20 to 30 frames and two sizes, of three classes."""
    folder = tmp_path_factory.mktemp("set")
    return [
        Sample(path=str(encode(folder / f"{i}.mp4", frames=20 + i, size=(48, 64 + 2 * (i % 2)))), label=i % 3)
        for i in range(11)
    ]


@pytest.fixture
def some_bad(samples: list[Sample], tmp_path: Path) -> list[Sample]:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(Path(samples[0].path).read_bytes()[:900])
    return [*samples[:6], Sample(path=str(bad), label=1), *samples[6:]]


@pytest.fixture
def a_hang(samples: list[Sample], tmp_path: Path) -> Iterator[list[Sample]]:
    """Seven videos and a folder of frames of which one is a pipe that nobody writes to: opening it waits in
    the system call for ever."""
    os.mkfifo(tmp_path / "img_1.png")
    yield [*samples[:3], Sample(path=str(tmp_path), label=0), *samples[3:7]]
    with contextlib.suppress(OSError):  # lets a reader of this process go
        os.close(os.open(tmp_path / "img_1.png", os.O_WRONLY | os.O_NONBLOCK))
