"""What the stages and their metrics say of themselves, and how a user's own is found."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmae.core.config import override
from vmae.core.errors import InputError
from vmae.experiments import recipes, stages
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.stages.measure import ERROR
from vmae.experiments.stages.pretrain import LOSS
from vmae.experiments.stages.stage import Metric
from vmae.experiments.sweeps.spec import Trial
from vmae.experiments.sweeps.status import DONE, TrialState, groups, winner

ROOT = Path(__file__).resolve().parents[2]
OWN = """
from vmae.experiments.stages.stage import Metric, Stage

STAGE = Stage(
    name="toy",
    metrics=(Metric(name="toy/gap", title="toy gap", higher_is_better=False),),
    share=lambda config: 1.0,
)
TAKEN = Stage(name="probe", metrics=STAGE.metrics, share=STAGE.share)
NUMBER = 3
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of a user's in the working directory, under a name no other test uses."""
    name = f"own_{re.sub(r'[^a-z0-9]', '_', tmp_path.parent.name + tmp_path.name.lower())}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", __import__("sys").path.copy())
    return name


def test_numbers_are_shown_as_their_metric_says() -> None:
    accuracy = stages.metric("knn/top1")
    assert accuracy.text(0.3123) == "31.2%"
    assert accuracy.text(0.3123, 0.0149) == "31.2 ±1.5%"
    assert accuracy.text(0.3123, math.nan) == "31.2%"
    assert accuracy.text(None) == "-"
    assert accuracy.difference(-0.0123, 0.004) == "-1.2 ±0.4"
    assert accuracy.difference(0.0123) == "+1.2"
    assert accuracy.tick(0.5) == "50%"
    assert LOSS.text(0.69345, 0.002) == "0.693 ±0.002"
    assert LOSS.difference(0.01) == "+0.010"
    assert stages.metric("something/else").text(12345.678) == "1.235e+04"
    base = recipes.get("demo_pretrain")
    assert ERROR.heading(base) == "error at 0.75"
    assert LOSS.heading(base) == "pre-training loss"


def test_every_metric_has_one_home_and_every_stage_ranks_by_a_score() -> None:
    names = [m.name for stage in stages.STAGES.values() for m in stage.metrics]
    assert len(names) == len(set(names))
    for name in stages.THEN:
        assert stages.get(name).metric.name.startswith(f"{name}/")
        assert stages.get(name).metric.score
        assert stages.get(name).metric.chance in stages.METRICS or not stages.get(name).metric.percent
    assert stages.get("finetune").metric.name == "finetune/top1"
    assert stages.get("detection").metric.name == "detection/frame_map"
    assert stages.JOBS == ("pretrain", "finetune", "detection", "regression", "multilabel")
    assert all(stages.TASKS[t].train for t in stages.TASKS)


def test_the_best_is_the_lowest_where_lower_is_better_and_nan_never_wins() -> None:
    states = [
        TrialState(trial=Trial(id=f"{v}", overrides={"mask.ratio": v}, seed=0), status=DONE, metrics=metrics)
        for v, metrics in (
            (0.5, {"eval/loss": 0.7, "probe/top1": math.nan}),
            (0.75, {"eval/loss": 0.6, "probe/top1": 0.2}),
            (0.9, {"eval/loss": math.nan, "probe/top1": 0.1}),
        )
    ]
    found = groups(states)
    for metric, best in (("eval/loss", "0.75"), ("probe/top1", "0.75"), (ERROR, "0.75")):
        group = winner(found, metric)
        assert group is not None
        assert group.label == best


def test_a_stage_of_ones_own_is_found_by_module_and_object(own_module: str) -> None:
    name = f"{own_module}:STAGE"
    config = override(recipes.get("demo_pretrain"), {"pipeline.then": ["knn", name]})
    assert config.pipeline.metric == "toy/gap"
    assert [s.name for s in stages.of_trial(config.pipeline.then)] == ["pretrain", "measure", "knn", "toy"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("prob", f"expected a stage of {', '.join(stages.THEN)} or one of your own"),
        ("prob", "as module:object, got 'prob'"),
        ("prob", "did you mean 'probe'"),
        ("pretrain", "expected a stage of probe, knn, finetune"),
        ("no.such.module:STAGE", "expected a module that can be imported, got 'no.such.module'"),
        ("OWN:OTHER", "expected an object of module own"),
        ("OWN:NUMBER", "to be a Stage, got int"),
        ("OWN:TAKEN", "to have a name of its own, got 'probe'"),
    ],
)
def test_a_bad_name_is_one_clear_line(name: str, message: str, own_module: str) -> None:
    with pytest.raises(InputError) as error:
        config = override(recipes.get("demo_pretrain"), {"pipeline.then": [name.replace("OWN", own_module)]})
        stages.of_trial(config.pipeline.then)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_who_reads_needs_no_module(tmp_path: Path) -> None:
    """A configuration that names a stage which is not here is read; the sweep's tags say what ranks."""
    config = override(recipes.get("demo_pretrain"), {"pipeline.then": ["not.here:STAGE"]})
    config.save(tmp_path / "config.yaml")
    assert ExperimentConfig.load(tmp_path / "config.yaml") == config
    metric = Metric(name="toy/gap", title="toy gap", higher_is_better=False, digits=1)
    assert stages.ranked_by(stages.ranking_tags(metric)) == metric
    assert stages.ranked_by({"vmae.metric": "knn/top1"}).title == "kNN accuracy"
    assert stages.columns(["not.here:STAGE"], metric)[-2] == metric


_NAMED_SO_ELSEWHERE = ("cli/main.py", "cli/zoo.py")
"""Names of verbs, and tasks of published weights."""


def _decides_by_name(tree: ast.Module) -> Iterator[int]:
    """Lines that know one stage or metric by its name, where the stages are to be asked."""
    exported = {
        id(inner)
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value == "finetune" and id(node) not in exported:
            yield node.lineno
        asks = isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "endswith"
        if asks and any("top1" in ast.unparse(a) for a in node.args):
            yield node.lineno
        if isinstance(node, ast.Compare):
            left = getattr(node.left, "attr", getattr(node.left, "id", ""))
            if left in ("stage", "job") and any(
                isinstance(getattr(c, "value", None), str) for c in node.comparators
            ):
                yield node.lineno


def test_only_the_stages_know_stages_by_name() -> None:
    found = []
    for path in (p for layer in ("experiments", "cli", "dashboard") for p in (ROOT / layer).rglob("*.py")):
        place = path.relative_to(ROOT).as_posix()
        if not place.startswith("experiments/stages/") and place not in _NAMED_SO_ELSEWHERE:
            found += [f"{place}:{line}" for line in _decides_by_name(ast.parse(path.read_text()))]
    assert not found
    offences = (
        'a = "finetune"\nb = m.endswith(("/loss", "top1"))\nif stage == "x" or config.job == "y": ...\n'
    )
    assert sorted(_decides_by_name(ast.parse(offences))) == [1, 2, 3, 3]


def test_an_unknown_job_is_refused() -> None:
    with pytest.raises(InputError, match=f"job: expected one of {', '.join(stages.JOBS)}, got 'finetun'"):
        ExperimentConfig(job="finetun")
