"""Sweeps to which things happen, with real processes: each ends with the table of an undisturbed one."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from vmae.experiments.runs import Filter, history, list_runs
from vmae.experiments.tracking import Store, store_at, sync

pytestmark = pytest.mark.slow


def _whole(store: Store, trials: int) -> None:
    """Every trial is one run that ended well, and no step was counted twice."""
    runs = list_runs(store, where=[Filter(column="kind", op="=", value="trial")])
    assert len(runs) == trials
    assert {r.status for r in runs} == {"FINISHED"}
    for run in runs:
        steps = [s for s, _ in history(store, run.run_id, "pretrain/step_loss")]
        assert steps == sorted(set(steps)), f"{run.name} counted a step twice"
        if "random" not in run.name:
            assert steps[-1] == 72  # 12 epochs of 48 clips in batches of 8


def _finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    return output


def test_a_killed_worker(sweeps: Any, undisturbed_numbers: dict[str, Any], tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    process = sweeps.start(sweeps.command(runs), tmp_path)
    sweeps.wait(lambda: sweeps.running(runs), process, "a trial with a checkpoint")
    victim = sweeps.running(runs)[0]
    os.kill(victim["pid"], signal.SIGKILL)
    _finish(process)
    assert sweeps.attempts(runs) == 2
    assert sweeps.numbers(runs) == undisturbed_numbers
    _whole(store_at(runs), 4)


def test_a_full_disk(sweeps: Any, undisturbed_numbers: dict[str, Any], tmp_path: Path) -> None:
    """The trial's process can write no file past 4 KiB any more; the attempt after it can."""
    runs = tmp_path / "runs"
    process = sweeps.start(sweeps.command(runs), tmp_path)
    sweeps.wait(lambda: sweeps.running(runs), process, "a trial with a checkpoint")
    victim = sweeps.running(runs)[0]
    resource.prlimit(victim["pid"], resource.RLIMIT_FSIZE, (4096, 4096))
    _finish(process)
    assert sweeps.attempts(runs) == 2
    assert sweeps.numbers(runs) == undisturbed_numbers
    _whole(store_at(runs), 4)


def test_mlflow_away_for_a_while(
    sweeps: Any,
    undisturbed_numbers: dict[str, Any],
    server: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = tmp_path / "runs"
    process = sweeps.start(sweeps.command(runs), tmp_path, MLFLOW_TRACKING_URI=server.uri)
    sweeps.wait(lambda: sweeps.running(runs), process, "a trial with a checkpoint")
    server.kill()
    done = len(sweeps.numbers(runs))
    sweeps.wait(lambda: len(sweeps.numbers(runs)) > done or process.poll() is not None, process, "a result")
    server.start()
    _finish(process)
    assert sweeps.numbers(runs) == undisturbed_numbers
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    assert all(outcome == "sent" for _, outcome in sync(runs))
    _whole(store_at(runs), 4)
