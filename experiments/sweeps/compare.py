"""Paired comparison over seeds: two settings differ by what they differ by at the same seed (and fold).

Two trials of one seed share their initial weights, order of clips and masks' generator, so their difference
varies less than either accuracy does; that is what a table with few seeds can say something about.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from vmae.experiments.stages.stage import Metric
from vmae.experiments.sweeps.status import DONE, Group, TrialState, label_of, winner


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One setting minus another at the same seeds; `error`: standard error of the mean (NaN for one)."""

    mean: float
    error: float
    seeds: int
    higher: int
    """At how many seeds the first was higher."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One row's differences. `rival` is the best setting, or for the best itself the second best."""

    label: str
    rival: str | None
    to_rival: Difference | None
    to_baseline: Difference | None


Place = tuple[int, int]
"""Seed and fold (-1 without folds)."""


def difference(a: dict[Place, float], b: dict[Place, float]) -> Difference | None:
    """`a - b` over the seeds that both have, each the mean of its folds; None where they share none."""
    by_seed: dict[int, list[float]] = {}
    for place in sorted(a.keys() & b.keys()):
        by_seed.setdefault(place[0], []).append(a[place] - b[place])
    if not by_seed:
        return None
    deltas = [statistics.fmean(found) for found in by_seed.values()]
    error = statistics.stdev(deltas) / math.sqrt(len(deltas)) if len(deltas) > 1 else math.nan
    return Difference(
        mean=statistics.fmean(deltas), error=error, seeds=len(deltas), higher=sum(d > 0 for d in deltas)
    )


def compare(states: list[TrialState], found: list[Group], metric: Metric | str) -> dict[str, Comparison]:
    """Each group's paired differences to the best (the best's: to the second) and to the baseline."""
    name = metric if isinstance(metric, str) else metric.name
    by_label: dict[str, dict[Place, float]] = {}
    for state in states:
        if state.status == DONE and name in state.metrics:
            place = (state.trial.seed, -1 if state.trial.fold is None else state.trial.fold)
            by_label.setdefault(label_of(state.trial), {})[place] = state.metrics[name]
    best = winner(found, metric)
    rest = [g for g in found if best is None or g.label != best.label]
    second = winner(rest, metric)
    baseline = next((g for g in found if g.baseline), None)
    result = {}
    for group in found:
        rival = second if best is not None and group.label == best.label else best
        own = by_label.get(group.label, {})
        to_rival = None if rival is None else difference(own, by_label.get(rival.label, {}))
        to_baseline = None
        if baseline is not None and not group.baseline:
            to_baseline = difference(own, by_label.get(baseline.label, {}))
        result[group.label] = Comparison(
            label=group.label,
            rival=None if rival is None else rival.label,
            to_rival=to_rival,
            to_baseline=to_baseline,
        )
    return result
