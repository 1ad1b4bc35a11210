"""Frame-mAP: how well actions are found in key frames (AVA).

The conventions are those of AVA's own evaluation (activitynet/ActivityNet,
`Evaluation/get_ava_performance.py` and `Evaluation/ava/`):

- A row is one box with one action; a person with three actions is three rows, each judged by itself.
- In a key frame and class, predictions come from the highest score down. Each looks at the one true box that
  it overlaps most (the first of equals). It is a hit where their IoU is at least the threshold and no earlier
  prediction took that box; else it is a false alarm, also where another true box would have done.
- Predictions in key frames without true boxes are false alarms, those of no area are left out. Which key
  frames count is the caller's to say (`frames`): that script counts those of the truth's list (rows without a
  box among them), its older version and MCG-NJU/VideoMAE-Action-Detection all that are not excluded.
- A class's average precision is the area under the interpolated curve over all frames; the mean is over the
  classes to be evaluated that have true boxes.

Departures: predictions of equal score are taken in the order given (there, in whatever order numpy sorts
them), and the number of predictions a frame is not limited unless asked (`max_per_frame`; that script keeps
the best 50 rows, MCG-NJU/VideoMAE-Action-Detection keeps all).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from vmae.core.errors import InputError
from vmae.core.measure.precision import Instances, Judged, average_precision, same_group_pairs


@dataclass(frozen=True, kw_only=True)
class DetectionResult:
    """Average precisions in [0, 1]."""

    mean_ap: float
    ap: dict[int, float]
    """Of each evaluated class that has true boxes."""
    true_boxes: dict[int, int]
    """How many each of these classes has."""
    without_truth: tuple[int, ...]
    """Classes to be evaluated that no true box has: they do not count."""
    left_out: int
    """Predictions of no area."""
    judged: tuple[Judged, ...]
    """In the order of `ap`, for `map_interval`."""


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of paired boxes [..., 4] (`x1, y1, x2, y2`), [...]; 0 where both have no area."""
    width = np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0])
    height = np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1])
    both = np.maximum(width, 0) * np.maximum(height, 0)
    area_a = (a[..., 3] - a[..., 1]) * (a[..., 2] - a[..., 0])
    area_b = (b[..., 3] - b[..., 1]) * (b[..., 2] - b[..., 0])
    either = area_a + area_b - both
    return np.divide(both, either, out=np.zeros_like(either), where=either > 0)


def frame_map(
    truth: Instances,
    predictions: Instances,
    classes: Iterable[int],
    *,
    iou: float = 0.5,
    frames: Iterable[int] | None = None,
    max_per_frame: int | None = None,
) -> DetectionResult:
    """Frame-mAP of `predictions` (boxes with scores) at an IoU threshold, over `classes`.

    Rows of other classes are ignored, and where `frames` is given those of other key frames. `max_per_frame`
    keeps the best rows of each frame. Raises InputError where predictions have no scores, a true box is
    inverted, the threshold is outside (0, 1], or no class has true boxes.
    """
    wanted = sorted(set(classes))
    if not 0 < iou <= 1:
        raise InputError(f"expected an IoU threshold in (0, 1], got {iou}")
    truth, predictions = (x.rows(np.isin(x.label, wanted)) for x in (truth, predictions))
    if frames is not None:
        listed = np.fromiter(frames, np.int64)
        truth, predictions = (x.rows(np.isin(x.source, listed)) for x in (truth, predictions))
    truth.check_truth(4)
    predictions = predictions.ranked()
    has_area = np.all(predictions.extent[:, 2:] > predictions.extent[:, :2], axis=1)
    predictions = predictions.rows(has_area)
    if max_per_frame is not None:
        predictions = predictions.rows(_rank_in_frame(predictions.source) < max_per_frame)
    hits = _hits(truth, predictions, iou)
    counts = {c: int((truth.label == c).sum()) for c in wanted}
    judged = {
        c: Judged(
            hits=hits[predictions.label == c],
            source=predictions.source[predictions.label == c],
            truth=truth.source[truth.label == c],
        )
        for c, n in counts.items()
        if n
    }
    ap = {c: average_precision(j.hits, len(j.truth)) for c, j in judged.items()}
    return DetectionResult(
        mean_ap=float(np.mean(list(ap.values()))),
        ap=ap,
        true_boxes={c: counts[c] for c in ap},
        without_truth=tuple(c for c in wanted if c not in ap),
        left_out=int((~has_area).sum()),
        judged=tuple(judged.values()),
    )


def _hits(truth: Instances, predictions: Instances, iou: float) -> np.ndarray:
    """Whether each prediction (sorted by score) is the first to find the true box it overlaps most, [M]."""
    frames = np.concatenate((truth.source, predictions.source))
    labels = np.concatenate((truth.label, predictions.label))
    _, group = np.unique(np.stack((frames, labels), 1), axis=0, return_inverse=True)
    i, j = same_group_pairs(group[len(truth) :], group[: len(truth)])
    overlap = box_iou(predictions.extent[i], truth.extent[j])
    # The best pair of each prediction first; the sort is stable, so the first of equals stays first.
    order = np.lexsort((-overlap, i))
    i, j, overlap = i[order], j[order], overlap[order]
    best = np.diff(i, prepend=-1) > 0
    i, j = i[best & (overlap >= iou)], j[best & (overlap >= iou)]  # still in the order of the scores
    _, first = np.unique(j, return_index=True)
    hits = np.zeros(len(predictions), bool)
    hits[i[first]] = True
    return hits


def _rank_in_frame(frame: np.ndarray) -> np.ndarray:
    """The place of each row among those of its frame, in the order given, int64 [M]."""
    order = np.argsort(frame, kind="stable")
    starts = np.searchsorted(frame[order], frame[order], side="left")
    rank = np.empty(len(frame), np.int64)
    rank[order] = np.arange(len(frame)) - starts
    return rank
