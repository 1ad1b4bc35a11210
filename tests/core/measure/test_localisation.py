"""Temporal mAP against known answers and a slow, plain reading of ActivityNet's definition; soft-NMS."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vmae.core.errors import InputError
from vmae.core.measure.localisation import THUMOS_TIOUS, soft_nms, temporal_iou, temporal_map
from vmae.core.measure.precision import Instances, multilabel_map

Row = tuple[int, int, tuple[float, float]]
Scored = tuple[int, int, tuple[float, float], float]


def table(rows: list[Row] | list[Scored]) -> Instances:
    return Instances(
        source=np.array([r[0] for r in rows], np.int64),
        label=np.array([r[1] for r in rows], np.int64),
        extent=np.array([r[2] for r in rows], np.float64).reshape(-1, 2),
        score=np.array([r[3] for r in rows], np.float64) if not rows or len(rows[0]) == 4 else None,  # type: ignore[misc]
    )


def test_a_prediction_counts_up_to_its_own_overlap() -> None:
    # 0..10 against 0..6: overlap 0.6, so right at 0.3 to 0.6 (the threshold itself is enough).
    result = temporal_map(table([(0, 3, (0, 10))]), table([(0, 3, (0, 6), 0.9)]))
    assert result.mean_ap == {0.3: 1.0, 0.4: 1.0, 0.5: 1.0, 0.6: 1.0, 0.7: 0.0}
    assert result.average_map == pytest.approx(0.8) and result.ap == {3: (1, 1, 1, 1, 0)}


def test_a_second_prediction_takes_the_next_best_segment() -> None:
    # Both overlap 0..10 most; the second falls back on 4..14 (overlap 8/12), where frame-mAP would not.
    truth = table([(0, 0, (0, 10)), (0, 0, (4, 14))])
    found = table([(0, 0, (0, 10), 0.9), (0, 0, (2, 12), 0.8)])
    assert temporal_map(truth, found, tious=(0.5,)).average_map == 1.0
    assert temporal_map(truth, found, tious=(0.7,)).average_map == 0.5


def test_duplicates_other_videos_and_unknown_classes() -> None:
    truth = table([(0, 0, (0, 10)), (1, 0, (0, 10))])
    twice = table([(0, 0, (0, 10), 0.9), (0, 0, (0, 10), 0.9), (1, 0, (0, 10), 0.5), (0, 8, (0, 10), 1.0)])
    # Hits at places 1 and 3 of 3: 0.5 * 1 + 0.5 * 2/3.
    assert temporal_map(truth, twice, tious=(0.5,)).average_map == pytest.approx(5 / 6)
    assert temporal_map(truth, table([(2, 0, (0, 10), 0.9)]), tious=(0.5,)).average_map == 0.0


def slow_temporal_map(truth: list[Row], found: list[Scored], tious: tuple[float, ...]) -> float:
    """The definition, word for word."""
    values = []
    for threshold in tious:
        for c in sorted({label for _, label, _ in truth}):
            true = [(v, s) for v, label, s in truth if label == c]
            mine = sorted((r for r in found if r[1] == c), key=lambda r: -r[3])
            taken: set[int] = set()
            curve: list[tuple[float, float]] = []
            for place, (video, _, (start, end), _) in enumerate(mine, 1):
                best, best_overlap = -1, -1.0
                for k, (v, (s, e)) in enumerate(true):
                    if v != video or k in taken:
                        continue
                    both = max(min(end, e) - max(start, s), 0.0)
                    union = (e - s) + (end - start) - both
                    overlap = both / union if union > 0 else 0.0
                    if overlap >= threshold and overlap > best_overlap:
                        best, best_overlap = k, overlap
                if best >= 0:
                    taken.add(best)
                curve.append((len(taken) / len(true), len(taken) / place))
            area, before = 0.0, 0.0
            for k, (recall, _) in enumerate(curve):
                if recall > before:
                    area += (recall - before) * max(p for _, p in curve[k:])
                    before = recall
            values.append(area)
    return sum(values) / len(values)


@pytest.mark.parametrize("seed", range(200))
def test_random_cases_agree_with_the_plain_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def segment() -> tuple[float, float]:
        start, length = int(rng.integers(0, 12)), int(rng.integers(0 if rng.random() < 0.1 else 1, 11))
        return float(start), float(start + length)

    truth: list[Row] = [
        (int(rng.integers(3)), int(rng.integers(3)), segment()) for _ in range(rng.integers(1, 14))
    ]
    found: list[Scored] = []
    for _ in range(rng.integers(0, 40)):
        video, label, s = truth[rng.integers(len(truth))] if rng.random() < 0.33 else (
            int(rng.integers(4)), int(rng.integers(4)), segment(),
        )  # fmt: skip
        found += [(video, label, s, float(rng.integers(0, 6)) / 5)] * int(rng.integers(1, 3))
    result = temporal_map(table(truth), table(found))
    assert result.average_map == pytest.approx(slow_temporal_map(truth, found, THUMOS_TIOUS), abs=1e-12)


def test_temporal_iou_of_nothing_is_nothing() -> None:
    assert temporal_iou(np.array([3.0, 3.0]), np.array([[3.0, 3.0], [0.0, 5.0]])).tolist() == [0.0, 0.0]


def test_soft_nms_by_hand() -> None:
    segments = np.array([[0, 10], [0, 10], [5, 15], [100, 110]], float)
    scores = np.array([0.5, 0.9, 0.8, 0.3])
    kept, new = soft_nms(segments, scores, sigma=0.5)
    # 5..15 overlaps 0..10 by 1/3: 0.8 e^(-(1/9)/0.5); the copy of the best by 1: 0.5 e^-2, then by 1/3 again.
    third = math.exp(-(1 / 9) / 0.5)
    assert kept.tolist() == [1, 2, 3, 0]
    assert new.tolist() == pytest.approx([0.9, 0.8 * third, 0.3, 0.5 * math.exp(-2) * third])
    kept, new = soft_nms(segments, scores, method="linear", iou_threshold=0.5)
    assert kept.tolist() == [1, 2, 3] and new.tolist() == [0.9, 0.8, 0.3]  # the copy's score is 0
    assert soft_nms(segments, scores, max_kept=1)[0].tolist() == [1]
    assert soft_nms(segments, scores, min_score=0.4)[0].tolist() == [1, 2]
    assert scores.tolist() == [0.5, 0.9, 0.8, 0.3]
    assert [len(x) for x in soft_nms(np.empty((0, 2)), np.empty(0))] == [0, 0]


def test_what_cannot_be_measured_is_refused() -> None:
    truth, found = table([(0, 0, (0, 1))]), table([(0, 0, (0, 1), 0.5)])
    for call, message in (
        (lambda: temporal_map(truth, found, tious=(0.0,)), "thresholds"),
        (lambda: temporal_map(truth.rows(np.array([], int)), found), "got none"),
        (lambda: temporal_map(table([(0, 0, (5, 1))]), found), "from low to high"),
        (lambda: soft_nms(np.zeros((2, 2)), np.zeros(3)), "a score a segment"),
        (lambda: soft_nms(np.zeros((2, 2)), np.zeros(2), method="hard"), "gaussian or linear"),  # type: ignore[arg-type]
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_multilabel_map_by_hand() -> None:
    scores = np.array([[0.9, 0.1, 0.5], [0.8, 0.2, 0.5], [0.1, 0.3, 0.5]])
    targets = np.array([[True, True, False], [False, False, False], [True, False, False]])
    mean, ap = multilabel_map(scores, targets)
    assert ap[:2].tolist() == pytest.approx([0.5 + 0.5 * 2 / 3, 1 / 3]) and math.isnan(ap[2])
    assert mean == pytest.approx(np.mean(ap[:2]))
    with pytest.raises(InputError, match="that occurs"):
        multilabel_map(scores, np.zeros_like(targets))
