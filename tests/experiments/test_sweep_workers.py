"""Trials whose stages run on Ray workers and tasks of their own: the numbers of one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from vmae.experiments.runs import Filter, children, history, list_runs, list_sweeps
from vmae.experiments.storage import Mirror
from vmae.experiments.tracking import Store, store_at

pytestmark = pytest.mark.slow


def _kill_a_worker(process: subprocess.Popen[str]) -> None:
    family = psutil.Process(process.pid).children(recursive=True)
    workers = [m for m in family if "RayTrainWorker" in " ".join(m.cmdline())]
    assert len(workers) >= 2
    os.kill(workers[0].pid, signal.SIGKILL)


def test_two_workers_a_trial_give_the_numbers_of_one(
    sweeps: Any, undisturbed_numbers: dict[str, Any], tmp_path: Path
) -> None:
    """More trials at a time than fit: each stage waits for room, none for ever. One worker is killed."""
    runs = tmp_path / "runs"
    more = ["--workers-per-trial", "2", "--max-concurrent", "3", "--stage-resources", "probe:cpus=2"]
    process = sweeps.start(sweeps.command(runs, *more), tmp_path)
    sweeps.wait(lambda: sweeps.running(runs), process, "a trial with a checkpoint")
    _kill_a_worker(process)
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
    sweeps.assert_close(sweeps.numbers(runs), undisturbed_numbers)


def test_two_workers_a_trial_with_files_on_s3(
    sweeps: Any,
    undisturbed_numbers: dict[str, Any],
    server: Any,
    bucket: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each process fetches its folder, the first worker's is copied back. One worker is killed."""
    for name, value in bucket.items():
        monkeypatch.setenv(name, value)
    uri = "s3://bucket/runs"
    more = ["--runs-dir", uri, "--workers-per-trial", "2", "--stage-resources", "probe:cpus=2"]
    there = {"MLFLOW_TRACKING_URI": server.uri, "VMAE_SCRATCH": str(tmp_path / "machine")}
    process = sweeps.start(sweeps.command(Path("RUNS"), *more), tmp_path, **there)
    view = Mirror(uri, tmp_path / "view")

    def seen() -> Path:
        view.pull(view.local, fresh=True)
        return view.local

    sweeps.wait(lambda: sweeps.running(seen()), process, "a trial with a checkpoint")
    _kill_a_worker(process)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    sweeps.assert_close(sweeps.numbers(seen()), undisturbed_numbers)
    assert not list((tmp_path / "machine").glob("*/*/sweeps/*/trials/*/pretrain")), "copies left behind"
    store = Store(uri=server.uri, runs_dir=tmp_path)
    trials = list_runs(store, where=[Filter(column="kind", op="=", value="trial")])
    assert len(trials) == 4
    for trial in trials:
        assert trial.status == "FINISHED"
        steps = [s for s, _ in history(store, trial.run_id, "pretrain/loss")]
        assert steps == ([] if "random" in trial.name else list(range(1, 13)))


@pytest.mark.parametrize("rule", ["asha", "pbt"])
def test_schedulers_with_two_workers_a_trial(sweeps: Any, tmp_path: Path, rule: str) -> None:
    """Trials judge each other's epochs while their workers train; weights move, some end early."""
    runs = tmp_path / "runs"
    line = sweeps.command(runs, "--workers-per-trial", "2", "--cpus", "0.5", "--scheduler", rule, epochs=6)
    at = line.index("masking_ratio")
    line[at : at + 3] = ["--param", "optim.base_lr=0.03,0.01,0.003,1e-7"]
    process = sweeps.start(line, tmp_path)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    store = store_at(runs)
    (sweep,) = list_sweeps(store)
    trials = {t.name: t for t in children(store, sweep) if "random" not in t.name}
    assert {t.status for t in trials.values()} == {"FINISHED"} and len(trials) == 4
    ended = {n: history(store, t.run_id, "pretrain/loss") for n, t in trials.items()}
    for name, curve in ended.items():
        steps = [s for s, _ in curve]
        assert steps == sorted(set(steps)), f"{name} counted an epoch twice"
        assert (steps[-1] < 6) == ("vmae.stopped" in trials[name].tags), name
    if rule == "asha":
        assert any("vmae.stopped" in t.tags for t in trials.values()), "no trial was stopped"
        return
    adopted = {p.parent.name: json.loads(p.read_text()) for p in runs.glob("sweeps/*/trials/*/adopted.json")}
    assert adopted, "no trial took another's weights"
    for name, moves in adopted.items():
        assert moves[-1]["from"] in set(trials) - {name}
        # It trained on with settings of its own.
        assert ended[name][-1][1] != ended[moves[-1]["from"]][-1][1]
