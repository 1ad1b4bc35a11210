"""Ctrl-C on a training is answered at once, and the end says what is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

SMALL = (
    "model.frames=4", "model.height=32", "model.width=32", "model.tubelet_size=2", "model.depth=1",
    "model.embed_dim=32", "data.frames=4", "data.size=32,32", "data.short_side=32", "data.sampling_rate=1",
    "train.batch_size=8", "train.log_every=1", "evaluation_ratio=0.75",
)  # fmt: skip


def start(
    videos: Path, folder: Path, *more: str, workers: int = 0, out: Any = subprocess.PIPE
) -> subprocess.Popen[str]:
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
    command += [
        "--data",
        str(videos / "train.csv"),
        "--run-name",
        "one",
        *more,
        "--set",
        *SMALL,
        f"data.workers={workers}",
    ]
    env = {**os.environ, "VMAE_PROGRESS": "lines"}
    return subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=subprocess.STDOUT, text=True)


def said(log: Path, text: str, process: subprocess.Popen[str]) -> bool:
    """Whether the process says `text` in its log within a minute."""
    until = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < until:
        if text in log.read_text():
            return True
        time.sleep(0.05)
    return text in log.read_text()


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_before_the_training_nothing_is_kept_and_the_name_is_free(
    number: signal.Signals, tiny_videos: Path, tmp_path: Path
) -> None:
    # A list that never ends is the longest preparation there is.
    slow = tmp_path / "train.csv"
    os.mkfifo(slow)
    process = start(tiny_videos, tmp_path, "--val", str(tiny_videos / "val.csv"), "--data", str(slow))
    wait_for(tmp_path / "runs" / "one", process)
    time.sleep(0.5)
    sent = time.monotonic()
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert (
        time.monotonic() - sent < 10
    )  # 2 s on a machine that does nothing else; a list is waited for for ever
    assert process.returncode == 130, out
    assert "no run was made" in out and "Traceback" not in out
    assert not (tmp_path / "runs" / "one").exists()


@pytest.mark.parametrize("killed", [False, True])
def test_with_loader_processes_the_state_is_saved_and_the_end_is_soon(
    killed: bool, tiny_videos: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    more = ["--epochs", "5000", "--set", "data.cache=false", "--set", "train.checkpoint_every=5000"]
    with log.open("w") as out:
        process = start(tiny_videos, tmp_path, *more, workers=2, out=out)
        assert said(log, "loss", process) and said(log, "clips/s", process), log.read_text()
        loaders = psutil.Process(process.pid).children()
        assert len(loaders) == 2
        if killed:
            loaders[0].kill()
            assert said(log, "a loader process died and is replaced", process), log.read_text()
            loaders = psutil.Process(process.pid).children()
        sent = time.monotonic()
        process.send_signal(signal.SIGHUP)
        process.wait(60)
    took, text = time.monotonic() - sent, log.read_text()
    assert process.returncode == 130, text
    assert "state saved. Go on with: vmae pretrain --resume one" in text and "Traceback" not in text
    assert list((tmp_path / "runs" / "one" / "checkpoints").iterdir())
    assert took < 10  # 1 s on a machine that does nothing else
    psutil.wait_procs(loaders, timeout=10)
    assert not any(p.is_running() for p in loaders)


def test_a_refusal_ends_the_process_under_what_is_still_at_work_in_native_code() -> None:
    """In good order the interpreter's end pulls that code away: a Ray half started aborted now and then."""
    code = (
        "import atexit, sys, threading, time\n"
        "from vmae.cli.main import run\n"
        "from vmae.experiments import background\n"
        "thread = threading.Thread(target=time.sleep, args=(60,), daemon=True)\n"
        "thread.start()\n"
        "background.leave(thread)\n"
        "atexit.register(print, 'in good order')\n"
        "sys.argv = ['vmae', 'nothing']\n"
        "run()\n"
    )
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "got 'nothing'" in done.stderr
    assert "in good order" not in done.stdout
