"""How well what needs no probe orders a sweep's trials: rank correlation with what they are ranked by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vmae.experiments.stages import metric
from vmae.experiments.stages.stage import Metric
from vmae.experiments.sweeps.status import DONE, TrialState

MIN_TRIALS = 4
_DRAWS = 1000


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Spearman's correlation of a monitor with the ranking metric; a 95% bootstrap interval over trials."""

    monitor: Metric
    rho: float
    low: float
    high: float
    trials: int

    def text(self) -> str:
        """`participation ratio 0.91 [0.74, 0.98]`."""
        return f"{self.monitor.title} {self.rho:.2f} [{self.low:.2f}, {self.high:.2f}]"


def spearman(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    """Rank correlation, ties at their mean rank; NaN where either is constant."""
    x, y = _ranks(np.asarray(a, np.float64)), _ranks(np.asarray(b, np.float64))
    x, y = x - x.mean(), y - y.mean()
    norm = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / norm if norm else math.nan


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    ranks: np.ndarray = ((last - counts + last - 1) / 2)[inverse]
    return ranks


def agreements(states: Sequence[TrialState], ranked: Metric) -> list[Agreement]:
    """Of every monitor that the pre-trained trials have; the closest first, none for fewer than 4 trials."""
    done = [s for s in states if s.status == DONE and not s.trial.baseline and ranked.name in s.metrics]
    names = sorted({n for s in done for n in s.metrics if n.startswith(("pretrain/monitor_", "monitor/"))})
    found = []
    for name in names:
        pairs = np.array(
            [(s.metrics[name], s.metrics[ranked.name]) for s in done if name in s.metrics], np.float64
        )
        pairs = pairs[np.isfinite(pairs).all(1)] if len(pairs) else pairs
        if name == ranked.name or name.endswith("_random") or len(pairs) < MIN_TRIALS:
            continue
        rho = spearman(*pairs.T)
        rng = np.random.default_rng(0)
        draws = [spearman(*pairs[rng.integers(len(pairs), size=len(pairs))].T) for _ in range(_DRAWS)]
        if math.isnan(rho):
            continue
        low, high = np.nanpercentile(draws, [2.5, 97.5])
        found.append(
            Agreement(monitor=metric(name), rho=rho, low=float(low), high=float(high), trials=len(pairs))
        )
    return sorted(found, key=lambda a: -a.rho)
