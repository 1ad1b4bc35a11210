"""Re-encoding keeps every frame, is resumed and verified, and leaves alone what is already good."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vmae.core.errors import InputError, VideoError
from vmae.core.video.optimize import (
    MANIFEST,
    OptimizeConfig,
    is_good,
    measure_speed_up,
    optimize_file,
    optimize_samples,
    target_names,
)
from vmae.core.video.probe import probe_video
from vmae.core.video.reader import read_clip
from vmae.core.video.samples import Sample

CONFIG = OptimizeConfig(short_side=64, gop=4, crf=12)


@pytest.mark.parametrize(
    "kind", ["h264_one_gop", "mpeg4_avi_bframes", "h264_rotated90", "h264_odd", "h264_mpegts", "vp9", "gif"]
)
def test_every_frame_is_kept_small_and_close(
    kind: str, video_kind: Callable[[str], Path], tmp_path: Path
) -> None:
    source, target = video_kind(kind), tmp_path / "sub" / "a.mp4"
    done = optimize_file((str(source), str(target)), config=CONFIG)
    before, after = probe_video(source), probe_video(target)
    assert (done.action, done.frames) == ("encoded", before.num_frames)
    assert after.num_frames == before.num_frames
    assert (after.backend, after.codec, after.rotation) == ("seek", "h264", 0)
    assert min(after.height, after.width) == 64
    assert (after.height > after.width) == (before.height > before.width)
    assert is_good(after, CONFIG)
    assert not is_good(before, CONFIG)
    assert 0 < done.worst_difference < 6
    small = read_clip(target, [3, 17])
    expected = read_clip(source, [3, 17], 64)
    if expected.shape == small.shape:
        assert np.abs(small.astype(int) - expected).mean() < 12
    assert [p.name for p in target.parent.iterdir()] == ["a.mp4"]


def test_variable_rate_keeps_its_times_and_a_fixed_rate_resamples(
    video_kind: Callable[[str], Path], tmp_path: Path
) -> None:
    source = video_kind("h264_vfr_mkv")  # 40 ms apart, with a gap of 0.9 s after every 25 frames
    optimize_file((str(source), str(tmp_path / "a.mp4")), config=CONFIG)
    after = probe_video(tmp_path / "a.mp4")
    assert after.variable_rate
    gaps = np.diff(after.pts) / np.median(np.diff(after.pts))
    assert np.nonzero(gaps > 5)[0].tolist() == [24, 49]
    fixed = optimize_file(
        (str(source), str(tmp_path / "b.mp4")), config=dataclasses.replace(CONFIG, fps=10.0)
    )
    info = probe_video(tmp_path / "b.mp4")
    assert not info.variable_rate
    assert info.fps == pytest.approx(10, rel=0.01)
    assert fixed.frames == info.num_frames == 43  # the last frame is shown from 4.16 s on: at tick 42
    # Tick 13 (1.3 s) falls into the first gap: frame 24, which is shown from 0.96 s on.
    shown = read_clip(tmp_path / "b.mp4", [13])[0].astype(int)
    candidates = read_clip(source, [23, 24, 25], 64)[:, :, : shown.shape[1]].astype(int)
    assert np.argmin([np.abs(shown - c).mean() for c in candidates]) == 1


def test_a_list_is_resumed_and_bad_files_are_named(video_kind: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video" * 50)
    samples = [
        Sample(path=str(video_kind("h264_one_gop")), label=2),
        Sample(path=str(tmp_path / "bad.mp4"), label=0),
        Sample(path=str(video_kind("h264_bframes")), label=1),
        Sample(path=str(video_kind("h264_one_gop")), label=2),
    ]
    listed, results = optimize_samples(samples, tmp_path / "out", CONFIG)
    assert [s.label for s in listed] == [2, 1, 2]
    assert [r.action for r in results if "bad" not in r.source] == ["encoded", "encoded"]
    (failed,) = [r for r in results if r.action == "failed"]
    assert "bad.mp4: unreadable" in failed.error
    times = {s.path: Path(s.path).stat().st_mtime_ns for s in listed}
    # Interrupted while writing the manifest, and one target lost: only that one is done again.
    with open(tmp_path / "out" / MANIFEST, "a") as f:
        f.write('{"settings": {"short')
    Path(listed[1].path).unlink()
    listed_again, _ = optimize_samples(samples, tmp_path / "out", CONFIG)
    assert listed_again == listed
    assert Path(listed[0].path).stat().st_mtime_ns == times[listed[0].path]
    assert Path(listed[1].path).stat().st_mtime_ns != times[listed[1].path]
    slow, fast = measure_speed_up(results, 64, files=2)
    assert slow > 0
    assert fast > 0


def test_what_is_good_is_copied(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    source = make_video(tmp_path / "a.mp4", frames=12, options={"g": "4", "bf": "0"})
    done = optimize_file((str(source), str(tmp_path / "b.mp4")), config=OptimizeConfig())
    assert done.action == "kept"
    assert (tmp_path / "b.mp4").read_bytes() == source.read_bytes()
    assert not is_good(probe_video(source), OptimizeConfig(gop=3))
    assert not is_good(probe_video(source), OptimizeConfig(short_side=80))
    assert not is_good(probe_video(source), OptimizeConfig(fps=15))


def test_a_result_that_differs_is_refused(video_kind: Callable[[str], Path], tmp_path: Path) -> None:
    config = OptimizeConfig(short_side=64, crf=51, max_difference=1.0)
    with pytest.raises(VideoError, match=r"verification: frame \d+ differs by"):
        optimize_file((str(video_kind("h264_one_gop")), str(tmp_path / "a.mp4")), config=config)
    assert list(tmp_path.iterdir()) == []


def test_targets_never_collide(tmp_path: Path) -> None:
    paths = ["/v/a/x.avi", "/v/a/x.mkv", "/v/b/x.avi", "/v/c.mp4"]
    targets = target_names(paths, "/out")
    assert targets == {
        "/v/a/x.avi": "/out/a/x.avi.mp4",
        "/v/a/x.mkv": "/out/a/x.mkv.mp4",
        "/v/b/x.avi": "/out/b/x.mp4",
        "/v/c.mp4": "/out/c.mp4",
    }


def test_refused_values(tmp_path: Path) -> None:
    for changes, message in (
        ({"short_side": 255}, "short_side: expected an even number of at least 16, got 255"),
        ({"gop": 0}, "gop: expected at least 1, got 0"),
        ({"fps": -1.0}, "fps: expected more than 0"),
        ({"crf": 60}, "crf: expected 0 to 51"),
    ):
        with pytest.raises(InputError, match=message):
            OptimizeConfig(**changes)  # type: ignore[arg-type]
    stretch = [Sample(path="a.mp4", label=0, start=3, num_frames=5)]
    with pytest.raises(InputError, match="a list of stretches counts in frames of the source"):
        optimize_samples(stretch, tmp_path, OptimizeConfig(fps=10))


def test_an_interrupted_run_leaves_no_unfinished_file(
    video_kind: Callable[[str], Path], tmp_path: Path
) -> None:
    sample = Sample(path=str(video_kind("h264_one_gop")), label=0)

    def interrupted(function: object, items: Sequence[Any], *, workers: int, limit_s: float) -> Iterator[Any]:
        """As `run_isolated` when Ctrl-C comes in the middle of the first file: its process is killed."""
        for _, target in items:
            Path(f"{target}.123.part.mp4").write_bytes(b"half")
            raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        optimize_samples([sample], tmp_path / "[out]", CONFIG, runner=interrupted)
    assert [p.name for p in (tmp_path / "[out]").iterdir()] == [MANIFEST]
