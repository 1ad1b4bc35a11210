"""What one run of a sweep is: its plan, with every trial."""

from __future__ import annotations

import hashlib
import itertools
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from vmae.core.config import from_dict, override, to_dict
from vmae.core.errors import InputError, VmaeError
from vmae.core.files import read_json, write_json
from vmae.experiments import stages
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.layout import FoldsDir, SweepDir
from vmae.experiments.stages import pretrain, probe
from vmae.experiments.stages.stage import Metric, Stage
from vmae.experiments.sweeps.equal import Equal, Measured, at_equal_cost
from vmae.experiments.sweeps.resources import Resources
from vmae.experiments.sweeps.space import Param, draw_samples
from vmae.experiments.sweeps.stopping import StoppingConfig, check_stopping

BASELINE = "random weights"
SCRATCH = "pipeline.scratch"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One trial of a plan. `value` is None for the baseline: the same network, not pre-trained."""

    id: str
    overrides: dict[str, Any]
    seed: int
    baseline: bool = False
    fold: int | None = None
    """The fold that is held out; None: the sweep has a held-out list."""
    more: dict[str, Any] = field(default_factory=dict)
    """What its values bring with them: other settings of an objective, epochs at equal cost."""

    def config(self, base: ExperimentConfig) -> ExperimentConfig:
        """The trial's whole configuration."""
        lists: dict[str, Any] = {}
        if self.fold is not None:
            home = FoldsDir(Path(base.data.train_csv).parent)
            lists = {"data.train_csv": str(home.train(self.fold)), "data.val_csv": str(home.test(self.fold))}
            lists["data.test_csv"] = ""
            lists["pipeline.finetune_train.best_by"] = None  # a fold chooses no epoch
        return override(
            base, {**self.more, **self.overrides, **lists, "train.seed": self.seed, "name": self.id}
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
    resources: Resources = field(default_factory=Resources)
    search: Literal["grid", "random", "optuna"] = "grid"
    space: tuple[Param, ...] = ()
    samples: int = 0
    """Settings drawn by `random` and `optuna`."""
    seeds: int = 1
    folds: tuple[int, ...] = ()
    """The folds that are held out in turn, of the list beside whose copy (`data.train_csv`) theirs lie."""
    stopping: StoppingConfig | None = None
    budget_s: float | None = None
    """Seconds after which this attempt ends, finished or not."""
    ranking: Metric | None = None
    """What there is to know about `metric`, for whoever cannot import the stage that has it."""
    equal: Equal = "epochs"
    """What trials have in common; of `flops` and `time` as much as the base costs: epochs follow."""
    id: str = ""
    """What tells this sweep from one that had its name before, drawn when it first starts."""

    @property
    def ranked_by(self) -> Metric:
        """The metric that ranks the trials."""
        return self.ranking or stages.metric(self.metric)

    def columns(self) -> list[Metric]:
        """What a table of the trials has columns for."""
        found = stages.columns(self.base.pipeline.then, self.ranked_by)
        if self.base.pipeline.probe_at:
            before = found.index(self.ranked_by)
            found.insert(before, replace(pretrain.ON_THE_WAY, column="after {pipeline.probe_at} epochs"))
        return found

    @property
    def expected_trials(self) -> int:
        """How many trials there will be."""
        if self.search != "optuna":
            return len(self.trials)
        return sum(t.baseline for t in self.trials) + self.samples * self.seeds * max(1, len(self.folds))

    def stages(self) -> tuple[Stage, ...]:
        """The stages that a trial of this plan has; InputError where a user's own cannot be imported."""
        return stages.of_trial(self.base.pipeline.then)

    def settings(self) -> list[list[Trial]]:
        """The trials by setting, in the order they were made: those of one list differ in their seed
        and fold."""
        gathered: dict[str, list[Trial]] = {}
        for trial in self.trials:
            if not trial.baseline:
                gathered.setdefault(json.dumps(trial.overrides, sort_keys=True), []).append(trial)
        return list(gathered.values())

    def with_setting(self, overrides: dict[str, Any]) -> Plan:
        """The plan with one more setting, for every seed and fold."""
        places = _places(self.base, self.seeds, self.folds)
        made = tuple(_trials(overrides, places))
        if self.equal != "epochs":
            made = _equalised(made, self.base, self.equal)
        return replace(self, trials=(*self.trials, *made))

    @property
    def key(self) -> str:
        """Identity of the sweep's parent run in the store."""
        return f"sweep:{self.name}:{self.id}" if self.id else f"sweep:{self.name}"

    def trial_key(self, trial: Trial) -> str:
        """Identity of a trial's run in the store."""
        return f"{self.key}/{trial.id}"

    def begun(self, sweep: SweepDir) -> Plan:
        """The plan with an identity of its own; that of a sweep which began before stays as it is."""
        return self if self.id or sweep.plan.exists() else replace(self, id=uuid.uuid4().hex[:12])

    def save(self, sweep: SweepDir) -> None:
        """Write the plan in its sweep's folder."""
        tree = to_dict(self)
        own = tree.pop("resources")
        write_json(sweep.plan, tree | {_IN_FILE.get(k, k): v for k, v in own.items()}, durable=True)

    @classmethod
    def load(cls, sweep: SweepDir) -> Plan:
        """Read a sweep's plan; VmaeError where there is none, or a damaged one."""
        try:
            tree = read_json(sweep.plan)
        except ValueError as e:
            raise VmaeError(f"expected a sweep's plan at {sweep.plan}, got a damaged file: {e}") from e
        if tree is None:
            raise VmaeError(f"expected a sweep's plan at {sweep.plan}, found none")
        if not isinstance(tree, dict):
            raise VmaeError(f"expected a sweep's plan at {sweep.plan}, got {type(tree).__name__}")
        own = {f.name: _IN_FILE.get(f.name, f.name) for f in fields(Resources)}
        tree["resources"] = {k: tree.pop(name) for k, name in own.items() if name in tree}
        try:
            plan: Plan = from_dict(cls, tree)
        except InputError as e:
            raise VmaeError(f"expected a sweep's plan at {sweep.plan}, got: {e}") from e
        return plan


_IN_FILE = {
    "cpus": "cpus_per_trial",
    "gpus": "gpus_per_trial",
    "workers": "workers_per_trial",
    "stages": "stage_resources",
}
"""What fields of `Resources` are called in `plan.json`, where they stand beside the others."""


def make_plan(
    *,
    name: str,
    sweep: str,
    title: str,
    params: Sequence[Param],
    metric: str,
    base: ExperimentConfig,
    seeds: int = 1,
    folds: Sequence[int] = (),
    baseline: bool = True,
    search: Literal["grid", "random", "optuna"] | None = None,
    samples: int | None = None,
    stopping: StoppingConfig | None = None,
    budget_s: float | None = None,
    resources: Resources | None = None,
    brings: Mapping[str, Mapping[str, Any]] | None = None,
    equal: Equal = "epochs",
) -> Plan:
    """The trials of a sweep, after one baseline for each seed (and fold, where there are any).

    `grid`: every combination of the parameters' values. `random`: each of them with each of `samples` draws
    of the drawn parameters (seeded by `train.seed`, so the same command draws the same). `optuna`: only the
    baseline now; settings are asked for as results come. Without `search` it is `random` where a parameter
    is drawn, else `grid`.

    `brings`: by the text of the first parameter's value, what else is set with it. `equal`: every trial gets
    the epochs that cost what the base's do, and is probed too where the shortest of them ends.

    Every trial's configuration is built here once, so that a bad value is refused before anything runs.

    Raises:
        InputError: no parameter, fewer than one seed, samples where they mean nothing (or none where they are
            needed), early stopping that would compare different tasks, or a trial whose configuration is
            refused (a ratio that leaves no visible or no masked token, for example).
    """
    drawn = [p for p in params if p.drawn]
    search = search or ("random" if drawn else "grid")
    _check_search(params, search, seeds, samples)
    check_stopping(stopping, [p.path for p in params])
    if folds and stopping is not None:
        raise InputError("--scheduler: expected none with --folds, whose trials are not of the same videos")
    own = stages.of_trial(base.pipeline.then)
    wanted = 0 if search == "grid" else (samples or 16)
    places = _places(base, seeds, folds)
    if any(p.path == SCRATCH for p in params):
        baseline = False  # its settings have their own
    trials = [replace(t, baseline=True) for t in _trials({}, places, "random-weights")] if baseline else []
    if search != "optuna":
        settings = [_trials(o, places) for o in _settings(params, wanted, base.train.seed)]
        # Seed by seed: a sweep that is cut short has whole comparisons of its first seeds.
        trials = [t for i, _ in enumerate(places) for t in [*trials[i : i + 1], *[b[i] for b in settings]]]
    if brings:
        trials = [_bringing(t, params[0].path, brings) for t in trials]
    if equal != "epochs":
        trials = list(_equalised(trials, base, equal))
        base = _probed_at_equal_epochs(trials, base)
    plan = Plan(
        name=name,
        sweep=sweep,
        title=title,
        params=tuple(p.path for p in params),
        metric=metric,
        base=base,
        trials=tuple(trials),
        resources=resources or Resources(),
        search=search,
        space=tuple(params),
        samples=wanted,
        seeds=seeds,
        folds=tuple(folds),
        stopping=stopping,
        budget_s=budget_s,
        equal=equal,
        ranking=next((m for stage in own for m in stage.metrics if m.name == metric), None),
    )
    for trial in plan.trials:
        check_trial(trial, base)
    check_resources(plan)
    return plan


def _equalised(trials: Sequence[Trial], base: ExperimentConfig, equal: Equal) -> tuple[Trial, ...]:
    """The trials with the epochs of equal cost; InputError where epochs vary already, or none are left."""
    known: dict[str, dict[str, Any]] = {}
    made, measured = [], Measured()
    for trial in trials:
        if "train.epochs" in trial.overrides:
            raise InputError(
                f"--equal {equal}: expected epochs that do not vary, got a sweep of train.epochs"
            )
        setting = json.dumps(trial.overrides, sort_keys=True)
        if not trial.baseline and setting not in known:
            known[setting] = at_equal_cost(replace(trial, fold=None).config(base), base, equal, measured)
        made.append(trial if trial.baseline else replace(trial, more={**trial.more, **known[setting]}))
    return tuple(made)


def _probed_at_equal_epochs(trials: Sequence[Trial], base: ExperimentConfig) -> ExperimentConfig:
    """The base with a probe after as many epochs as all trials have, where some have more."""
    epochs = {t.config(base).train.epochs for t in trials if not t.baseline}
    if len(epochs) < 2 or probe.PROBE.name not in base.pipeline.then:
        return base
    return override(base, {"pipeline.probe_at": min(epochs)})


def _bringing(trial: Trial, path: str, brings: Mapping[str, Mapping[str, Any]]) -> Trial:
    """The trial with what its value of `path` brings; what is varied itself is not brought."""
    more = brings.get(str(trial.overrides.get(path)), {})
    return replace(trial, more={k: v for k, v in more.items() if k not in trial.overrides})


def _check_search(params: Sequence[Param], search: str, seeds: int, samples: int | None) -> None:
    """Raise InputError where what is asked for does not go together."""
    drawn = [p for p in params if p.drawn]
    if seeds < 1:
        raise InputError(f"--seeds: expected 1 or more, got {seeds}")
    if not params:
        raise InputError("expected at least one field to vary (--param PATH=V1,V2,...), got none")
    if search == "grid" and drawn:
        raise InputError(f"--search grid: expected values, got a distribution for {drawn[0].path}")
    if search == "random" and not drawn:
        raise InputError("--search random: expected a distribution for some field, got values alone")
    if search == "grid" and samples is not None:
        raise InputError("--samples: expected a distribution (or --search optuna), got values alone")
    if samples is not None and samples < 1:
        raise InputError(f"--samples: expected 1 or more, got {samples}")


def _settings(params: Sequence[Param], samples: int, seed: int) -> list[dict[str, Any]]:
    """Every combination of the values, each with every draw of the drawn parameters."""
    fixed = [p for p in params if not p.drawn]
    grid = [
        dict(zip([p.path for p in fixed], values, strict=True))
        for values in itertools.product(*(p.choices for p in fixed))
    ]
    draws = draw_samples(params, samples, seed) if len(fixed) < len(params) else [{}]
    return [{p.path: (g | d)[p.path] for p in params} for d in draws for g in grid]


def check_resources(plan: Plan) -> None:
    """Raise InputError where the resources do not fit the stages, or some batch cannot be shared so."""
    own = plan.stages()
    plan.resources.check(own)
    for trial in plan.trials:
        plan.resources.check_batches(own, trial.config(plan.base))


def check_trial(trial: Trial, base: ExperimentConfig) -> None:
    """Raise InputError where the trial's configuration is refused."""
    config = trial.config(base)
    for stage in stages.of_trial(config.pipeline.then):
        stage.ready(stage.settings(config))


def _places(base: ExperimentConfig, seeds: int, folds: Sequence[int]) -> list[tuple[int, int | None]]:
    """Every seed with every fold."""
    return [(base.train.seed + s, fold) for s in range(seeds) for fold in (folds or (None,))]


def _trials(
    overrides: dict[str, Any], places: Sequence[tuple[int, int | None]], words: str = ""
) -> list[Trial]:
    words = words or "_".join(f"{p.rpartition('.')[2]}{_slug(v)}" for p, v in overrides.items())
    if len(words) > 120:
        # A trial's name is a folder's: file systems allow 255 bytes.
        digest = hashlib.sha256(json.dumps(overrides, sort_keys=True).encode()).hexdigest()[:10]
        words = f"{words[:100]}-{digest}"
    return [
        Trial(
            id=f"{words}_s{seed}" + (f"_fold{fold}" if fold is not None else ""),
            overrides=overrides,
            seed=seed,
            fold=fold,
        )
        for seed, fold in places
    ]


def _slug(value: Any) -> str:
    return "".join(c if c.isalnum() or c in ".-" else "-" for c in str(value))
