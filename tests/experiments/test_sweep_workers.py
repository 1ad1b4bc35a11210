"""Trials whose stages run on Ray workers and tasks of their own: the numbers of one process."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.slow


def _close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for trial, metrics in expected.items():
        assert found[trial].keys() == metrics.keys()
        for name, value in metrics.items():
            assert found[trial][name] == pytest.approx(value, abs=1e-5), f"{trial}: {name}"


def test_two_workers_a_trial_give_the_numbers_of_one(
    sweeps: Any, undisturbed_numbers: dict[str, Any], tmp_path: Path
) -> None:
    """More trials at a time than fit: each stage waits for room, none for ever. One worker is killed."""
    runs = tmp_path / "runs"
    more = ["--workers-per-trial", "2", "--max-concurrent", "3", "--stage-resources", "probe:cpus=2"]
    process = sweeps.start(sweeps.command(runs, *more), tmp_path)
    sweeps.wait(lambda: sweeps.running(runs), process, "a trial with a checkpoint")
    family = psutil.Process(process.pid).children(recursive=True)
    workers = [m for m in family if "RayTrainWorker" in " ".join(m.cmdline())]
    assert len(workers) >= 2
    os.kill(workers[0].pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
    _close(sweeps.numbers(runs), undisturbed_numbers)
