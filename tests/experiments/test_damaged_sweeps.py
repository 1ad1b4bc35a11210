"""Small files of a sweep that are cut short or of another kind: what they stood for is done again."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from vmae.cli.main import run
from vmae.cli.sweep_options import LATEST, saved_plan
from vmae.core.config import override
from vmae.core.errors import VmaeError
from vmae.core.files import write_json
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.layout import RunsDir
from vmae.experiments.sweeps.driver import all_plans
from vmae.experiments.sweeps.population import adopted, history
from vmae.experiments.sweeps.space import parse_params
from vmae.experiments.sweeps.spec import Plan, make_plan
from vmae.experiments.sweeps.status import DONE, is_running, trial_states
from vmae.experiments.tracking import store_at

DAMAGES = {"nothing": b"", "half": None, "bytes": b"\xff\xfe\x00", "list": b"[]", "other": b'{"x": 1}'}


def damage(file: Path, how: str) -> None:
    content = file.read_bytes()
    found = DAMAGES[how]
    file.write_bytes(content[: len(content) // 2] if found is None else found)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two sweeps of one finished trial each, as files."""
    for name in ("a-1", "b-1"):
        params = parse_params(("mask.ratio=0.5",), ExperimentConfig())
        plan = make_plan(
            name=name,
            sweep=name[0],
            title="",
            params=params,
            metric="probe/top1",
            base=ExperimentConfig(),
            baseline=False,
        )
        sweep = RunsDir(tmp_path).sweep(name)
        plan.save(sweep)
        home = sweep.trial(plan.trials[0].id)
        numbers = {"metrics": {"probe/top1": 0.5}, "seconds": 3.0, "stopped": None}
        write_json(home.result, numbers)
        write_json(home.progress, {**numbers, "stage": "done", "fraction": 1.0, "error": None, "attempts": 1})
        write_json(sweep.alive, {"time": time.time(), "ended": True})
    return tmp_path


def vmae(*argv: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        run([str(a) for a in argv])
    return int(stopped.value.code or 0)


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("what", ["result", "progress", "alive", "plan"])
def test_one_damaged_file_breaks_no_list_and_no_other_sweep(
    runs: Path, what: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = RunsDir(runs).sweep("a-1")
    plan = Plan.load(sweep)
    home = sweep.trial(plan.trials[0].id)
    if what in ("progress", "alive"):
        home.result.unlink()
    damage(
        {"result": home.result, "progress": home.progress, "alive": sweep.alive, "plan": sweep.plan}[what],
        how,
    )
    assert vmae("sweeps", "list", "--json", "--runs-dir", runs) == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert listed["b-1"]["state"] == "done" and listed["b-1"]["best_value"] == 0.5
    assert vmae("sweeps", "list", "--runs-dir", runs) == 0
    code = vmae("sweeps", "status", "a-1", "--runs-dir", runs)
    captured = capsys.readouterr()
    if what == "plan":
        assert listed["a-1"]["state"] == "damaged" and code == 2
        assert str(sweep.plan) in captured.err.splitlines()[-1]
        with pytest.raises(VmaeError, match=r"a-1/plan\.json"):
            Plan.load(sweep)
    else:
        assert code == 0 and listed["a-1"]["state"] == {"result": "stopped"}.get(what, listed["a-1"]["state"])
        assert all(s.status != DONE for s in trial_states(plan, sweep)) or what != "result"
        assert not is_running(sweep)
        assert saved_plan(store_at(runs), None, "a-1").trials == plan.trials
    assert saved_plan(store_at(runs), "b", LATEST).name == "b-1"
    assert [s.name for s, _ in all_plans(store_at(runs))] in (["a-1", "b-1"], ["b-1", "a-1"])


@pytest.mark.parametrize("how", DAMAGES)
def test_what_pbt_took_over_is_never_forgotten(runs: Path, how: str) -> None:
    """A trial's curve may be made again; without what it took over it would be another experiment."""
    sweep = RunsDir(runs).sweep("a-1")
    plan = Plan.load(sweep)
    home, config = sweep.trial(plan.trials[0].id), plan.trials[0].config(plan.base)
    write_json(home.history, [[1, 0.5], [2, 0.4]])
    write_json(home.adopted, [{"overrides": {"optim.base_lr": 0.5}}])
    assert adopted(home, config) == override(config, {"optim.base_lr": 0.5})
    assert history(sweep, plan.trials[0].id) == [(1, 0.5), (2, 0.4)]
    damage(home.history, how)
    assert history(sweep, plan.trials[0].id) == []
    damage(home.adopted, how)
    if how == "list":
        assert adopted(home, config) == config
    else:
        with pytest.raises(VmaeError, match=r"adopted\.json: expected what pbt took over"):
            adopted(home, config)
    shutil.rmtree(home.path)
    assert adopted(home, config) == config
