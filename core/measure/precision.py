"""Average precision: what frame-mAP, temporal mAP and the multi-label mAP share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vmae.core.errors import InputError
from vmae.core.measure.statistics import LEVEL, Interval

_WORK = 2 * 10**8
"""Predictions times draws of an interval."""
_DRAWS = (100, 1000)
"""At least and at most."""
_CHUNK = 2**22  # numbers at once


@dataclass(frozen=True, kw_only=True, eq=False)
class Instances:
    """Actions, one row each: what is true, or (with `score`) what a model says.

    `source` int64 [M] numbers the key frame or video that the action is in, `label` int64 [M] is its class,
    `extent` float64 [M, 4] a box `x1, y1, x2, y2` or [M, 2] a stretch `start, end`, in any one unit, `score`
    float64 [M] how sure the model is. Raises InputError on other shapes and on numbers that are not finite.
    """

    source: np.ndarray
    label: np.ndarray
    extent: np.ndarray
    score: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name, dtype in (("source", np.int64), ("label", np.int64), ("extent", np.float64)):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype))
        if self.score is not None:
            object.__setattr__(self, "score", np.asarray(self.score, np.float64))
        m = self.source.size
        shapes = {k: v.shape for k, v in vars(self).items() if v is not None}
        if shapes["extent"] not in ((m, 4), (m, 2)) or any(
            shape != (m,) for k, shape in shapes.items() if k != "extent"
        ):
            raise InputError(f"expected [M] of each and extent [M, 4] or [M, 2], got {shapes}")
        for name in ("extent", "score"):
            values = getattr(self, name)
            if values is not None and not np.isfinite(values).all():
                raise InputError(f"expected finite numbers in {name}, got NaN or infinity")

    def __len__(self) -> int:
        return len(self.source)

    def rows(self, keep: np.ndarray) -> Instances:
        """The rows that `keep` (bool or numbers) chooses."""
        return Instances(**{k: v[keep] for k, v in vars(self).items() if v is not None})

    def ranked(self) -> Instances:
        """Predictions from the highest score down, equals as given. Raises InputError without scores."""
        if self.score is None:
            raise InputError("expected predictions with scores, got none")
        return self.rows(descending(self.score))

    def check_truth(self, width: int) -> None:
        """Raise InputError unless there are true extents of `width` numbers, none of them inverted."""
        if not len(self):
            raise InputError("expected true instances of the classes to be evaluated, got none")
        if self.extent.shape[1] != width:
            raise InputError(f"expected true extents [M, {width}], got {list(self.extent.shape)}")
        inverted = (self.extent[:, width // 2 :] < self.extent[:, : width // 2]).any(1)
        if inverted.any():
            raise InputError(
                f"expected true extents from low to high, got {self.extent[inverted][0].tolist()}"
            )


def descending(scores: np.ndarray) -> np.ndarray:
    """The order of `scores` [M] from high to low, int64 [M]; equal scores stay in the order given.

    The official evaluations sort with `np.argsort(scores)[::-1]`, whose order among equal scores depends on
    numpy's version and the processor.
    """
    return np.argsort(-np.asarray(scores, np.float64), kind="stable")


def average_precision(hits: np.ndarray, num_true: int) -> float:
    """The area under the interpolated precision-recall curve (VOC 2010 and later, all points), in [0, 1].

    `hits` bool [M]: whether each prediction, from the highest score down, found a true one of its own;
    `num_true` counts all true ones. Precision at a recall is the best at that recall or beyond. Without
    predictions it is 0, without true ones NaN.
    """
    if num_true == 0:
        return float("nan")
    found = np.cumsum(hits)
    precision = found / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    # Recall rises by 1 / num_true at each hit and nowhere else.
    return float(best[np.asarray(hits, bool)].sum() / num_true)


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """A class's predictions from the highest score down: what its average precision follows from.

    `hits` bool [M], or [T, M] at T thresholds; `source` int64 [M] says where each prediction is, `truth`
    int64 [R] where each true one is.
    """

    hits: np.ndarray
    source: np.ndarray
    truth: np.ndarray


def map_interval(
    mean: float, judged: Sequence[Judged], video: np.ndarray, *, seed: int = 0
) -> Interval | None:
    """The 95 % interval of a mean average precision `mean` over classes (and thresholds).

    The percentile bootstrap over videos: whole videos are drawn again with replacement, with all that is true
    and predicted in them. `video` int64 [S] is the video of each source (a film of many key frames); videos
    without anything count. 100 to 1,000 draws, fewer where there are many predictions. A class that no drawn
    video has leaves that draw's mean. None for fewer than two videos: of one nothing follows.
    """
    _, video = np.unique(video, return_inverse=True)
    videos = int(video.max(initial=-1)) + 1
    if videos < 2:
        return None
    rows = sum(j.hits.size for j in judged)
    draws = int(np.clip(_WORK // max(1, rows), *_DRAWS))
    weights = np.random.default_rng(seed).multinomial(videos, np.full(videos, 1 / videos), size=draws)
    total, classes = np.zeros(draws), np.zeros(draws)
    for one in judged:
        true = weights[:, video[one.truth]].sum(1)  # [draws]
        drawn, at = true > 0, video[one.source]
        found = np.zeros(draws)
        for hits in np.atleast_2d(one.hits):
            found += _weighted(hits, at, weights)
        found /= len(np.atleast_2d(one.hits))
        total[drawn] += found[drawn] / true[drawn]
        classes += drawn
    low, high = np.quantile(total / classes, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(mean=mean, low=min(float(low), mean), high=max(float(high), mean), videos=videos)


def _weighted(hits: np.ndarray, at: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`average_precision` times the number of true ones where video v counts `weights[:, v]` times, [draws].

    A hit's copies raise precision one by one, the last is the best of them: they are one place of the curve.
    """
    out = np.zeros(len(weights))
    if not hits.any():
        return out
    step = max(1, _CHUNK // len(hits))
    for start in range(0, len(weights), step):
        counts = weights[start : start + step, at].astype(np.float64)  # [draws, M]
        gains = counts * hits
        seen = np.cumsum(counts, 1)
        precision = np.divide(np.cumsum(gains, 1), seen, out=np.zeros_like(seen), where=seen > 0)
        best = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
        out[start : start + step] = (gains * best).sum(1)
    return out


def same_group_pairs(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs (i, j) with `left[i] == right[j]`, ordered by i, then j: int64 [K] and [K].

    `left` [M] and `right` [R] hold the numbers of groups.
    """
    order = np.argsort(right, kind="stable")
    first = np.searchsorted(right[order], left, side="left")
    count = np.searchsorted(right[order], left, side="right") - first
    i = np.repeat(np.arange(len(left)), count)
    within = np.arange(len(i)) - np.repeat(np.cumsum(count) - count, count)
    return i, order[np.repeat(first, count) + within]


def multilabel_map(scores: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean of the classes' average precisions, and each class's (NaN where no clip has it), [C].

    `scores` float [M, C], `targets` bool [M, C]. Raises InputError on other shapes, or where no class occurs.
    """
    if scores.ndim != 2 or scores.shape != targets.shape:
        raise InputError(
            f"expected scores and targets [M, C], got {list(scores.shape)} and {list(targets.shape)}"
        )
    ap = np.full(scores.shape[1], np.nan)
    for c in range(scores.shape[1]):
        ap[c] = average_precision(targets[descending(scores[:, c]), c], int(targets[:, c].sum()))
    if np.isnan(ap).all():
        raise InputError("expected at least one class that occurs, got none")
    return float(np.nanmean(ap)), ap
