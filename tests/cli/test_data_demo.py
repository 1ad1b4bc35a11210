"""`vmae data demo`: what it prints, its defaults, its errors and Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from vmae.cli.data_demo import demo
from vmae.core.files import TEMPORARY
from vmae.core.video.demo_data import DemoDataConfig
from vmae.core.video.demo_scene import CLASSES

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--clips-per-class", "2", "--size", "32", "--seconds", "0.5"]


def _vmae(*args: str) -> list[str]:
    return [sys.executable, "-m", "vmae", "data", "demo", *args]


def test_the_options_default_to_the_configuration() -> None:
    defaults = {p.name: p.default for p in demo.params}
    config = DemoDataConfig()
    for name in ("clips_per_class", "size", "seconds", "fps", "seed"):
        assert defaults[name] == getattr(config, name), name


def test_it_writes_the_set_then_says_that_it_is_complete(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    first = CliRunner().invoke(demo, [str(out), *SMALL, "--workers", "1"], catch_exceptions=False)
    assert f"{2 * len(CLASSES)} clips made" in first.output
    assert str(out / "train.csv") in first.output
    assert (out / "train.csv").is_file()
    second = CliRunner().invoke(demo, [str(out), *SMALL], catch_exceptions=False)
    assert "complete, nothing to make" in second.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--size", "33"], "size: expected an even number of pixels from 32, got 33"),
        (["--workers", "0"], "workers: expected at least 1, got 0"),
        (["--clips-per-class", "many"], "'many' is not a valid integer"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_2(tmp_path: Path, args: list[str], message: str) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        _vmae(str(tmp_path / "demo"), *args), capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "demo").exists()


def test_ctrl_c_stops_it_in_seconds_and_leaves_no_process_and_no_part(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = _vmae(str(out), "--clips-per-class", "2000", "--size", "32", "--workers", "2")
    process = subprocess.Popen(
        command, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=tmp_path
    )
    deadline = time.monotonic() + 30
    while len(list(out.glob("train/*.mp4"))) < 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1] == "interrupted"
    assert "Traceback" not in errors
    assert list(out.glob("train/*.mp4"))
    assert not list(out.rglob(f"*{TEMPORARY}"))
    deadline = time.monotonic() + 10
    while _alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _alive(process.pid)


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_untrimmed_videos_take_their_seed_and_no_other_option(tmp_path: Path) -> None:
    """Bad use is one line; a small set's making is tested with the set itself."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        _vmae(str(tmp_path), "--untrimmed", "--size", "64"),
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "--size: expected none with --untrimmed" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_untrimmed_videos_are_made_and_named(tmp_path: Path) -> None:
    done = CliRunner().invoke(demo, [str(tmp_path / "u"), "--untrimmed"], catch_exceptions=False)
    assert len(list((tmp_path / "u/videos").glob("*.mp4"))) == 80
    for line in ("annotations: ", "trimmed/train.csv"):
        assert line in done.output
