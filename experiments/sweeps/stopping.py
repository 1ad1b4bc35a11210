"""Early stopping and population-based training, decided from the trials' own files.

After each epoch that counts, a trial compares its number with what the other trials' `history.json` hold
and ends itself where the rule says so. Nothing lives in the driver's memory: a sweep that was killed and
resumed goes on with the same rungs, on any machine that sees the sweep's folder. (Ray Tune's own schedulers
keep their rungs in the driver and would compare the second half of a resumed sweep with nothing.)

Only numbers of one task are ever compared: `check_stopping` refuses to stop by the training loss where a
swept field changes what that loss measures.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vmae.core.errors import InputError
from vmae.experiments import stages
from vmae.experiments.stages import pretrain
from vmae.experiments.sweeps.space import task_fields

LOSS, KNN = pretrain.LOSS.name, pretrain.KNN.name
History = Sequence[tuple[int, float]]
"""(epoch, value) in the order of epochs; higher is better (losses are negated by the caller)."""


@dataclass(frozen=True, kw_only=True)
class StoppingConfig:
    """Which trials are ended before their last epoch."""

    rule: Literal["asha", "median", "pbt"] = "asha"
    metric: str = LOSS
    """`pretrain/loss` (lowest is best), or `pretrain/knn_top1`: leave-one-out accuracy of nearest neighbours
    inside the training list, measured every `pipeline.measure_every` epochs (highest is best)."""
    grace: int = 1
    """Epochs before a trial can be stopped: asha's first rung, and median's and pbt's first look."""
    eta: int = 3
    """asha: the best 1/eta go on past each rung; rungs are grace * eta^k."""
    interval: int = 2
    """pbt: epochs between looks at the population."""

    def __post_init__(self) -> None:
        known = [m.name for m in pretrain.STOP_ON.values()]
        if self.metric not in known:
            raise InputError(f"stopping.metric: expected {' or '.join(known)}, got '{self.metric}'")
        for name, least in (("grace", 1), ("eta", 2), ("interval", 1)):
            if getattr(self, name) < least:
                raise InputError(f"stopping.{name}: expected {least} or more, got {getattr(self, name)}")

    def score(self, value: float) -> float:
        """The metric with "higher is better"; NaN is the worst."""
        return stages.metric(self.metric).score_of(value)


def check_stopping(stopping: StoppingConfig | None, params: Sequence[str]) -> None:
    """Refuse comparisons that mean nothing.

    Raises:
        InputError: stopping by the loss where a swept field changes the task; stopping at all where the
            length of the schedule is swept; pbt over anything but `optim.*`.
    """
    if stopping is None:
        return
    if "train.epochs" in params:
        raise InputError(
            f"--scheduler {stopping.rule}: expected trials of one length, got a sweep over train.epochs: at "
            "the same epoch they stand at different places of their schedules"
        )
    other_tasks = task_fields(params)
    if other_tasks and not stages.metric(stopping.metric).comparable:
        raise InputError(
            f"--scheduler {stopping.rule}: expected a metric that compares across tasks, got the training "
            f"loss: {', '.join(other_tasks)} changes what it measures; use --stop-on knn (nearest neighbours "
            "on features, measured during training)"
        )
    if stopping.rule == "pbt":
        others = [p for p in params if not p.startswith("optim.")]
        if others or not params:
            raise InputError(
                f"--scheduler pbt: expected optim.* fields alone, got {', '.join(others) or 'none'}: "
                "weights move between trials, so only what can change in the middle of a run may vary"
            )


def is_rung(stopping: StoppingConfig, epoch: int) -> bool:
    """Whether an epoch is one of asha's rungs: grace, grace * eta, grace * eta^2, ..."""
    rung = stopping.grace
    while rung < epoch:
        rung *= stopping.eta
    return rung == epoch


def verdict(stopping: StoppingConfig, own: History, others: Mapping[str, History]) -> str | None:
    """Why a trial should stop now, or None.

    `own` ends with the epoch just measured; `others` are the trials of the same seed. Values are scores
    (higher is better).

    asha: at a rung the trial goes on if it is among the best 1/eta of those that have a value at that rung
    (itself included, rounded up, so the first to arrive goes on). Li et al., arXiv 1810.05934, in the
    stopping form of Ray Tune.
    median: past the grace epochs it goes on if its best value reaches the median of the others' running means
    up to the same epoch; at least three others are needed. Golovin et al., Google Vizier, section 3.2.
    """
    if not own:
        return None
    epoch, value = own[-1]
    if stopping.rule == "asha" and is_rung(stopping, epoch):
        rivals = [v for h in others.values() for e, v in h if e == epoch]
        kept = -(-(len(rivals) + 1) // stopping.eta)
        better = sum(v > value for v in rivals)
        if better >= kept:
            return f"asha: {better} of {len(rivals)} others were better at epoch {epoch}, {kept} go on"
    if stopping.rule == "median" and epoch >= stopping.grace:
        means = [
            statistics.fmean(past)
            for h in others.values()
            if (past := [v for e, v in h if e <= epoch]) and h[-1][0] >= epoch
        ]
        if len(means) >= 3 and max(v for _, v in own) < statistics.median(means):
            return f"median: below the median of {len(means)} others at epoch {epoch}"
    return None


def donor(stopping: StoppingConfig, trial_id: str, own: History, others: Mapping[str, History]) -> str | None:
    """pbt: the trial whose weights this one should take now, or None to go on with its own.

    A trial in the lowest quarter of those measured takes from one in the highest, chosen by a draw seeded by
    the trial and epoch. Jaderberg et al., arXiv 1711.09846, truncation selection.
    """
    if stopping.rule != "pbt" or not own:
        return None
    epoch = own[-1][0]
    if epoch < stopping.grace or epoch % stopping.interval:
        return None
    scores = {name: past[-1] for name, h in others.items() if (past := [v for e, v in h if e <= epoch])}
    scores[trial_id] = own[-1][1]
    ranked = sorted(scores, key=lambda name: (scores[name], name))
    quarter = len(ranked) // 4
    if quarter == 0 or trial_id not in ranked[:quarter]:
        return None
    best = [name for name in ranked[-quarter:] if scores[name] > scores[trial_id]]
    return random.Random(f"{trial_id}-{epoch}").choice(best) if best else None


def perturbed(values: Mapping[str, Any], trial_id: str, epoch: int) -> dict[str, Any]:
    """pbt's exploration: each number times 0.8 or 1.2, by a draw seeded by the trial and epoch."""
    rng = random.Random(f"{trial_id}-{epoch}-perturb")
    return {
        k: float(f"{v * rng.choice((0.8, 1.2)):.4g}") if isinstance(v, float) else v
        for k, v in sorted(values.items())
    }
