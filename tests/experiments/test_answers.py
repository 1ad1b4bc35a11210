"""Answers are written, read back, and compared on the same videos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vmae.core.errors import InputError
from vmae.core.measure.evaluate import VideoPrediction, summarise, write_predictions
from vmae.experiments.answers import (
    Answer,
    Answers,
    answers_of,
    compare,
    read_answers,
    verdict,
    write_answers,
)
from vmae.experiments.layout import RunDir


def made(hits: list[list[int]], *, fold_of: tuple[int, ...] = ()) -> Answers:
    return Answers(
        tuple(
            Answer(
                path=f"/v/{v}.mp4",
                label=1,
                predicted=hit,
                correct=bool(hit),
                seed=seed,
                fold=fold_of[v] if fold_of else -1,
            )
            for seed, row in enumerate(hits)
            for v, hit in enumerate(row)
        )
    )


def test_written_and_read_back(tmp_path: Path) -> None:
    answers = made([[1, 0, 1], [0, 0, 1]], fold_of=(0, 1, 0))
    write_answers(tmp_path / "run/answers.csv", answers.rows)
    assert read_answers(tmp_path / "run/answers.csv") == answers
    assert answers_of(RunDir(tmp_path / "run")) == answers
    assert answers.table().tolist() == [[1, 0, 1], [0, 0, 1]]
    assert answers.fold_means() == {0: 0.75, 1: 0.0}
    found = answers.interval()
    assert (found.mean, found.videos, found.seeds) == (0.5, 3, 2)


def test_an_evaluation_is_answers_too(tmp_path: Path) -> None:
    probs = np.eye(3, dtype=np.float32)
    predictions = [
        VideoPrediction(index=i, path=f"/v/{i}.mp4", label=label, probs=probs[i], views=1)
        for i, label in enumerate((0, 2, 2))
    ]
    folder = tmp_path / "evaluation"
    folder.mkdir()
    write_predictions(folder / "predictions.csv", summarise(predictions, 3), ["a", "b", "c"])
    found = answers_of(RunDir(tmp_path), seed=4)
    assert found is not None
    assert found.seeds == [4]
    assert found.table().tolist() == [[1, 0, 1]]
    assert answers_of(RunDir(tmp_path / "elsewhere")) is None


def test_a_comparison_is_on_the_videos_both_answered() -> None:
    a = made([[1] * 40])
    b = Answers(made([[0] * 10 + [1] * 20]).rows)
    found, _ = compare(a, b)
    assert found.videos == 30
    assert found.mean == pytest.approx(1 / 3)
    assert verdict("A", "B", found, None).startswith("A is better than B: +33.3 points [")
    assert verdict("B", "A", compare(b, a)[0], None).startswith("A is better than B: +33.3 points [")
    with pytest.raises(InputError, match="none in common"):
        compare(a, Answers(tuple(Answer(path="/w", label=0, predicted=0, correct=True) for _ in range(2))))


def test_a_video_without_an_answer_at_every_seed_is_left_out() -> None:
    rows = made([[1, 1], [1, 1]]).rows
    assert Answers(rows[:-1]).paths == ["/v/0.mp4"]


def test_what_cannot_be_told_says_what_it_would_take() -> None:
    rng = np.random.default_rng(0)
    a = made([[int(x) for x in rng.random(50) < p] for p in (0.62, 0.5, 0.56)])
    b = made([[int(x) for x in rng.random(50) < p] for p in (0.5, 0.56, 0.44)])
    found, seeds = compare(a, b)
    assert not found.told_apart
    text = verdict("0.9", "0.75", found, seeds)
    assert text.startswith(
        "no winner: 0.9 and 0.75 differ by less than can be told with 50 videos and 3 seeds"
    )
    assert text.endswith(f"about {seeds} seeds would" if seeds else "more videos might")
    one, none = compare(made([[1, 0, 1, 0]]), made([[1, 0, 0, 0]]))
    assert none is None
    text = verdict("A", "B", one, none)
    assert "with 4 videos and 1 seed (+25.0 points [" in text
    assert text.endswith("]); more seeds say how many it takes")


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n")
    with pytest.raises(InputError, match="expected the columns path, label, predicted, correct"):
        read_answers(tmp_path / "x.csv")
    with pytest.raises(InputError, match="expected a file of answers"):
        read_answers(tmp_path / "y.csv")
