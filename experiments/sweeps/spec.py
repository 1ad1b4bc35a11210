"""What one run of a sweep is: its plan, with every trial."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from vmae.core.config import from_dict, override, to_dict
from vmae.core.errors import InputError, VmaeError, nearest
from vmae.core.files import read_json, write_json
from vmae.core.train.pretrain import check_objective
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.layout import SweepDir
from vmae.experiments.sweeps.space import Param, draw_samples
from vmae.experiments.sweeps.stopping import StoppingConfig, check_stopping

BASELINE = "random weights"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One trial of a plan. `value` is None for the baseline: the same network, not pre-trained."""

    id: str
    overrides: dict[str, Any]
    seed: int
    baseline: bool = False

    def config(self, base: ExperimentConfig) -> ExperimentConfig:
        """The trial's whole configuration."""
        return override(base, {**self.overrides, "train.seed": self.seed, "name": self.id})


STAGES = ("pretrain", "measure", "probe", "knn", "finetune")
"""The stages of a trial in the order in which they can come (measure: the held-out reconstruction error)."""


@dataclass(frozen=True, kw_only=True)
class StageResources:
    """What one stage of a trial runs on: `workers` processes, each with so many CPUs and GPUs.

    Training stages with several workers share every batch (Ray Train); the others take one.
    """

    stage: str
    workers: int = 1
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise InputError(
                f"--stage-resources: expected a stage of {', '.join(STAGES)}, got '{self.stage}'"
                f"{nearest(self.stage, STAGES)}"
            )
        if self.workers < 1 or self.cpus <= 0 or self.gpus < 0:
            raise InputError(
                f"--stage-resources {self.stage}: expected workers >= 1, cpus > 0 and gpus >= 0, got "
                f"{self.workers}, {self.cpus:g} and {self.gpus:g}"
            )
        if self.workers > 1 and self.stage not in ("pretrain", "finetune"):
            raise InputError(
                f"--stage-resources {self.stage}: expected 1 worker, got {self.workers}: several "
                "share pretrain and finetune alone"
            )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One run of a sweep: everything needed to run it, resume it and read its results.

    With `search` "optuna" the trials grow while it runs, to `samples` settings for every seed.
    """

    name: str
    sweep: str
    title: str
    params: tuple[str, ...]
    metric: str
    base: ExperimentConfig
    trials: tuple[Trial, ...]
    cpus_per_trial: float = 1.0
    """Of the trial's process, or of each of its workers."""
    gpus_per_trial: float = 0.0
    workers_per_trial: int = 1
    """Ray workers that share each training stage of a trial."""
    stage_resources: tuple[StageResources, ...] = ()
    """Stages that run on something else than the above."""
    max_concurrent: int | None = None
    search: Literal["grid", "random", "optuna"] = "grid"
    space: tuple[Param, ...] = ()
    samples: int = 0
    """Settings drawn by `random` and `optuna`."""
    seeds: int = 1
    stopping: StoppingConfig | None = None
    budget_s: float | None = None
    """Seconds after which this attempt ends, finished or not."""
    address: str | None = None
    """Ray cluster to run on; None: a Ray of this machine's own."""

    @property
    def expected_trials(self) -> int:
        """How many trials there will be."""
        if self.search != "optuna":
            return len(self.trials)
        return sum(t.baseline for t in self.trials) + self.samples * self.seeds

    @property
    def staged(self) -> bool:
        """Whether each stage asks the cluster for its own resources (else the trial's process has them)."""
        return self.workers_per_trial > 1 or bool(self.stage_resources)

    def resources_of(self, stage: str) -> StageResources:
        """What a stage runs on."""
        for own in self.stage_resources:
            if own.stage == stage:
                return own
        workers = self.workers_per_trial if stage in ("pretrain", "finetune") else 1
        return StageResources(
            stage=stage, workers=workers, cpus=self.cpus_per_trial, gpus=self.gpus_per_trial
        )

    def stages(self) -> tuple[str, ...]:
        """The stages that a trial of this plan has."""
        return ("pretrain", "measure", *self.base.pipeline.then)

    def settings(self) -> list[list[Trial]]:
        """The trials by setting, in the order they were made: those of one list differ in their seed."""
        gathered: dict[str, list[Trial]] = {}
        for trial in self.trials:
            if not trial.baseline:
                gathered.setdefault(json.dumps(trial.overrides, sort_keys=True), []).append(trial)
        return list(gathered.values())

    def with_setting(self, overrides: dict[str, Any]) -> Plan:
        """The plan with one more setting, for every seed."""
        return replace(self, trials=(*self.trials, *_trials(overrides, _seeds(self.base, self.seeds))))

    @property
    def key(self) -> str:
        """Identity of the sweep's parent run in the store."""
        return f"sweep:{self.name}"

    def trial_key(self, trial: Trial) -> str:
        """Identity of a trial's run in the store."""
        return f"sweep:{self.name}/{trial.id}"

    def save(self, sweep: SweepDir) -> None:
        """Write the plan in its sweep's folder."""
        write_json(sweep.plan, to_dict(self), durable=True)

    @classmethod
    def load(cls, sweep: SweepDir) -> Plan:
        """Read a sweep's plan; VmaeError where there is none."""
        found = read_json(sweep.plan)
        if found is None:
            raise VmaeError(f"expected a sweep's plan at {sweep.plan}, found none")
        plan: Plan = from_dict(cls, found)
        return plan


