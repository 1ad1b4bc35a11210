"""How well each monitor orders the pre-trainings of several sweeps, against the probe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vmae.experiments.results.table import SweepTable
from vmae.experiments.stages import measure, metric, pretrain
from vmae.experiments.sweeps.agreement import spearman

_DRAWS = 2000
_LOSSES = (measure.ERROR, pretrain.LOSS)
LEAST, LEAST_POINTS = 4, 12
"""Settings and pre-trainings below which nothing is said."""


@dataclass(frozen=True, kw_only=True)
class Points:
    """A point a pre-training (a setting and a seed; folds are averaged)."""

    accuracy: list[float]
    monitors: dict[str, list[float]]
    """By metric; NaN where a point has none."""
    questions: list[str]
    settings: list[str]
    """What is drawn again together: seeds of one setting are no independent settings."""


@dataclass(frozen=True, kw_only=True)
class Rank:
    """Spearman's correlation with the probe; a 95% bootstrap interval over settings."""

    name: str
    title: str
    rho: float
    low: float
    high: float
    points: int
    settings: int

    def text(self) -> str:
        """`0.91 [0.74, 0.98]`."""
        return f"{self.rho:.2f} [{self.low:.2f}, {self.high:.2f}]"


def points_of(tables: Sequence[SweepTable]) -> Points:
    """The pre-trainings of the sweeps that were read out by a probe; one that stands in two counts once."""
    seen: set[tuple[float, ...]] = set()
    found = Points(accuracy=[], monitors={}, questions=[], settings=[])
    names = sorted(
        {n for t in tables for r in t.rows for n in r.numbers if n.startswith("pretrain/monitor_")}
        - {n for t in tables for r in t.rows for n in r.numbers if n.endswith("_random")}
    )
    names += [m.name for m in _LOSSES]
    for table in tables:
        if not table.metric.name.startswith("probe/"):
            continue
        for i, setting in enumerate(table.settings):
            for seed in table.seeds if not setting.baseline else ():
                rows = [r for r in table.of(i) if r.seed == seed]
                means = [_mean([r.numbers.get(n, math.nan) for r in rows]) for n in names]
                accuracy = _mean([r.numbers[table.metric.name] for r in rows])
                key = (accuracy, *(0.0 if math.isnan(m) else m for m in means))
                if not rows or key in seen:
                    continue
                seen.add(key)
                found.accuracy.append(accuracy)
                found.questions.append(table.name.partition("-")[0])
                found.settings.append(f"{table.name} {i}")
                for name, value in zip(names, means, strict=True):
                    found.monitors.setdefault(name, []).append(value)
    return found


def ranks(points: Points) -> list[Rank]:
    """Of every monitor, the closest first; a loss is turned round. Empty for fewer than `LEAST` settings
    or `LEAST_POINTS` pre-trainings."""
    found = []
    for name, values in points.monitors.items():
        shown = metric(name)
        x = np.array(values, np.float64) * (1 if shown.higher_is_better else -1)
        y, keep = np.array(points.accuracy), np.isfinite(x)
        groups: dict[str, list[int]] = {}
        for i in np.flatnonzero(keep):
            groups.setdefault(points.settings[i], []).append(int(i))
        if len(groups) < LEAST or keep.sum() < LEAST_POINTS:
            continue
        rng, members = np.random.default_rng(0), list(groups.values())
        draws = []
        for _ in range(_DRAWS):
            drawn = np.concatenate([members[k] for k in rng.integers(len(members), size=len(members))])
            draws.append(spearman(x[drawn], y[drawn]))
        low, high = np.nanpercentile(draws, [2.5, 97.5])
        found.append(
            Rank(
                name=name,
                title=shown.title,
                rho=spearman(x[keep], y[keep]),
                low=float(low),
                high=float(high),
                points=int(keep.sum()),
                settings=len(groups),
            )
        )
    return sorted(found, key=lambda r: -r.rho)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
