"""Temporal localisation: mAP at temporal IoU, and soft suppression of overlapping segments.

The conventions are those of ActivityNet's evaluation (activitynet/ActivityNet,
`Evaluation/eval_detection.py`; ActionFormer uses the same on THUMOS14, at 0.3:0.7):

- In a class, predictions of all videos come from the highest score down. Each takes the true segment of its
  video that it overlaps most among those that are still free and reach the threshold (unlike frame-mAP, where
  the best box alone counts, free or not); where there is none it is a false alarm.
- A class's average precision is the area under the interpolated curve; the mean at a threshold is over the
  classes that have true segments; the average mAP is over the thresholds.

Departure: predictions of equal score, and true segments of equal overlap, are taken in the order given
(there, in whatever order numpy sorts them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vmae.core.errors import InputError
from vmae.core.measure.precision import Instances, Judged, average_precision

THUMOS_TIOUS = (0.3, 0.4, 0.5, 0.6, 0.7)
ACTIVITYNET_TIOUS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


@dataclass(frozen=True, kw_only=True)
class LocalisationResult:
    """Average precisions in [0, 1]."""

    average_map: float
    """The mean of `mean_ap` over the thresholds."""
    mean_ap: dict[float, float]
    """At each threshold."""
    ap: dict[int, tuple[float, ...]]
    """Of each class that has true segments, at the thresholds."""
    judged: tuple[Judged, ...]
    """In the order of `ap`, for `map_interval`."""


def temporal_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of paired segments [..., 2], [...]; 0 where both have no length."""
    both = np.maximum(np.minimum(a[..., 1], b[..., 1]) - np.maximum(a[..., 0], b[..., 0]), 0)
    either = (b[..., 1] - b[..., 0]) + (a[..., 1] - a[..., 0]) - both
    return np.divide(both, either, out=np.zeros_like(either), where=either > 0)


def temporal_map(
    truth: Instances, predictions: Instances, *, tious: Sequence[float] = THUMOS_TIOUS
) -> LocalisationResult:
    """mAP of `predictions` (segments with scores) at each temporal IoU of `tious`.

    It is over the classes of `truth`: predictions of other classes are ignored. Raises InputError where
    predictions have no scores, true segments are absent or inverted, or a threshold is outside (0, 1].
    """
    thresholds = np.asarray(tious, np.float64)
    if not len(thresholds) or not ((thresholds > 0) & (thresholds <= 1)).all():
        raise InputError(f"expected temporal IoU thresholds in (0, 1], got {list(tious)}")
    truth.check_truth(2)
    predictions = predictions.ranked()
    ap: dict[int, tuple[float, ...]] = {}
    judged: list[Judged] = []
    for c in np.unique(truth.label).tolist():
        own, said = truth.rows(truth.label == c), predictions.rows(predictions.label == c)
        hits = _hits(own, said, thresholds)
        ap[c] = tuple(average_precision(row, len(own)) for row in hits)
        judged.append(Judged(hits=hits, source=said.source, truth=own.source))
    table = np.array(list(ap.values()))  # [C, thresholds]
    mean_ap = dict(zip(thresholds.tolist(), table.mean(0).tolist(), strict=True))
    return LocalisationResult(average_map=float(table.mean()), mean_ap=mean_ap, ap=ap, judged=tuple(judged))


def _hits(truth: Instances, predictions: Instances, tious: np.ndarray) -> np.ndarray:
    """Whether each prediction (sorted by score) finds a free true segment, bool [thresholds, M]."""
    hits = np.zeros((len(tious), len(predictions)), bool)
    for video in np.unique(truth.source):
        own = truth.extent[truth.source == video]
        free = np.ones((len(tious), len(own)), bool)
        for m in np.flatnonzero(predictions.source == video):
            overlap = temporal_iou(predictions.extent[m], own)  # [own]
            fits = free & (overlap >= tious[:, None])
            found = np.flatnonzero(fits.any(1))
            free[found, np.where(fits, overlap, -1.0).argmax(1)[found]] = False
            hits[found, m] = True
    return hits


def soft_nms(
    segments: np.ndarray,
    scores: np.ndarray,
    *,
    method: Literal["gaussian", "linear"] = "gaussian",
    sigma: float = 0.5,
    iou_threshold: float = 0.1,
    min_score: float = 0.001,
    max_kept: int = 200,
) -> tuple[np.ndarray, np.ndarray]:
    """Soft-NMS (Bodla et al., arXiv 1704.04503, figure 2) of one class's segments in time.

    The highest score is kept, the others' scores fall by their overlap with it, and so on: `gaussian`
    multiplies by `exp(-IoU**2 / sigma)` (equation 3), `linear` by `1 - IoU` where IoU is at least
    `iou_threshold` (equation 2). Segments below `min_score` leave. Defaults: ActionFormer's on THUMOS14.

    `segments` [M, 2], `scores` [M]. Returns the rows kept, int64 [K] in the order in which they were kept
    (falling scores), and their new scores float64 [K].
    """
    if method not in ("gaussian", "linear"):
        raise InputError(f"expected method gaussian or linear, got {method!r}")
    if not sigma > 0:
        raise InputError(f"expected sigma above 0, got {sigma}")
    segments = np.asarray(segments, np.float64).reshape(-1, 2)
    scores = np.array(scores, np.float64).reshape(-1)
    if len(scores) != len(segments):
        raise InputError(f"expected a score a segment, got {len(scores)} for {len(segments)}")
    left = np.flatnonzero(scores >= min_score)
    kept: list[int] = []
    while len(left) and len(kept) < max_kept:
        best = left[scores[left].argmax()]
        kept.append(int(best))
        left = left[left != best]
        overlap = temporal_iou(segments[best], segments[left])
        if method == "gaussian":
            scores[left] *= np.exp(-(overlap**2) / sigma)
        else:
            scores[left] *= np.where(overlap >= iou_threshold, 1 - overlap, 1.0)
        left = left[scores[left] >= min_score]
    return np.array(kept, np.int64), scores[kept]
