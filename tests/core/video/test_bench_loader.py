"""The benchmark does the same work on every way and says so when frames are wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from vmae.cli.main import main
from vmae.core.video.probe import probe_video
from vmae.experiments.bench.loader import (
    READERS,
    bench_loader,
    bench_optimized,
    bench_readers,
    make_bench_video,
    memory_over_opens,
    usual_way,
)


def test_readers_are_compared_frame_by_frame(video_kind: Callable[[str], Path]) -> None:
    pytest.importorskip("decord")
    good = {r.way: r for r in bench_readers(video_kind("h264_bframes"), clips=1)}
    assert list(good) == list(READERS)
    for way in ("ours", "decord", "pyav"):
        assert good[way].exact, way
        assert good[way].clips_per_cpu_s > 0
    assert good["torchcodec"].exact or good["torchcodec"].note  # it does not load everywhere
    bad = {r.way: r for r in bench_readers(video_kind("mpeg4_avi_bframes"), clips=3)}
    assert bad["ours"].exact
    assert bad["decord"].exact is False


def test_the_loader_against_the_usual_way(video_kind: Callable[[str], Path]) -> None:
    pytest.importorskip("decord")
    path = video_kind("h264_bframes")
    rates = {r.way: r for r in bench_loader(path, clips=1)}
    assert list(rates) == ["usual", "ours", "ours x4"]
    assert all(r.clips_per_cpu_s > 0 for r in rates.values())
    clip = usual_way(probe_video(path), np.arange(0, 32, 2), np.random.default_rng(0))
    assert clip.shape == (3, 16, 224, 224)
    assert -2.2 < float(clip.mean()) < 2.7


def test_before_and_after_and_memory(video_kind: Callable[[str], Path]) -> None:
    path = video_kind("h264_bframes")
    before, after = bench_optimized(path, path, clips=1)
    assert (before.way, after.way) == ("before", "after")
    start, peak = memory_over_opens(path, opens=40)
    assert start > 0
    assert peak < 1.2 * start


def test_the_generated_video(tmp_path: Path) -> None:
    info = probe_video(make_bench_video(tmp_path / "a.mp4", height=64, width=96, keyint=12, frames=30))
    assert (info.num_frames, info.height, info.width, len(info.key_pts)) == (30, 64, 96, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    pytest.importorskip("decord")
    arguments = [
        "bench",
        "loader",
        "--count",
        "1",
        "--opens",
        "20",
        "--frames",
        "24",
        "--out",
        str(tmp_path / "r.md"),
    ]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "r.md").read_text()
    assert text.count("| 1280x720_keyint250") == 2
    assert "resident memory over 20 opens" in text
    assert "WRONG FRAMES" not in text
