"""What a number says about videos and seeds it was not measured on: intervals, paired differences, seeds.

Everything is computed from who was right: a table of 0 (wrong) and 1 (right), a row a seed and a column a
held-out video. Folds are put side by side: each video is held out once, so K folds of V videos are one row
of K x V columns. The percentile bootstrap draws videos again with replacement and, where there are several
seeds, seeds too; with one seed nothing is known about other seeds, and the interval is that of these weights.

Few videos, or few on which two models differ, make a plain bootstrap too sure of itself (of 4 answers that
differ, all for one side, it says "certain" where an exact sign test says p = 0.125). So made-up videos are
added before drawing: two right and two wrong ones to a share (Agresti and Coull 1998), one for each side to a
difference (Bonett and Price 2012). On a few hundred videos they change the third digit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vmae.core.errors import InputError

LEVEL = 0.95
_Z = 1.959964  # two-sided 95 % of a normal distribution
_DRAWS = 4000
_TAIL = 10
"""Draws past zero below which their share is too rough."""
_CHUNK = 2**22  # numbers drawn at once


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A share in [0, 1] and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float
    videos: int
    seeds: int = 1

    def text(self) -> str:
        """`54.8% [43.5, 66.1]`."""
        return f"{self.mean:.1%} [{self.low * 100:.1f}, {self.high * 100:.1f}]"


@dataclass(frozen=True, kw_only=True)
class Paired:
    """The first minus the second on the same videos, in [-1, 1], and the ends of its 95 % interval.

    `p` is 1 minus the level at which the interval would just reach zero.
    """

    mean: float
    low: float
    high: float
    videos: int
    seeds: tuple[int, int]
    p: float

    @property
    def told_apart(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0

    def turned(self) -> Paired:
        """The second minus the first."""
        return Paired(
            mean=-self.mean,
            low=-self.high,
            high=-self.low,
            videos=self.videos,
            seeds=(self.seeds[1], self.seeds[0]),
            p=self.p,
        )

    def text(self) -> str:
        """`+3.2 points [-1.4, 7.9]`."""
        return f"{self.mean * 100:+.1f} points [{self.low * 100:+.1f}, {self.high * 100:+.1f}]"


def share_text(value: float, found: Interval | None) -> str:
    """A share with its interval where there is one."""
    return f"{value:.1%}" if found is None else found.text()


def ends_of(found: Interval | None) -> list[float] | None:
    """The ends of an interval, for a file."""
    return None if found is None else [found.low, found.high]


def interval(correct: Any, *, seed: int = 0) -> Interval:
    """The mean of `correct` (bool or float in [0, 1]; `[V]`, or `[S, V]` for S seeds) and its interval.

    Raises InputError for no video or values outside [0, 1].
    """
    table = _table(correct)
    seeds, videos = table.shape
    per_video = table.mean(0)
    drawn = _draws(np.append(per_video, (0.0, 0.0, 1.0, 1.0)), np.random.default_rng(seed))
    drawn += _seed_draws(table, np.random.default_rng(seed + 1))
    mean = float(per_video.mean())
    low, high = np.quantile(drawn, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(
        mean=mean,
        low=max(0.0, min(float(low), mean)),
        high=min(1.0, max(float(high), mean)),
        videos=videos,
        seeds=seeds,
    )


def paired(a: Any, b: Any, *, seed: int = 0) -> Paired:
    """`a - b` on the same videos in the same order: `[V]` or `[S, V]` each, with seeds of their own.

    Raises InputError where the numbers of videos differ, and as `interval` does.
    """
    first, second = _table(a), _table(b)
    if first.shape[1] != second.shape[1]:
        raise InputError(f"expected the same videos, got {first.shape[1]} and {second.shape[1]}")
    differences = first.mean(0) - second.mean(0)
    drawn = _draws(np.append(differences, (-1.0, 1.0)), np.random.default_rng(seed))
    drawn += _seed_draws(first, np.random.default_rng(seed + 1))
    drawn -= _seed_draws(second, np.random.default_rng(seed + 2))
    mean = float(differences.mean())
    low, high = np.quantile(drawn, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Paired(
        mean=mean,
        low=min(float(low), mean),
        high=max(float(high), mean),
        videos=len(differences),
        seeds=(len(first), len(second)),
        p=_p(drawn),
    )


def _p(drawn: np.ndarray) -> float:
    """Twice the share of draws past zero; from the normal distribution's tail where those are too few."""
    share = min(float((drawn <= 0).mean()), float((drawn >= 0).mean()))
    if share * len(drawn) >= _TAIL:
        return min(1.0, 2 * share)
    spread = float(drawn.std())
    normal = math.erfc(abs(float(drawn.mean())) / (spread * math.sqrt(2))) if spread else 1.0
    return min(normal, 2 * _TAIL / len(drawn))


def holm(p: Sequence[float]) -> list[bool]:
    """Which of several comparisons hold at once, at `LEVEL` for all of them together.

    Holm, Scand. J. Statist. 6 (1979): of n the smallest p is held against 0.05 / n, the next against
    0.05 / (n - 1), and so on to the first that fails.
    """
    held = [False] * len(p)
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        if p[i] > (1 - LEVEL) / (len(p) - rank):
            break
        held[i] = True
    return held


def needed_seeds(a: Any, b: Any) -> int | None:
    """About how many seeds of each would tell `a` from `b` on these videos, if they differ as they do here.

    The variance of the difference of means is t / V + (s_a + s_b) / M with M seeds: t is the variance over
    videos that seeds do not explain, s the variance between seeds. M is the smallest number at which 1.96 of
    its roots are less than the difference seen. None where fewer than two seeds of one were run (s is not
    known) and where no number of seeds would do (more videos might).
    """
    first, second = _table(a), _table(b)
    if min(len(first), len(second)) < 2:
        return None
    differences = first.mean(0) - second.mean(0)
    inside = sum(float(t.var(0, ddof=1).mean()) / len(t) for t in (first, second))
    videos = len(differences)
    over_videos = max(0.0, float(differences.var(ddof=1)) - inside) / videos if videos > 1 else math.inf
    between = sum(float(t.mean(1).var(ddof=1)) for t in (first, second))
    room = float(differences.mean()) ** 2 / _Z**2 - over_videos
    return max(2, math.floor(between / room) + 1) if room > 0 else None


def _table(correct: Any) -> np.ndarray:
    table = np.atleast_2d(np.asarray(correct, dtype=np.float64))
    if table.ndim != 2 or table.size == 0:
        raise InputError(f"expected answers [videos] or [seeds, videos], got shape {np.shape(correct)}")
    if not (table.min() >= 0 and table.max() <= 1):
        raise InputError(f"expected answers in [0, 1], got {table.min():g} to {table.max():g}")
    return table


def _draws(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means of `_DRAWS` samples of `values` with replacement."""
    rows = max(1, _CHUNK // len(values))
    parts = [
        values[rng.integers(len(values), size=(min(rows, _DRAWS - done), len(values)))].mean(1)
        for done in range(0, _DRAWS, rows)
    ]
    return np.concatenate(parts)


def _seed_draws(table: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How far the mean moves when the seeds are drawn again; zeros for one seed.

    Drawing S of S again varies (S - 1) / S times as much as new seeds would: the deviations are stretched.
    """
    seeds = len(table)
    if seeds == 1:
        return np.zeros(_DRAWS)
    deviations = (table.mean(1) - table.mean()) * math.sqrt(seeds / (seeds - 1))
    return np.asarray(deviations[rng.integers(seeds, size=(_DRAWS, seeds))].mean(1))
