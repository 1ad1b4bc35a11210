"""Frame-mAP against known answers and against a slow, plain reading of AVA's definition."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vmae.core.errors import InputError
from vmae.core.measure.detection import box_iou, frame_map
from vmae.core.measure.precision import Instances, map_interval

Row = tuple[int, int, tuple[float, float, float, float]]
Scored = tuple[int, int, tuple[float, float, float, float], float]
A = (0.0, 0.0, 4.0, 4.0)
B = (10.0, 0.0, 14.0, 4.0)


def table(rows: list[Row] | list[Scored]) -> Instances:
    return Instances(
        source=np.array([r[0] for r in rows], np.int64),
        label=np.array([r[1] for r in rows], np.int64),
        extent=np.array([r[2] for r in rows], np.float64).reshape(-1, 4),
        score=np.array([r[3] for r in rows], np.float64) if not rows or len(rows[0]) == 4 else None,  # type: ignore[misc]
    )


def ap_of(truth: list[Row], found: list[Scored], classes: list[int] | None = None) -> float:
    return frame_map(table(truth), table(found), classes or [1]).mean_ap


def test_the_perfect_answer_none_and_the_wrong_frame() -> None:
    truth: list[Row] = [(0, 1, A), (1, 1, B)]
    assert ap_of(truth, [(0, 1, A, 0.9), (1, 1, B, 0.1)]) == 1.0
    assert ap_of(truth, []) == 0.0
    assert ap_of(truth, [(1, 1, A, 0.9), (0, 1, B, 0.8)]) == 0.0
    assert ap_of(truth, [(0, 1, A, 0.9)]) == 0.5


def test_false_alarms_count_by_their_place() -> None:
    # Precision 1/2 at recall 1/2 and 2/3 at recall 1; the interpolated curve is 2/3 all along.
    truth: list[Row] = [(0, 1, A), (1, 1, A)]
    found: list[Scored] = [(2, 1, A, 0.9), (0, 1, A, 0.8), (1, 1, A, 0.7)]
    assert ap_of(truth, found) == pytest.approx(2 / 3)
    # After all true ones they cost nothing.
    assert ap_of(truth, [(2, 1, A, 0.1), *found[1:]]) == 1.0


def test_a_duplicate_is_a_false_alarm_and_does_not_take_another_box() -> None:
    shifted = (0.0, 0.0, 4.0, 5.0)
    truth: list[Row] = [(0, 1, A), (0, 1, shifted)]
    # Both predictions overlap A most: the second is false although `shifted` is free and overlaps 0.8.
    assert ap_of(truth, [(0, 1, A, 0.9), (0, 1, A, 0.8)]) == 0.5
    assert ap_of(truth, [(0, 1, A, 0.9), (0, 1, shifted, 0.8)]) == 1.0


def test_the_threshold_itself_is_enough() -> None:
    half = (0.0, 0.0, 4.0, 2.0)
    assert box_iou(np.array(half), np.array(A)) == 0.5
    assert ap_of([(0, 1, A)], [(0, 1, half, 0.9)]) == 1.0
    assert ap_of([(0, 1, A)], [(0, 1, (0.0, 0.0, 4.0, 1.99), 0.9)]) == 0.0


def test_equal_scores_keep_their_order() -> None:
    truth: list[Row] = [(0, 1, A)]
    right, wrong = (0, 1, A, 0.5), (0, 1, B, 0.5)
    assert ap_of(truth, [right, wrong]) == 1.0
    assert ap_of(truth, [wrong, right]) == 0.5


def test_each_action_of_a_person_is_judged_by_itself() -> None:
    truth: list[Row] = [(0, 1, A), (0, 2, A), (0, 7, A)]
    found: list[Scored] = [(0, 1, A, 0.9), (0, 2, B, 0.8), (0, 9, A, 1.0)]
    result = frame_map(table(truth), table(found), [1, 2, 3])
    assert result.ap == {1: 1.0, 2: 0.0}
    assert result.mean_ap == 0.5 and result.without_truth == (3,) and result.true_boxes == {1: 1, 2: 1}


def test_boxes_without_area_are_left_out_and_counted() -> None:
    found: list[Scored] = [
        (0, 1, (3.0, 0.0, 3.0, 4.0), 0.9),
        (0, 1, (4.0, 0.0, 1.0, 4.0), 0.8),
        (0, 1, A, 0.5),
    ]
    result = frame_map(table([(0, 1, A)]), table(found), [1])
    assert result.left_out == 2 and result.mean_ap == 1.0


def test_key_frames_that_are_not_judged_do_not_count() -> None:
    truth, found = table([(0, 1, A), (1, 1, A)]), table([(2, 1, A, 0.9), (0, 1, A, 0.8), (1, 1, A, 0.7)])
    assert frame_map(truth, found, [1], frames=[0, 1]).mean_ap == 1.0
    assert frame_map(truth, found, [1], frames=[0, 2]).mean_ap == 0.5


def test_rows_beyond_the_best_of_a_frame_are_dropped_on_request() -> None:
    found: list[Scored] = [(0, 1, B, 0.9), (0, 1, A, 0.8), (1, 1, B, 0.7)]
    truth = table([(0, 1, A), (1, 1, B)])
    assert frame_map(truth, table(found), [1]).mean_ap == pytest.approx(2 / 3)
    assert frame_map(truth, table(found), [1], max_per_frame=1).mean_ap == pytest.approx(0.25)


def slow_frame_map(truth: list[Row], found: list[Scored], classes: list[int], iou: float) -> float:
    """The definition, word for word, one prediction after another."""
    values = []
    for c in classes:
        true = [(f, b) for f, label, b in truth if label == c]
        if not true:
            continue
        mine = [(s, f, b) for f, label, b, s in found if label == c and b[2] > b[0] and b[3] > b[1]]
        mine.sort(key=lambda row: -row[0])
        taken: set[int] = set()
        curve: list[tuple[float, float]] = []  # recall, precision
        hits = 0
        for place, (_, frame, box) in enumerate(mine, 1):
            best, best_overlap = -1, -1.0
            for k, (f, b) in enumerate(true):
                if f != frame:
                    continue
                w = max(min(box[2], b[2]) - max(box[0], b[0]), 0.0)
                h = max(min(box[3], b[3]) - max(box[1], b[1]), 0.0)
                union = (box[3] - box[1]) * (box[2] - box[0]) + (b[3] - b[1]) * (b[2] - b[0]) - w * h
                overlap = w * h / union if union > 0 else 0.0
                if overlap > best_overlap:
                    best, best_overlap = k, overlap
            if best >= 0 and best_overlap >= iou and best not in taken:
                taken.add(best)
                hits += 1
            curve.append((hits / len(true), hits / place))
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

    def box() -> tuple[float, float, float, float]:
        # Few places, so that overlaps of exactly the threshold, equal overlaps and duplicates occur.
        x, y = rng.integers(0, 4, 2)
        w, h = rng.integers(0 if rng.random() < 0.1 else 1, 5, 2)
        return float(x), float(y), float(x + w), float(y + h)

    frames, classes = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    truth: list[Row] = [
        (int(rng.integers(frames)), int(rng.integers(classes)), box()) for _ in range(rng.integers(1, 15))
    ]
    found: list[Scored] = []
    for _ in range(rng.integers(0, 40)):
        # Coarse scores tie; a third of the predictions copy a true box, some of them twice.
        frame, label, b = truth[rng.integers(len(truth))] if rng.random() < 0.33 else (
            int(rng.integers(frames + 1)), int(rng.integers(classes + 1)), box(),
        )  # fmt: skip
        found += [(frame, label, b, float(rng.integers(0, 6)) / 5)] * int(rng.integers(1, 3))
    iou = float(rng.choice([0.25, 0.5, 0.75]))
    labels = list(range(classes))
    expected = slow_frame_map(truth, found, labels, iou)
    assert frame_map(table(truth), table(found), labels, iou=iou).mean_ap == pytest.approx(
        expected, abs=1e-12
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": None}, "with scores"),
        ({"score": np.array([np.nan])}, "finite numbers in score"),
        ({"extent": np.array([[0, 0, np.inf, 1]])}, "finite numbers in extent"),
        ({"label": np.array([1, 2])}, "extent \\[M, 4\\]"),
    ],
)
def test_predictions_that_cannot_be_used_are_refused(change: dict[str, object], message: str) -> None:
    values = {
        "source": np.array([0]),
        "label": np.array([1]),
        "extent": np.array([A]),
        "score": np.array([0.5]),
    }
    with pytest.raises(InputError, match=message):
        frame_map(table([(0, 1, A)]), Instances(**(values | change)), [1])  # type: ignore[arg-type]


def test_truth_that_cannot_be_used_is_refused() -> None:
    found = table([(0, 1, A, 0.5)])
    with pytest.raises(InputError, match="got none"):
        frame_map(table([(0, 1, A)]), found, [2])
    with pytest.raises(InputError, match="from low to high"):
        frame_map(table([(0, 1, (4.0, 0.0, 0.0, 4.0))]), found, [1])
    with pytest.raises(InputError, match="IoU threshold"):
        frame_map(table([(0, 1, A)]), found, [1], iou=0)


def test_the_interval_of_a_mean_is_what_drawing_videos_again_gives() -> None:
    """Against the same draws made plainly: each drawn video's rows written out as often as it is drawn."""
    rng = np.random.default_rng(5)
    truth, said = [], []
    for frame in range(24):  # four to a film
        for _ in range(rng.integers(0, 3)):
            box = np.append(rng.random(2), 0) @ np.eye(3, 4) + np.array([0, 0, 1.2, 1.2])
            truth.append((frame, int(rng.integers(3)), box))
            said.append((frame, int(rng.integers(3)), box, rng.random()))
    label, place, extent = [t[1] for t in truth], [t[0] for t in truth], [t[2] for t in truth]
    real = Instances(source=np.array(place), label=np.array(label), extent=np.array(extent))
    guess = Instances(
        source=np.array(place), label=np.array([s[1] for s in said]), extent=np.array(extent),
        score=np.array([s[3] for s in said]),
    )  # fmt: skip
    film = np.arange(24) // 4
    found = frame_map(real, guess, range(3))
    made = map_interval(found.mean_ap, found.judged, film, seed=3)
    assert made is not None and made.videos == 6 and made.low < found.mean_ap < made.high
    weights = np.random.default_rng(3).multinomial(6, np.full(6, 1 / 6), size=1000)
    plain = []
    for w in weights:
        frames = [f + 24 * copy for f in range(24) for copy in range(w[film[f]])]
        again = []
        for x in (real, guess):
            rows = [np.flatnonzero(x.source == f % 24) for f in frames]
            one = x.rows(np.concatenate(rows))
            source = np.repeat(frames, [len(r) for r in rows])
            again.append(replace(one, source=source))
        # Equal scores of copies: hits first or last is the copies' order, so they are told apart a little.
        again[1] = replace(again[1], score=again[1].score - 1e-9 * (again[1].source // 24))
        plain.append(frame_map(*again, range(3)).mean_ap)
    assert [made.low, made.high] == pytest.approx(np.quantile(plain, (0.025, 0.975)), abs=1e-9)
    assert map_interval(found.mean_ap, found.judged, np.zeros(24, int)) is None
