"""A sweep from the command line to its table, undisturbed, killed and interrupted: the same numbers."""

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

from vmae.experiments.runs import Filter, children, history, list_runs, list_sweeps, pictures
from vmae.experiments.tracking import store_at


def _command(sweeps: Any, runs: Path, epochs: int) -> list[str]:
    """Two settings and the baseline, with a picture every other epoch."""
    line: list[str] = sweeps.command(
        runs, "--values", "0.5,0.75", "--set", "train.picture_every=2", epochs=epochs
    )
    return line


def _run(sweeps: Any, command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=sweeps.environment(), capture_output=True, text=True, timeout=240, check=False
    )


@pytest.fixture(scope="module")
def undisturbed(sweeps: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A two-trial sweep (and its baseline) that nobody disturbed: its run directory and what it printed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = _run(sweeps, _command(sweeps, folder / "runs", epochs=6), folder)
    assert done.returncode == 0, done.stderr
    return folder / "runs", done.stdout + done.stderr


def test_a_sweep_ends_with_table_winner_figure_and_next_commands(
    sweeps: Any, undisturbed: tuple[Path, str]
) -> None:
    runs, output = undisturbed
    home = runs / "sweeps" / "masking_ratio-1"
    for text in ("pre-training loss", "error at 0.75", "probe accuracy", "clips/s", "minutes"):
        assert text in output
    top1 = {name: metrics["probe/top1"] for name, metrics in sweeps.numbers(runs).items()}
    assert sorted(top1) == ["random-weights_s0", "ratio0.5_s0", "ratio0.75_s0"]
    labels = {"random-weights_s0": "random weights", "ratio0.5_s0": "0.5", "ratio0.75_s0": "0.75"}
    for name, value in top1.items():
        (row,) = [line for line in output.splitlines() if line.strip().startswith(labels[name] + " ")]
        assert f"{value:.1%}" in row, name
    best = max((n for n in top1 if n.startswith("ratio")), key=lambda n: top1[n])  # the first of equals
    said = output[output.index("best mean: ") :]
    for text in (
        f"best mean: mask.ratio = {labels[best]}",
        "no winner: ",  # of 12 videos
        f"{top1[best] * 12:.1f}x chance (8.3%)",
        "random weights",
        "vmae runs list",
        "vmae dashboard",
    ):
        assert text in said
    assert "masking_ratio.png" in said
    assert (home / "masking_ratio.png").read_bytes().startswith(b"\x89PNG")


def test_every_trial_is_one_run_under_the_sweep(sweeps: Any, undisturbed: tuple[Path, str]) -> None:
    store = store_at(undisturbed[0])
    (sweep,) = list_sweeps(store)
    trials = children(store, sweep)
    assert sorted(t.name for t in trials) == ["random-weights_s0", "ratio0.5_s0", "ratio0.75_s0"]
    assert all(t.status == "FINISHED" for t in [sweep, *trials])
    trial = next(t for t in trials if t.name == "ratio0.75_s0")
    assert trial.params["mask.ratio"] == "0.75"
    assert {k: trial.metrics[k] for k in sweeps.numbers(undisturbed[0])[trial.name]} == pytest.approx(
        sweeps.numbers(undisturbed[0])[trial.name]
    )
    steps = [s for s, _ in history(store, trial.run_id, "pretrain/step_loss")]
    assert steps == sorted(set(steps))
    assert steps[-1] == 36  # 6 epochs of 48 clips in batches of 8
    losses = [v for _, v in history(store, trial.run_id, "pretrain/loss")]
    assert len(losses) == 6 and losses[-1] < losses[0]
    assert [s for s, _ in pictures(trial)] == [2, 4, 6]
    assert trial.checkpoint is not None
    assert trial.checkpoint.exists()
    # Of a trial of a few seconds; test_tracking.py has the bound, in processor time.
    assert 0 < trial.metrics["perf/tracking_share"] < 0.5


def _midway(sweeps: Any, runs: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a pre-training trial has a checkpoint."""
    sweeps.wait(
        lambda: list(runs.glob("sweeps/*/trials/ratio*/pretrain/checkpoints/*")),
        process,
        "a trial's first checkpoint",
    )


def test_killed_and_resumed_gives_the_undisturbed_table(
    sweeps: Any, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    process = sweeps.start(_command(sweeps, runs, epochs=6), tmp_path)
    family = []
    try:
        _midway(sweeps, runs, process)
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.communicate()
    finally:
        # Ray's processes notice that their driver is gone; a test does not wait for them.
        for child in family:
            if child.is_running():
                child.kill()
    assert len(sweeps.numbers(runs)) < 3
    resumed = _run(
        sweeps,
        [sys.executable, "-m", "vmae", "sweep", "masking_ratio", "--resume", "--runs-dir", str(runs)],
        tmp_path,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert sweeps.numbers(runs) == sweeps.numbers(undisturbed[0])
    store = store_at(runs)
    assert len(list_runs(store)) == 4
    for run in list_runs(store, where=[Filter(column="kind", op="=", value="trial")]):
        steps = [s for s, _ in history(store, run.run_id, "pretrain/step_loss")]
        assert steps == sorted(set(steps)), f"{run.name} counted a step twice"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_cleanly_and_says_how_to_resume(
    number: signal.Signals, sweeps: Any, tmp_path: Path
) -> None:
    """Ctrl-C, a container's stop and a closed terminal, of which the last two reach the driver alone."""
    runs = tmp_path / "runs"
    process = sweeps.start(_command(sweeps, runs, epochs=500), tmp_path)
    try:
        _midway(sweeps, runs, process)
        family = psutil.Process(process.pid).children(recursive=True)
        asked = time.monotonic()
        if number is signal.SIGINT:
            os.killpg(process.pid, number)  # what a terminal does: the whole group gets it
        else:
            os.kill(process.pid, number)
        output, _ = process.communicate(timeout=30)
        assert time.monotonic() - asked < 15
    finally:
        if process.poll() is None:
            process.kill()
    assert process.returncode == 130, output
    assert "vmae sweep --resume masking_ratio-1" in output
    assert "Traceback" not in output and "received at time" not in output
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive, f"left behind: {[p.name() for p in alive]}"
    sweep = list_sweeps(store_at(runs))[0]
    assert sweep.status == "KILLED"
