"""Frames are shown turned, mirrored and at the aspect that the file says, by every way of reading."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from vmae.core.video.cache import DecodedCache
from vmae.core.video.check import check_file
from vmae.core.video.clips import ClipDataset
from vmae.core.video.config import DataConfig
from vmae.core.video.optimize import OptimizeConfig, is_good, optimize_file
from vmae.core.video.probe import orientation, probe_video
from vmae.core.video.reader import open_video, read_clip
from vmae.core.video.samples import Sample

Matrix = tuple[float, float, float, float]
# x' = a x + c y and y' = b x + d y, y downwards: what becomes of a stored frame [H, W, 3].
MATRICES: dict[str, tuple[Matrix, Callable[[np.ndarray], np.ndarray]]] = {
    "upright": ((1, 0, 0, 1), lambda f: f),
    "mirrored": ((-1, 0, 0, 1), lambda f: f[:, ::-1]),
    "upside_down": ((1, 0, 0, -1), lambda f: f[::-1]),
    "half_turn": ((-1, 0, 0, -1), lambda f: f[::-1, ::-1]),
    "transposed": ((0, 1, 1, 0), lambda f: f.transpose(1, 0, 2)),
    "clockwise": ((0, 1, -1, 0), lambda f: f.transpose(1, 0, 2)[:, ::-1]),
    "counter_clockwise": ((0, -1, 1, 0), lambda f: f.transpose(1, 0, 2)[::-1]),
    "anti_transposed": ((0, -1, -1, 0), lambda f: f.transpose(1, 0, 2)[::-1, ::-1]),
    "twice_as_large": ((2, 0, 0, 2), lambda f: f),
    "mirrored_and_larger": ((-1.5, 0, 0, 1.5), lambda f: f[:, ::-1]),
    "nearly_upright": ((math.cos(0.005), math.sin(0.005), -math.sin(0.005), math.cos(0.005)), lambda f: f),
}


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("kind", ["h264_bframes", "mpeg4_mp4_bframes"])
def test_the_whole_display_matrix_is_applied(
    name: str,
    kind: str,
    video_kind: Callable[[str], Path],
    turn: Callable[..., Path],
    truth: Callable[[Path], list[np.ndarray]],
    tmp_path: Path,
) -> None:
    matrix, show = MATRICES[name]
    path = turn(video_kind(kind), tmp_path / "a.mp4", matrix)
    stored = [show(f) for f in truth(video_kind(kind))]
    info = probe_video(path)
    assert (info.height, info.width) == stored[0].shape[:2]
    clip = read_clip(path, [50, 3, 3, 17], info=info)
    for got, i in zip(clip, [50, 3, 3, 17], strict=True):
        assert np.abs(got.astype(int) - stored[i]).mean() < 0.5
    with open_video(path, info=info, backend="decord" if kind == "h264_bframes" else None) as video:
        assert np.abs(video.read([9])[0].astype(int) - stored[9]).mean() < 2
    # The cache and the clips of a data set show it the same way.
    sample = Sample(path=str(path), label=0)
    whole = DecodedCache.build([sample], tmp_path / "cache", 4096).frames(str(path))
    assert np.abs(whole[40].astype(int) - stored[40]).mean() < 0.5
    config = DataConfig(frames=2, sampling_rate=1, size=info.resized(None), short_side=0, workers=0)
    shown = ClipDataset([sample], config, "val")[0]["clip"][0].numpy()
    assert np.abs(shown.astype(int) - stored[29]).mean() < 0.5
    notes = check_file(sample).notes
    assert ("mirrored" in notes) == (matrix[0] * matrix[3] - matrix[1] * matrix[2] < 0)
    assert ("rotated" in notes) == (info.rotation != 0)


@pytest.mark.parametrize("name", ["mirrored", "upside_down", "clockwise", "anti_transposed"])
def test_re_encoding_makes_the_right_picture_permanent(
    name: str, video_kind: Callable[[str], Path], turn: Callable[..., Path], tmp_path: Path
) -> None:
    source = turn(video_kind("h264_intra"), tmp_path / "a.mp4", MATRICES[name][0])
    config = OptimizeConfig(short_side=96, gop=4, crf=8)
    assert not is_good(probe_video(source), config)
    assert optimize_file((str(source), str(tmp_path / "b.mp4")), config=config).action == "encoded"
    before, after = (read_clip(p, [5, 41]).astype(int) for p in (source, tmp_path / "b.mp4"))
    assert before.shape == after.shape
    assert np.abs(before - after).mean() < 4
    info = probe_video(tmp_path / "b.mp4")
    assert (info.rotation, info.mirrored) == (0, False)


def test_other_angles_turn_about_the_centre(
    video_kind: Callable[[str], Path],
    turn: Callable[..., Path],
    truth: Callable[[Path], list[np.ndarray]],
    tmp_path: Path,
) -> None:
    stored = truth(video_kind("h264_bframes"))[7]
    height, width = stored.shape[:2]
    for degrees in (30, 135, 359):
        r = math.radians(degrees)
        path = turn(
            video_kind("h264_bframes"),
            tmp_path / "a.mp4",
            (math.cos(r), math.sin(r), -math.sin(r), math.cos(r)),
        )
        got = read_clip(path, [7], info=probe_video(path))[0]
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -degrees, 1)
        assert np.abs(got.astype(int) - cv2.warpAffine(stored, matrix, (width, height))).mean() < 0.5


def test_orientation() -> None:
    one = 1 << 16
    assert orientation((one, 0, 0, 0, one, 0, 0, 0, 1 << 30)) == (0, False)
    assert orientation((0, one, 0, -one, 0, 0, 0, 0, 1 << 30)) == (270, False)
    assert orientation((-one, 0, 0, 0, one, 0, 0, 0, 1 << 30)) == (0, True)
    assert orientation((0, 0, 0, 0, 0, 0, 0, 0, 0)) == (0, False)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs FFmpeg's command line")
@pytest.mark.parametrize("name", MATRICES)
def test_as_ffmpeg_shows_it(
    name: str, video_kind: Callable[[str], Path], turn: Callable[..., Path], tmp_path: Path
) -> None:
    path = turn(video_kind("h264_444"), tmp_path / "a.mp4", MATRICES[name][0])
    info = probe_video(path)
    arguments = ["-i", path, "-fps_mode", "passthrough", "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
    done = subprocess.run(["ffmpeg", "-v", "error", *arguments], capture_output=True, check=True)
    frames = np.frombuffer(done.stdout, np.uint8).reshape(-1, info.height, info.width, 3)
    assert len(frames) == info.num_frames
    assert np.abs(read_clip(path, range(60)).astype(int) - frames).mean() < 1


def encode_with_aspect(
    path: Path, aspect: str, codec: str = "libx264", size: tuple[int, int] = (90, 120)
) -> Path:
    """Twelve frames of a white disc as displayed: an ellipse where pixels are not square."""
    height, width = size
    wide = float(Fraction(aspect))
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        for _ in range(12):
            image = np.zeros((height, width, 3), np.uint8)
            axes = (round(30 / wide), 30)
            cv2.ellipse(image, (width // 2, height // 2), axes, 0, 0, 360, (255, 255, 255), -1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def extent(image: np.ndarray) -> tuple[int, int]:
    """Height and width of the disc."""
    white = image.mean(2) > 128
    return int(white.any(1).sum()), int(white.any(0).sum())


@pytest.mark.parametrize("aspect", ["64/45", "8/9", "12/11", "2/1", "1/2", "1/1"])
@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        ("mp4", "libx264"),
        ("mkv", "libx264"),
        ("ts", "libx264"),
        ("avi", "mpeg4"),
        ("mov", "mpeg4"),
        ("mpg", "mpeg2video"),
    ],
)
def test_pixels_that_are_not_square_are_shown_at_the_displayed_aspect(
    aspect: str, suffix: str, codec: str, tmp_path: Path
) -> None:
    if codec == "mpeg2video" and aspect not in ("64/45", "1/1"):
        pytest.skip("MPEG-2 states the aspect of the screen: 4:3, 16:9 or that of the frame")
    size = (576, 720) if codec == "mpeg2video" else (90, 120)
    path = encode_with_aspect(tmp_path / f"a.{suffix}", aspect, codec, size)
    info = probe_video(path)
    wide = float(Fraction(aspect))
    assert info.pixel_aspect == pytest.approx(wide)
    assert (info.height, info.width) == (size[0], round(size[1] * wide))
    shown = read_clip(path, [0, 5], info=info)
    assert shown.shape == (2, info.height, info.width, 3)
    height, width = extent(shown[0])
    assert abs(height - width) <= 3
    assert abs(height - 61) <= 2  # resized once, across
    small = read_clip(path, [5], 48, info=info)
    assert small.shape[1:3] == info.resized(48)
    report = check_file(Sample(path=str(path), label=0), full=False)
    assert ("pixels_not_square" in report.notes) == (wide != 1)
    assert report.status == "ok"


def test_turned_pixels_that_are_not_square(turn: Callable[..., Path], tmp_path: Path) -> None:
    path = turn(encode_with_aspect(tmp_path / "a.mp4", "2/1"), tmp_path / "b.mp4", MATRICES["clockwise"][0])
    info = probe_video(path)
    assert (info.height, info.width) == (240, 90)
    height, width = extent(read_clip(path, [3])[0])
    assert abs(height - width) <= 3
    optimize_file((str(path), str(tmp_path / "c.mp4")), config=OptimizeConfig(short_side=60))
    after = probe_video(tmp_path / "c.mp4")
    assert (after.height, after.width, after.pixel_aspect, after.rotation) == (160, 60, 1.0, 0)


def test_what_the_container_says_of_pixels_comes_first(recut: Callable[..., Path], tmp_path: Path) -> None:
    """As in FFmpeg: the stream says 2:1, the file around it square pixels."""
    inner = encode_with_aspect(tmp_path / "a.mp4", "2/1")
    data = inner.read_bytes()
    at = data.index(b"pasp") + 4
    (tmp_path / "b.mp4").write_bytes(data[:at] + (1).to_bytes(4, "big") * 2 + data[at + 8 :])
    assert probe_video(inner).width == 240
    assert probe_video(tmp_path / "b.mp4").width == 120


def test_an_aspect_that_cannot_be_meant_is_not_followed(tmp_path: Path) -> None:
    for aspect in ("1000/1", "1/1000"):
        info = probe_video(encode_with_aspect(tmp_path / "a.mp4", aspect))
        assert (info.height, info.width, info.pixel_aspect) == (90, 120, 1.0)


def test_fields_are_not_resized_apart(tmp_path: Path) -> None:
    """A frame marked as interlaced is scaled as a whole picture, as FFmpeg's command line does it."""
    plain, marked = tmp_path / "plain.mp4", tmp_path / "marked.mp4"
    image = cv2.resize(np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8), (128, 96))
    for path, options in ((plain, {"crf": "1"}), (marked, {"crf": "1", "flags": "+ildct+ilme"})):
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream("libx264", rate=25, options=options)
            stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
            for _ in range(4):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
    with av.open(str(marked)) as container:
        assert next(container.decode(video=0)).interlaced_frame
    for short_side in (None, 36):
        clips = [cv2.cvtColor(read_clip(p, [0], short_side)[0], cv2.COLOR_RGB2GRAY) for p in (plain, marked)]
        assert np.abs(clips[0].astype(int) - clips[1]).mean() < 1
    full = [read_clip(p, [0])[0].astype(int) for p in (plain, marked)]
    assert np.abs(full[0] - full[1]).mean() < 1
