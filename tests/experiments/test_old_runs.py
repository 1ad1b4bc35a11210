"""A run directory that older code left is listed, resumed and shown as it was then."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vmae.experiments.layout import RunsDir
from vmae.experiments.runs import children, find, history, list_sweeps
from vmae.experiments.sweeps.spec import Plan
from vmae.experiments.sweeps.status import DONE, RUNNING, trial_states
from vmae.experiments.sweeps.trial import run_trial
from vmae.experiments.tracking import store_at

ROOT = Path(__file__).resolve().parents[2]


def _vmae(*arguments: str) -> str:
    kept = {k: v for k, v in os.environ.items() if k not in ("VMAE_RUNS", "MLFLOW_TRACKING_URI")}
    done = subprocess.run(
        [sys.executable, "-m", "vmae", *arguments, "--runs-dir", "runs"],
        env={**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_old_run_directory_is_listed(old_runs: Path) -> None:
    listed = _vmae("runs", "list").splitlines()[2:]
    assert sorted(line.split()[1] for line in listed) == [
        "interrupted",
        "masking_ratio-1",
        "random-weights_s0",
        "ratio0.5_s0",
        "tuned",
    ]
    (sweep,) = json.loads(_vmae("sweeps", "list", "--json"))
    assert (sweep["state"], sweep["done"], sweep["metric"], sweep["best"]) == (
        "stopped",
        2,
        "probe/top1",
        "0.5",
    )
    assert "25.0% probe accuracy" in _vmae("runs", "list", "--sweep", "masking_ratio-1")
    assert "finetune" in _vmae("runs", "show", "tuned")


def test_an_old_pretraining_goes_on_to_the_old_numbers(old_runs: Path) -> None:
    printed = _vmae("pretrain", "--resume", "interrupted")
    assert "loss 0.5199 after 40 epochs" in printed
    run = find(store_at(old_runs), "interrupted")
    assert run.status == "FINISHED"
    assert run.metrics["pretrain/loss"] == pytest.approx(0.519854, abs=1e-4)
    assert run.metrics["eval/loss"] == pytest.approx(0.685442, abs=1e-4)


def test_an_old_trial_goes_on_to_the_old_numbers_and_a_finished_one_is_left(old_runs: Path) -> None:
    sweep = RunsDir(old_runs).sweep("masking_ratio-1")
    plan, store = Plan.load(sweep), store_at(old_runs)
    assert [s.status for s in trial_states(plan, sweep)] == [DONE, DONE, RUNNING]
    kept = sweep.trial("ratio0.5_s0").result.read_bytes()
    found = {t.id: run_trial(sweep, t.id, store) for t in plan.trials}
    assert sweep.trial("ratio0.5_s0").result.read_bytes() == kept
    last = found["ratio0.75_s0"]
    assert last["attempts"] == 2
    assert last["metrics"]["pretrain/loss"] == pytest.approx(0.530122, abs=1e-4)
    assert last["metrics"]["eval/loss"] == pytest.approx(0.666942, abs=1e-4)
    assert last["metrics"]["probe/top1"] == 0.25
    # The steps of both attempts, each once.
    steps = [s for s, _ in history(store, find(store, "ratio0.75_s0").run_id, "pretrain/loss")]
    assert steps == list(range(1, 61))


@pytest.mark.slow
def test_an_old_sweep_is_resumed(old_runs: Path) -> None:
    printed = _vmae("sweep", "masking_ratio", "--resume")
    assert "best mean: mask.ratio = 0.5, 25.0% on held-out videos" in printed
    (sweep,) = list_sweeps(store_at(old_runs))
    assert sweep.status == "FINISHED"
    assert {r.status for r in children(store_at(old_runs), sweep)} == {"FINISHED"}


def test_an_old_finetuning_is_evaluated_to_the_old_numbers(old_runs: Path) -> None:
    before = json.loads((old_runs / "tuned" / "evaluation" / "metrics.json").read_text())
    again = json.loads(_vmae("evaluate", "--checkpoint", "tuned", "--set", "data.cache=false", "--json"))
    assert {k: again[k] for k in ("top1", "loss", "videos")} == pytest.approx(
        {k: before[k] for k in ("top1", "loss", "videos")}, abs=1e-5
    )
