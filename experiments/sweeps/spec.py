"""What a sweep is: a definition (what varies, what ranks) and a plan (the trials of one run of it)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vmae.core.config import from_dict, override, to_dict
from vmae.core.errors import InputError, VmaeError
from vmae.core.masking import mask_counts
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.files import write_json

BASELINE = "random weights"


@dataclass(frozen=True, kw_only=True)
class Definition:
    """A named sweep: which field varies over which values, and the metric that ranks the trials.

    `published` is the paper's table as {value: {column: number}}, where there is one.
    """

    name: str
    title: str
    path: str
    values: tuple[Any, ...]
    doc: str = ""
    metric: str = "probe/top1"
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The swept field's last word, as a column title: `mask.ratio` -> `ratio`."""
        return self.path.rpartition(".")[2]


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


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One run of a sweep: everything needed to run it, resume it and read its results."""

    name: str
    sweep: str
    title: str
    params: tuple[str, ...]
    metric: str
    base: ExperimentConfig
    trials: tuple[Trial, ...]
    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.0
    max_concurrent: int | None = None

    @property
    def key(self) -> str:
        """Identity of the sweep's parent run in the store."""
        return f"sweep:{self.name}"

    def trial_key(self, trial: Trial) -> str:
        """Identity of a trial's run in the store."""
        return f"sweep:{self.name}/{trial.id}"

    def save(self, folder: Path) -> None:
        """Write `plan.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "plan.json", to_dict(self))

    @classmethod
    def load(cls, folder: Path) -> Plan:
        """Read `plan.json`; VmaeError where there is none."""
        path = folder / "plan.json"
        if not path.exists():
            raise VmaeError(f"expected a sweep's plan at {path}, found none")
        plan: Plan = from_dict(cls, json.loads(path.read_text()))
        return plan


def make_plan(
    *,
    name: str,
    sweep: str,
    title: str,
    space: Mapping[str, Sequence[Any]],
    metric: str,
    base: ExperimentConfig,
    seeds: int = 1,
    baseline: bool = True,
    cpus_per_trial: float = 1.0,
    gpus_per_trial: float = 0.0,
    max_concurrent: int | None = None,
) -> Plan:
    """Every combination of the values in `space`, for every seed, after one baseline for each seed.

    Every trial's configuration is built here once, so that a bad value is refused before anything runs.

    Raises:
        InputError: no values, fewer than one seed, a value twice, or a trial whose configuration is refused
            (a ratio that leaves no visible or no masked token, for example).
    """
    if seeds < 1:
        raise InputError(f"--seeds: expected 1 or more, got {seeds}")
    for path, values in space.items():
        if not values:
            raise InputError(f"{path}: expected at least one value, got none")
        if len({str(v) for v in values}) != len(values):
            raise InputError(f"{path}: expected different values, got {', '.join(str(v) for v in values)}")
    trials: list[Trial] = []
    first = base.train.seed
    for seed in range(first, first + seeds):
        if baseline:
            trials.append(Trial(id=f"random-weights_s{seed}", overrides={}, seed=seed, baseline=True))
        for combination in itertools.product(*space.values()):
            overrides = dict(zip(space, combination, strict=True))
            words = [f"{p.rpartition('.')[2]}{_slug(v)}" for p, v in overrides.items()]
            trials.append(Trial(id="_".join([*words, f"s{seed}"]), overrides=overrides, seed=seed))
    for trial in trials:
        config = trial.config(base)
        mask_counts(config.mask.type, config.mask.ratio, config.model.grid)
    return Plan(
        name=name,
        sweep=sweep,
        title=title,
        params=tuple(space),
        metric=metric,
        base=base,
        trials=tuple(trials),
        cpus_per_trial=cpus_per_trial,
        gpus_per_trial=gpus_per_trial,
        max_concurrent=max_concurrent,
    )


def _slug(value: Any) -> str:
    return "".join(c if c.isalnum() or c in ".-" else "-" for c in str(value))
