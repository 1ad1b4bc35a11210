"""Average precision: what frame-mAP, temporal mAP and the multi-label mAP share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vmae.core.errors import InputError


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
