"""`vmae sweeps` reads a sweep's folder while it runs, after it stopped and when it is done."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from vmae.cli.main import run
from vmae.core.files import write_json
from vmae.core.video.config import DataConfig
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.layout import RunsDir, SweepDir
from vmae.experiments.sweeps.spec import Plan, Trial


def _plan(runs_dir: Path) -> tuple[Plan, SweepDir]:
    plan = Plan(
        name="masking_ratio-1",
        sweep="masking_ratio",
        title="How much to hide",
        params=("mask.ratio",),
        metric="probe/top1",
        base=ExperimentConfig(data=DataConfig(frames=8, size=(64, 64))),
        trials=tuple(Trial(id=f"ratio{r}_s0", overrides={"mask.ratio": r}, seed=0) for r in (0.5, 0.75)),
    )
    sweep = RunsDir(runs_dir).sweep(plan.name)
    plan.save(sweep)
    return plan, sweep


def _progress(sweep: SweepDir, trial: str, **state: object) -> None:
    base = {"stage": "pretrain", "fraction": 0.5, "metrics": {"pretrain/loss": 0.7}, "error": None}
    write_json(sweep.trial(trial).progress, {**base, "seconds": 60.0, **state})


def _result(sweep: SweepDir, trial: str, top1: float) -> None:
    metrics = {"probe/top1": top1, "pretrain/loss": 0.5}
    write_json(sweep.trial(trial).result, {"metrics": metrics, "seconds": 120.0})


def _vmae(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        run(["sweeps", *argv])
    assert not stopped.value.code
    return capsys.readouterr().out


def test_status_through_a_sweeps_life(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMAE_RUNS", str(tmp_path))
    assert "no sweeps yet" in _vmae(capsys, "list")
    plan, sweep = _plan(tmp_path)
    first, second = (t.id for t in plan.trials)
    _progress(sweep, first)
    assert "stopped; 1 running, 1 pending" in _vmae(capsys, "status", plan.name)  # no driver is there
    write_json(sweep.alive, {"time": time.time() - 10, "ended": False})
    out = _vmae(capsys, "status", plan.name)
    assert "running; 1 running, 1 pending; about" in out
    row = next(line.split() for line in out.splitlines() if line.startswith("0.5"))
    assert row[:5] == ["0.5", "0", "pretrain", "50%", "0.700"]

    _result(sweep, first, 0.25)
    _progress(sweep, second, stage="failed", error="the disk is full")
    write_json(sweep.alive, {"time": time.time(), "ended": True})
    out = _vmae(capsys, "status", plan.name)
    assert "failed; 1 done, 1 failed" in out
    assert f"failed: {second}: the disk is full" in out
    assert f"vmae sweep --resume {plan.name}" in out
    (listed,) = json.loads(_vmae(capsys, "list", "--json"))
    assert (listed["state"], listed["done"], listed["best"]) == ("failed", 1, "0.5")

    _progress(sweep, second)
    write_json(sweep.alive, {"time": time.time() - 100, "ended": False})  # the driver died
    assert "stopped; 1 done, 1 running" in _vmae(capsys, "status", plan.name)

    _result(sweep, second, 0.5)
    assert _vmae(capsys, "list").splitlines()[2].split()[1:] == ["done", "2", "of", "2", "0", "0.75", "50.0%"]
    state = json.loads(_vmae(capsys, "status", plan.name, "--json"))
    assert (state["state"], state["done"]) == ("done", 2)
    assert state["trials"][1]["metrics"]["probe/top1"] == 0.5
    assert "done; 2 done" in _vmae(capsys, "status", plan.name, "--watch")  # ends by itself


def test_an_unknown_name_is_refused_with_the_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMAE_RUNS", str(tmp_path))
    _plan(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        run(["sweeps", "status", "masking_ratio-2"])
    assert stopped.value.code == 2
    assert "did you mean 'masking_ratio-1'?" in capsys.readouterr().err
