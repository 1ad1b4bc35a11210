"""The windows' bench: both ways give the same pixels, and reading each frame once is the faster one."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from vmae.cli.main import main
from vmae.core.video.windows import WindowConfig
from vmae.experiments.bench.loader import make_bench_video
from vmae.experiments.bench.windows import bench_windows


def test_each_frame_once_is_faster_and_the_same(tmp_path: Path) -> None:
    video = make_bench_video(tmp_path / "v.mp4", height=64, width=80, keyint=30, frames=60)
    r = bench_windows(video, WindowConfig(size=(48, 48)), rounds=2)
    assert r.equal and r.windows == 12 and r.once > 1.5 * r.by_itself
    result = CliRunner().invoke(main, ["bench", "windows", str(video), "--rounds", "1"])
    assert result.exit_code == 0 and "| v.mp4 | 12 |" in result.output and "OTHER" not in result.output