def make_plan(
    *,
    name: str,
    sweep: str,
    title: str,
    params: Sequence[Param],
    metric: str,
    base: ExperimentConfig,
    seeds: int = 1,
    baseline: bool = True,
    search: Literal["grid", "random", "optuna"] | None = None,
    samples: int | None = None,
    stopping: StoppingConfig | None = None,
    budget_s: float | None = None,
    cpus_per_trial: float = 1.0,
    gpus_per_trial: float = 0.0,
    workers_per_trial: int = 1,
    stage_resources: Sequence[StageResources] = (),
    max_concurrent: int | None = None,
) -> Plan:
    """The trials of a sweep, after one baseline for each seed.

    `grid`: every combination of the parameters' values. `random`: each of them with each of `samples` draws
    of the drawn parameters (seeded by `train.seed`, so the same command draws the same). `optuna`: only the
    baseline now; settings are asked for as results come. Without `search` it is `random` where a parameter
    is drawn, else `grid`.

    Every trial's configuration is built here once, so that a bad value is refused before anything runs.

    Raises:
        InputError: no parameter, fewer than one seed, samples where they mean nothing (or none where they are
            needed), early stopping that would compare different tasks, or a trial whose configuration is
            refused (a ratio that leaves no visible or no masked token, for example).
    """
    if seeds < 1:
        raise InputError(f"--seeds: expected 1 or more, got {seeds}")
    if not params:
        raise InputError("expected at least one field to vary (--param PATH=V1,V2,...), got none")
    drawn = [p for p in params if p.drawn]
    search = search or ("random" if drawn else "grid")
    if search == "grid" and drawn:
        raise InputError(f"--search grid: expected values, got a distribution for {drawn[0].path}")
    if search == "random" and not drawn:
        raise InputError("--search random: expected a distribution for some field, got values alone")
    if search == "grid" and samples is not None:
        raise InputError("--samples: expected a distribution (or --search optuna), got values alone")
    if samples is not None and samples < 1:
        raise InputError(f"--samples: expected 1 or more, got {samples}")
    check_stopping(stopping, [p.path for p in params])
    wanted = 0 if search == "grid" else (samples or 16)
    trials: list[Trial] = []
    every_seed = _seeds(base, seeds)
    if baseline:
        trials += [Trial(id=f"random-weights_s{s}", overrides={}, seed=s, baseline=True) for s in every_seed]
    if search != "optuna":
        fixed = [p for p in params if not p.drawn]
        grid = [
            dict(zip([p.path for p in fixed], values, strict=True))
            for values in itertools.product(*(p.choices for p in fixed))
        ]
        draws = draw_samples(params, wanted, base.train.seed) if drawn else [{}]
        settings = [{p.path: (g | d)[p.path] for p in params} for d in draws for g in grid]
        by_seed = [_trials(o, every_seed) for o in settings]
        # Seed by seed: a sweep that is cut short has whole comparisons of its first seeds.
        trials = [t for i, _ in enumerate(every_seed) for t in [*trials[i : i + 1], *[b[i] for b in by_seed]]]
    plan = Plan(
        name=name,
        sweep=sweep,
        title=title,
        params=tuple(p.path for p in params),
        metric=metric,
        base=base,
        trials=tuple(trials),
        cpus_per_trial=cpus_per_trial,
        gpus_per_trial=gpus_per_trial,
        workers_per_trial=workers_per_trial,
        stage_resources=tuple(stage_resources),
        max_concurrent=max_concurrent,
        search=search,
        space=tuple(params),
        samples=wanted,
        seeds=seeds,
        stopping=stopping,
        budget_s=budget_s,
    )
    for trial in plan.trials:
        check_trial(trial, base)
    check_resources(plan)
    return plan


