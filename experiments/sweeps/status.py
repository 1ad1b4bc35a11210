"""Where a sweep is and what it found, read from its folder: for the live table, `status` and the end."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

from vmae.core.files import read_record
from vmae.experiments import stages
from vmae.experiments.layout import SweepDir
from vmae.experiments.locks import is_held
from vmae.experiments.stages.stage import Metric
from vmae.experiments.sweeps.spec import BASELINE, Plan, Trial

PENDING, RUNNING, DONE, FAILED = "pending", "running", "done", "failed"
STOPPED = "stopped"
"""What stands in the place of a stage in a trial that was ended early."""


_ALIVE_S = 30.0
RESULT = ("metrics", "seconds")
"""What a trial's result is not whole without."""
_PROGRESS = ("error", "stage", "fraction", "metrics", "seconds")


@dataclass(frozen=True, kw_only=True)
class TrialState:
    """One trial as its files show it. `fraction` is the share done; `seconds` over all attempts."""

    trial: Trial
    status: str
    stage: str = ""
    fraction: float = 0.0
    epoch: float = 0.0
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    error: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether it was ended before its last epoch, by comparison with others."""
        return self.stage == STOPPED


@dataclass(frozen=True, kw_only=True)
class Group:
    """Trials that differ in their seed and fold alone: each metric's mean, and its spread (sample standard
    deviation) over seeds, of which each counts with the mean of its folds."""

    label: str
    overrides: dict[str, Any]
    baseline: bool
    seeds: int
    mean: dict[str, float]
    spread: dict[str, float]
    minutes: float


def trial_states(plan: Plan, sweep: SweepDir) -> list[TrialState]:
    """Every trial of the plan, in its order."""
    states = []
    for trial in plan.trials:
        home = sweep.trial(trial.id)
        result = read_record(home.result, *RESULT)
        progress = read_record(home.progress, *_PROGRESS)
        if result is not None:
            states.append(
                TrialState(
                    trial=trial,
                    status=DONE,
                    stage=STOPPED if result.get("stopped") else DONE,
                    fraction=1.0,
                    seconds=result["seconds"],
                    metrics=result["metrics"],
                )
            )
        elif progress is not None:
            states.append(
                TrialState(
                    trial=trial,
                    status=FAILED if progress["error"] else RUNNING,
                    stage=progress["stage"],
                    fraction=progress["fraction"],
                    epoch=progress.get("epoch", 0.0),
                    seconds=progress["seconds"],
                    metrics=progress["metrics"],
                    error=progress["error"],
                )
            )
        else:
            states.append(TrialState(trial=trial, status=PENDING))
    return states


def time_left_s(states: list[TrialState], slots: int) -> float | None:
    """Seconds until the last trial ends, if trials go on as they did and `slots` run at a time.

    None until some trial has come far enough to say. The baseline, which trains nothing, does not count.
    """
    known = [
        s.seconds / s.fraction
        for s in states
        if not s.trial.baseline and s.status in (RUNNING, DONE) and s.fraction > 0.02
    ]
    if not known:
        return None
    whole = statistics.median(known)
    ends = sorted(whole * (1 - s.fraction) for s in states if s.status == RUNNING and not s.trial.baseline)
    ends = (ends + [0.0] * slots)[: max(slots, len(ends))]
    for _ in range(sum(s.status == PENDING and not s.trial.baseline for s in states)):
        ends.sort()
        ends[0] += whole
    return max(ends, default=0.0)


def label_of(trial: Trial) -> str:
    """The trial's values as text: `0.9`, or `mask.ratio=0.9, optim.base_lr=0.001` where several vary."""
    if trial.baseline:
        return BASELINE
    if len(trial.overrides) == 1:
        return str(next(iter(trial.overrides.values())))
    return ", ".join(f"{k}={v}" for k, v in trial.overrides.items())


def groups(states: list[TrialState]) -> list[Group]:
    """Finished trials gathered over seeds and folds, in the plan's order, baseline last."""
    gathered: dict[str, list[TrialState]] = {}
    for state in states:
        if state.status == DONE:
            gathered.setdefault(label_of(state.trial), []).append(state)
    result = []
    for label, members in gathered.items():
        keys = set.intersection(*(set(m.metrics) for m in members))
        by_seed: dict[int, list[TrialState]] = {}
        for member in members:
            by_seed.setdefault(member.trial.seed, []).append(member)
        values = {
            k: [statistics.fmean(m.metrics[k] for m in same) for same in by_seed.values()]
            for k in sorted(keys)
        }
        result.append(
            Group(
                label=label,
                overrides=members[0].trial.overrides,
                baseline=members[0].trial.baseline,
                seeds=len(by_seed),
                mean={k: statistics.fmean(v) for k, v in values.items()},
                spread={k: statistics.stdev(v) if len(v) > 1 else math.nan for k, v in values.items()},
                minutes=statistics.fmean(m.seconds for m in members) / 60,
            )
        )
    return sorted(result, key=lambda g: g.baseline)


def winner(found: list[Group], metric: Metric | str) -> Group | None:
    """The group with the best mean of the ranking metric; the baseline does not compete."""
    by = stages.metric(metric) if isinstance(metric, str) else metric
    ranked = [g for g in found if not g.baseline and by.name in g.mean]
    return max(ranked, key=lambda g: by.score_of(g.mean[by.name]), default=None)


def is_running(sweep: SweepDir) -> bool:
    """Whether the sweep's driver holds its lock, or where there is none to ask (the driver is on another
    machine, its files on an object store) wrote a sign of life within half a minute of now and has not ended.

    A trial's own files are no such sign: a stage may take many minutes between two of them, or wait for room
    on the cluster.
    """
    if sweep.working.is_file():
        return is_held(sweep.working)
    alive = read_record(sweep.alive, "ended", "time")
    # A time to come is no sign of life: a clock was wrong.
    return alive is not None and not alive["ended"] and abs(time.time() - alive["time"]) < _ALIVE_S
