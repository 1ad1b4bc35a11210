"""The stages there are, one file each, and what is asked of all of them.

Whoever shows, ranks or runs something asks here; a new stage is its file and its place in `STAGES`. Nothing
here imports torch, and what only reads a plan or a run never imports a user's module.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict

from vmae.core.errors import InputError, nearest
from vmae.core.named import is_object_name, load_object
from vmae.experiments.stages import detection, finetune, heads, localise, measure, monitor, pretrain, probe
from vmae.experiments.stages.stage import SPEED, Metric, Stage, plain
from vmae.experiments.tracking import tags

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        pretrain.STAGE,
        measure.STAGE,
        probe.PROBE,
        probe.KNN,
        finetune.STAGE,
        detection.STAGE,
        heads.REGRESSION,
        heads.MULTILABEL,
        monitor.STAGE,
        localise.STAGE,
    )
}
"""In the order in which they can come in a trial."""
FIRST: tuple[Stage, ...] = (pretrain.STAGE, measure.STAGE)
"""The stages of every trial."""
THEN: tuple[str, ...] = tuple(name for name, stage in STAGES.items() if stage not in FIRST)
"""What can follow them, as `pipeline.then` names it; or a stage of a user's own, `module:object`."""
JOBS: tuple[str, ...] = tuple(name for name, stage in STAGES.items() if stage.trains)
"""The stages that are runs of their own, with a configuration made for them (`job`)."""
TASKS: dict[str, Stage] = {stage.task: stage for stage in STAGES.values() if stage.task}
"""The stages that train a head on a list of its own kind, as `vmae finetune --task` calls them."""
METRICS: dict[str, Metric] = {m.name: m for stage in STAGES.values() for m in stage.metrics}
SCORES: tuple[str, ...] = tuple(m.name for m in METRICS.values() if m.score)
"""By what runs are ranked, the first that one has."""


BEST = "best/"
"""Before a metric's name: of a sweep's own run, its best trial's."""
RESULTS: tuple[str, ...] = (*SCORES, *(f"{BEST}{name}" for name in SCORES), measure.ERROR.name)
"""What a run is for, whatever its kind; see `result`."""


def result(metrics: Mapping[str, float]) -> tuple[str, Metric, float] | None:
    """The number that a run is for: what it is called in a table, its metric, its value; None without one."""
    own = next((name for name in RESULTS if name in metrics), None)
    if own is None:
        own = next((name for name in sorted(metrics) if name.startswith(BEST)), None)
    if own is None:
        return None
    found = metric(own.removeprefix(BEST))
    return ("best " if own.startswith(BEST) else "") + found.title, found, metrics[own]


def check_name(name: str) -> None:
    """Raise InputError for what cannot be a stage after pre-training; a user's module is not imported."""
    if name not in THEN and not is_object_name(name):
        raise InputError(
            f"pipeline.then: expected a stage of {', '.join(THEN)} or one of your own as module:object, got "
            f"'{name}'{nearest(name, THEN)}"
        )


def get(name: str) -> Stage:
    """The stage of this name, or the object `module:object` of a user's module.

    Raises:
        InputError: there is no such stage, module or object, or the object is no stage.
    """
    if name in STAGES:
        return STAGES[name]
    check_name(name)
    found = load_object(name, "pipeline.then")
    if not isinstance(found, Stage):
        raise InputError(f"pipeline.then: expected {name} to be a Stage, got {type(found).__name__}")
    if found.name in STAGES:
        raise InputError(
            f"pipeline.then: expected {name} to have a name of its own, got '{found.name}', which vmae has"
        )
    return found


def of_trial(then: Iterable[str]) -> tuple[Stage, ...]:
    """The stages of a trial, in order; InputError as `get`."""
    return (*FIRST, *map(get, then))


def need_held_out(then: Iterable[str]) -> bool:
    """Whether one of the stages after pre-training measures on a held-out list; InputError as `get`."""
    return any(get(name).held_out for name in then)


def metric(name: str) -> Metric:
    """What is known of a metric; of one that no stage here has, its name."""
    return METRICS.get(name, plain(name))


def ranking_tags(ranked: Metric) -> dict[str, str]:
    """For a sweep's run, what `ranked_by` reads."""
    return {tags.METRIC: ranked.name, tags.METRIC_FACTS: json.dumps(asdict(ranked))}


def ranked_by(carried: Mapping[str, str]) -> Metric:
    """What ranks the trials of a sweep, from its run's tags."""
    facts = carried.get(tags.METRIC_FACTS)
    return Metric(**json.loads(facts)) if facts else metric(carried.get(tags.METRIC, probe.PROBE.metric.name))


def baseline_of(ranked: Metric) -> str:
    """What a trial without pre-training is to the stage that has a metric."""
    return _stage_of(ranked).baseline


def model_tag(ranked: Metric) -> str:
    """The tag of a trial that says where the model lies that a metric measures."""
    return _stage_of(ranked).model_tag or pretrain.STAGE.model_tag


def _stage_of(ranked: Metric) -> Stage:
    return STAGES.get(ranked.name.partition("/")[0], probe.PROBE)


def columns(then: Iterable[str] = THEN, ranked: Metric | None = None) -> list[Metric]:
    """What a table of trials with these stages has columns for: losses, scores, what ranks, speeds.

    A stage of a user's own shows what ranks the trials (`ranked`), which a plan knows without its module.
    """
    own = [STAGES[name] for name in then if name in STAGES]
    found = {m.name: m for stage in (*FIRST, *own) for m in stage.metrics if m.column}
    if ranked is not None:
        found[ranked.name] = ranked
    return sorted(found.values(), key=lambda m: (m.unit == SPEED, m is ranked, m.score))
