"""A mask, a target and a stage of a user's own, in one module of theirs: a sweep ranked by that stage."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vmae.core.config import override
from vmae.core.errors import InputError
from vmae.experiments import recipes
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.layout import RunsDir
from vmae.experiments.runs import list_sweeps
from vmae.experiments.sweeps.space import parse_params
from vmae.experiments.sweeps.spec import Plan, make_plan
from vmae.experiments.sweeps.status import groups, trial_states, winner
from vmae.experiments.sweeps.trial import run_trial
from vmae.experiments.tracking import Tracker, store_at

MODULE = '''
import torch

from vmae.core.model.grid import patchify
from vmae.experiments.stages.stage import Metric, Stage


def corner(config, grid, draws):
    """The first tokens of every clip are masked."""
    mask = torch.zeros(draws.batch, grid.num_tokens, dtype=torch.bool)
    mask[:, : int(config.ratio * grid.num_tokens)] = True
    return mask


def brightness(video, indices, grid):
    """Each patch's mean is predicted."""
    x = video.float() / 255 if video.dtype == torch.uint8 else video.float()
    return patchify(x, grid).mean(2).gather(1, indices)[..., None]


def spread(context):
    """How far the features of held-out clips lie from each other."""
    model = context.model().to(context.device).eval()
    clips = [torch.as_tensor(context.data().val[i]["clip"]) for i in range(4)]
    video = torch.stack(clips).permute(0, 4, 1, 2, 3).to(context.device)
    with torch.no_grad():
        found = float(model.encode(video).mean(1).std(0).mean())
    (context.home.path / "note.txt").parent.mkdir(parents=True, exist_ok=True)
    (context.home.path / "note.txt").write_text(f"{found}")
    return {"toy/spread": found}


STAGE = Stage(
    name="toy",
    metrics=(
        Metric(
            name="toy/spread",
            title="feature spread",
            column="spread",
            higher_is_better=False,
            digits=4,
            where="on held-out videos",
        ),
    ),
    share=lambda config: 1.0,
    run=spread,
)
'''
OWN = {
    "mask.type": "own_toys:corner",
    "model.target": "own_toys:brightness",
    "model.target_dim": "1",
}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with the module `own_toys`."""
    (tmp_path / "own_toys.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    yield tmp_path
    sys.modules.pop("own_toys", None)


def _base(sweeps: Any) -> ExperimentConfig:
    lists = {f"data.{n}_csv": str(sweeps.data / f"{n}.csv") for n in ("train", "val")}
    changes = {**sweeps.shape, **lists, **OWN, "train.epochs": 1, "pipeline.then": ["knn", "own_toys:STAGE"]}
    return override(recipes.get("demo_pretrain"), changes)


def _plan(base: ExperimentConfig) -> Plan:
    return make_plan(
        name="own-1",
        sweep="custom",
        title="t",
        params=parse_params(["mask.ratio=0.5,0.75"], base),
        metric=base.pipeline.metric,
        base=base,
        baseline=False,
    )


def test_a_trial_runs_and_is_ranked_by_a_stage_of_ones_own(sweeps: Any, own: Path) -> None:
    plan = _plan(_base(sweeps))
    sweep, store = RunsDir(own).sweep(plan.name), store_at(own)
    plan.save(sweep)
    with Tracker(store, sweep.path, name=plan.name, key=plan.key, kind="sweep"):
        found = {t.id: run_trial(sweep, t.id, store)["metrics"]["toy/spread"] for t in plan.trials}
    assert len(set(found.values())) == 2
    assert sweep.trial(plan.trials[0].id).stage("toy").path.joinpath("note.txt").exists()
    # Whoever reads the sweep needs the module no more: the plan says how it is ranked and shown.
    (own / "own_toys.py").unlink()
    sys.modules.pop("own_toys")
    read = Plan.load(sweep)
    best = winner(groups(trial_states(read, sweep)), read.ranked_by)
    assert best is not None
    assert f"ratio{best.label}_s0" == min(found, key=found.__getitem__)
    assert [m.heading(read.base) for m in read.columns()][-2:] == ["spread", "clips/s"]
    with pytest.raises(InputError, match=r"pipeline\.then: expected a module that can be imported"):
        read.stages()


@pytest.mark.slow
def test_a_sweep_with_parts_of_ones_own(sweeps: Any, own: Path) -> None:
    """Two trials on Ray workers, from the command line: parts that vmae does not have."""
    line = sweeps.command(own / "runs", "--then", "own_toys:STAGE", epochs=1)
    line[line.index("0.5,0.75,0.9")] = "0.5,0.75"
    for key, value in OWN.items():
        line += ["--set", f"{key}={value}"]
    done = subprocess.run(
        line, cwd=own, env=sweeps.environment(), capture_output=True, text=True, check=False, timeout=400
    )
    assert done.returncode == 0, done.stderr
    values = {n: m["toy/spread"] for n, m in sweeps.numbers(own / "runs").items()}
    best = min((n for n in values if n.startswith("ratio")), key=values.__getitem__)
    header, _, *rows = done.stdout.splitlines()[1:6]
    assert "spread" in header.split()
    ratio = best.removeprefix("ratio").removesuffix("_s0")
    assert f"{values[best]:.4f}" in next(r for r in rows if r.startswith(f"{ratio} "))
    assert f"best mean: mask.ratio = {ratio}, {values[best]:.4f} on held-out videos" in done.stdout
    (parent,) = list_sweeps(store_at(own / "runs"))
    assert parent.tags["vmae.metric"] == "toy/spread"
    assert json.loads(parent.tags["vmae.metric_facts"])["higher_is_better"] is False
    assert parent.tags["vmae.best"] == ratio


def test_a_bad_stage_is_one_line_and_exit_code_2(sweeps: Any, own: Path) -> None:
    line = sweeps.command(own / "runs", "--then", "own_toys:STAGES", epochs=1)
    done = subprocess.run(
        line, cwd=own, env=sweeps.environment(), capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 2
    assert "pipeline.then: expected an object of module own_toys, got 'STAGES'" in done.stderr
    assert "did you mean 'STAGE'" in done.stderr
    assert "Traceback" not in done.stderr