def check_resources(plan: Plan) -> None:
    """Raise InputError where the plan's resources make no sense, or some batch cannot be shared so."""
    if plan.cpus_per_trial <= 0 or plan.gpus_per_trial < 0:
        raise InputError(
            "--cpus, --gpus: expected more than 0 and 0 or more, got "
            f"{plan.cpus_per_trial:g} and {plan.gpus_per_trial:g}"
        )
    if plan.workers_per_trial < 1:
        raise InputError(f"--workers-per-trial: expected 1 or more, got {plan.workers_per_trial}")
    if plan.max_concurrent is not None and plan.max_concurrent < 1:
        raise InputError(f"--max-concurrent: expected 1 or more, got {plan.max_concurrent}")
    for own in plan.stage_resources:
        if own.stage not in plan.stages():
            raise InputError(
                f"--stage-resources: expected a stage of this sweep ({', '.join(plan.stages())}), got "
                f"'{own.stage}'"
            )
    for trial in plan.trials:
        config = trial.config(plan.base)
        stages = {"pretrain": config.train}
        if "finetune" in config.pipeline.then:
            stages["finetune"] = config.pipeline.finetune_train
        for stage, train in stages.items():
            workers = plan.resources_of(stage).workers
            if train.batch_size % (workers * train.accumulate):
                raise InputError(
                    f"expected the batch of {stage} to be a multiple of workers x accumulate = {workers} x "
                    f"{train.accumulate}, got {train.batch_size} in trial {trial.id}"
                )


def parse_stage_resources(texts: Sequence[str], cpus: float, gpus: float) -> tuple[StageResources, ...]:
    """Read `STAGE:workers=2,cpus=4,gpus=0.5`; what a text leaves out is one worker with `cpus` and `gpus`.

    Raises:
        InputError: another form, an unknown stage or key, or a stage named twice.
    """
    found: dict[str, StageResources] = {}
    for text in texts:
        stage, _, rest = text.partition(":")
        stage = stage.strip()
        if stage in found:
            raise InputError(f"--stage-resources: expected each stage once, got '{stage}' twice")
        given: dict[str, float] = {"workers": 1, "cpus": cpus, "gpus": gpus}
        for part in rest.split(","):
            key, sign, value = (t.strip() for t in part.partition("="))
            try:
                if not sign or key not in given:
                    raise ValueError
                given[key] = int(value) if key == "workers" else float(value)
            except ValueError:
                raise InputError(
                    f"--stage-resources: expected STAGE:workers=N,cpus=X,gpus=Y (any of them), got '{text}'"
                ) from None
        found[stage] = StageResources(
            stage=stage, workers=int(given["workers"]), cpus=given["cpus"], gpus=given["gpus"]
        )
    return tuple(found.values())


def check_trial(trial: Trial, base: ExperimentConfig) -> None:
    """Raise InputError where the trial's configuration is refused."""
    config = trial.config(base)
    check_objective(config.mask, config.model)


def _seeds(base: ExperimentConfig, seeds: int) -> list[int]:
    return list(range(base.train.seed, base.train.seed + seeds))


def _trials(overrides: dict[str, Any], seeds: Sequence[int]) -> list[Trial]:
    words = "_".join(f"{p.rpartition('.')[2]}{_slug(v)}" for p, v in overrides.items())
    if len(words) > 120:
        # A trial's name is a folder's: file systems allow 255 bytes.
        digest = hashlib.sha256(json.dumps(overrides, sort_keys=True).encode()).hexdigest()[:10]
        words = f"{words[:100]}-{digest}"
    return [Trial(id=f"{words}_s{seed}", overrides=overrides, seed=seed) for seed in seeds]


def _slug(value: Any) -> str:
    return "".join(c if c.isalnum() or c in ".-" else "-" for c in str(value))
