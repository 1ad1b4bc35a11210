"""What `vmae sweep` can be asked for, with real processes: a budget, PBT side by side, a registered model."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vmae.experiments.runs import Filter, children, history, list_runs, list_sweeps
from vmae.experiments.tracking import store_at

pytestmark = pytest.mark.slow


def _finish(process: subprocess.Popen[str], code: int = 0) -> str:
    output, _ = process.communicate(timeout=400)
    assert process.returncode == code, output
    return output


def _resume(sweeps: Any, runs: Path, folder: Path) -> str:
    command = [sys.executable, "-m", "vmae", "sweep", "--resume", "masking_ratio-1", "--runs-dir", str(runs)]
    return _finish(sweeps.start(command, folder))


def test_a_budget_ends_it_and_resume_goes_on(
    sweeps: Any, undisturbed_numbers: dict[str, Any], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    output = _finish(sweeps.start(sweeps.command(runs, "--budget", "5s", "--max-concurrent", "1"), tmp_path))
    assert "the budget is spent" in output
    assert "vmae sweep --resume masking_ratio-1" in output
    before = sweeps.numbers(runs)
    assert len(before) < 4
    _resume(sweeps, runs, tmp_path)
    assert sweeps.numbers(runs) == undisturbed_numbers


def test_a_full_disk_under_the_driver(
    sweeps: Any, undisturbed_numbers: dict[str, Any], tmp_path: Path
) -> None:
    """The driver can write no file past 4 KiB any more; its trials can. Nothing done is lost."""
    runs = tmp_path / "runs"
    process = sweeps.start(sweeps.command(runs), tmp_path)
    sweeps.wait(lambda: sweeps.running(runs), process, "a trial with a checkpoint")
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, 4096))
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 2, output
    assert "Traceback" not in output, output
    assert "make room, then `vmae sweep --resume masking_ratio-1`" in output
    done = {
        p.parent.name: json.loads(p.read_text())["attempts"]
        for p in runs.glob("sweeps/*/trials/*/result.json")
    }
    _resume(sweeps, runs, tmp_path)
    assert sweeps.numbers(runs) == undisturbed_numbers
    for name, attempts in done.items():
        result = runs / "sweeps" / "masking_ratio-1" / "trials" / name / "result.json"
        assert json.loads(result.read_text())["attempts"] == attempts, f"{name} was run again"
    kept = list_runs(store_at(runs), where=[Filter(column="kind", op="=", value="trial")])
    assert len(kept) == 4
    assert {r.status for r in kept} == {"FINISHED"}


def test_pbt_side_by_side_moves_weights_to_the_worst(sweeps: Any, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    line = sweeps.command(runs, "--cpus", "0.5", "--max-concurrent", "4", "--scheduler", "pbt")
    at = line.index("masking_ratio")
    line[at : at + 3] = ["--param", "optim.base_lr=0.03,0.01,0.003,1e-7"]
    _finish(sweeps.start(line, tmp_path))
    (sweep,) = list_sweeps(store_at(runs))
    trials = [t for t in children(store_at(runs), sweep) if "random" not in t.name]
    assert len(trials) == 4
    assert {t.status for t in trials} == {"FINISHED"}
    moved = {p.parent.name: json.loads(p.read_text()) for p in runs.glob("sweeps/*/trials/*/adopted.json")}
    assert moved, "no trial took another's weights"
    for name, steps in moved.items():
        tags = next(t.tags for t in trials if t.name == name)
        assert steps[-1]["from"] in tags["vmae.pbt"]
        assert steps[-1]["from"] != name
    for trial in trials:
        steps = [s for s, _ in history(store_at(runs), trial.run_id, "pretrain/loss")]
        assert steps == sorted(set(steps)) and steps[-1] == 12


_PREDICT = """
import json, sys, mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/actions/1")
print(json.dumps(model.predict(sys.argv[2:])))
"""


def test_the_registered_best_trial_predicts_from_paths(sweeps: Any, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    more = ["--then", "finetune", "--register", "actions"]
    for change in ("epochs=1", "batch_size=8"):
        more += ["--set", f"pipeline.finetune_train.{change}"]
    line = sweeps.command(runs, *more, epochs=1)
    line[line.index("0.5,0.75,0.9")] = "0.75"
    output = _finish(sweeps.start(line, tmp_path))
    assert "registered ratio0.75_s0 as actions version 1" in output
    lines = (sweeps.data / "val.csv").read_text().splitlines()[:3]
    videos = [str(sweeps.data / line.rsplit(" ", 1)[0]) for line in lines]
    done = subprocess.run(
        [sys.executable, "-c", _PREDICT, f"sqlite:///{runs / 'mlflow.db'}", *videos],
        cwd=tmp_path,
        env={k: v for k, v in sweeps.environment().items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    assert [r["path"] for r in rows] == videos
    for row in rows:
        assert 0 <= row["label"] < 12
        assert row["probability"] == max(row["probabilities"])
        assert sum(row["probabilities"]) == pytest.approx(1.0, abs=1e-4)
