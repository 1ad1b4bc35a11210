"""Ctrl-C on a training is answered at once, and the end says what is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SMALL = (
    "model.frames=4", "model.height=32", "model.width=32", "model.tubelet_size=2", "model.depth=1",
    "model.embed_dim=32", "data.frames=4", "data.size=32,32", "data.short_side=32", "data.sampling_rate=1",
    "data.workers=0", "train.batch_size=8", "train.log_every=1", "evaluation_ratio=0.75",
)  # fmt: skip


def start(videos: Path, folder: Path, *more: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "vmae.cli.main",
        "pretrain",
        "--recipe",
        "demo_pretrain",
        "--threads",
        "1",
    ]
    command += ["--data", str(videos / "train.csv"), "--run-name", "one", *more, "--set", *SMALL]
    env = {**os.environ, "VMAE_PROGRESS": "lines"}
    return subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 60
    while not path.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)


@pytest.mark.parametrize("epochs", ["5000"])
def test_a_training_says_that_it_stops_saves_and_is_not_called_done(
    epochs: str, tiny_videos: Path, tmp_path: Path
) -> None:
    process = start(tiny_videos, tmp_path, "--epochs", epochs)
    wait_for(tmp_path / "runs" / "one" / "checkpoints", process)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    assert "note: stopping after this step" in out
    assert "Go on with: vmae pretrain --resume one" in out
    assert "one: stopped at" in out and "done in" not in out
    assert "Traceback" not in out


def test_before_the_training_nothing_is_kept_and_the_name_is_free(tiny_videos: Path, tmp_path: Path) -> None:
    # A list that never ends is the longest preparation there is.
    slow = tmp_path / "train.csv"
    os.mkfifo(slow)
    process = start(tiny_videos, tmp_path, "--val", str(tiny_videos / "val.csv"), "--data", str(slow))
    wait_for(tmp_path / "runs" / "one", process)
    time.sleep(0.5)
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert (
        time.monotonic() - sent < 10
    )  # 2 s on a machine that does nothing else; a list is waited for for ever
    assert process.returncode == 130, out
    assert "no run was made" in out and "Traceback" not in out
    assert not (tmp_path / "runs" / "one").exists()
