"""Who was right: one line a held-out video (and seed), written beside a run and read for paired comparisons.

Numbers of two runs are compared on the same videos, whatever measured them: a fine-tuning's or an
evaluation's `predictions.csv`, a probe's, or the `answers.csv` of one over folds and seeds.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vmae.core.errors import InputError
from vmae.core.files import write_text
from vmae.core.measure.statistics import Interval, Paired, interval, needed_seeds, paired
from vmae.experiments.layout import RunDir

_COLUMNS = {"path", "label", "predicted", "correct"}
_HEADER = ["path", "label", "fold", "seed", "predicted", "correct"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was said of one held-out video at one seed; `fold` is -1 without folds."""

    path: str
    label: int
    predicted: int
    correct: bool
    seed: int = 0
    fold: int = -1


@dataclass(frozen=True)
class Answers:
    """The answers of one setting. Every video has one at each seed; those that have not are left out."""

    rows: tuple[Answer, ...]

    @property
    def seeds(self) -> list[int]:
        """The seeds, sorted."""
        return sorted({a.seed for a in self.rows})

    @property
    def paths(self) -> list[str]:
        """The videos that have an answer at every seed, sorted."""
        seen: dict[str, set[int]] = {}
        for a in self.rows:
            seen.setdefault(a.path, set()).add(a.seed)
        every = len(self.seeds)
        return sorted(p for p, seeds in seen.items() if len(seeds) == every)

    def table(self, paths: Sequence[str] | None = None) -> np.ndarray:
        """Who was right, float64 `[seeds, videos]`, over `paths` (default: all) in their order."""
        wanted = self.paths if paths is None else paths
        row = {seed: i for i, seed in enumerate(self.seeds)}
        column = {p: i for i, p in enumerate(wanted)}
        out = np.full((len(row), len(column)), np.nan)
        for a in self.rows:
            if a.path in column:
                out[row[a.seed], column[a.path]] = a.correct
        return out

    def interval(self) -> Interval:
        """The accuracy, in [0, 1], with its interval over videos (and seeds)."""
        return interval(self.table())

    def fold_means(self) -> dict[int, float]:
        """The accuracy of each fold, mean over seeds."""
        return {
            fold: float(np.mean([a.correct for a in self.rows if a.fold == fold]))
            for fold in sorted({a.fold for a in self.rows})
        }


def compare(a: Answers, b: Answers) -> tuple[Paired, int | None]:
    """`a - b` on the videos that both answered, and about how many seeds would tell them apart.

    The latter as `needed_seeds`. Raises InputError where they share no video.
    """
    shared = sorted(set(a.paths) & set(b.paths))
    if not shared:
        raise InputError("expected runs measured on the same videos, got two with none in common")
    first, second = a.table(shared), b.table(shared)
    return paired(first, second), needed_seeds(first, second)


def verdict(name_a: str, name_b: str, found: Paired, seeds: int | None) -> str:
    """A sentence: which is better and by how much, or that it cannot be told and what it would take."""
    if found.told_apart and found.mean < 0:
        return verdict(name_b, name_a, found.turned(), seeds)
    if found.told_apart:
        return f"{name_a} is better than {name_b}: {found.text()} on the same {found.videos} videos"
    ran = min(found.seeds)
    text = (
        f"no winner: {name_a} and {name_b} differ by less than can be told with {found.videos} videos and "
        f"{ran} {'seed' if ran == 1 else 'seeds'} ({found.text()})"
    )
    if seeds is not None:
        return f"{text}; about {seeds} seeds would"
    return f"{text}; more seeds say how many it takes" if ran == 1 else f"{text}; more videos might"


def write_answers(path: Path, answers: Iterable[Answer]) -> None:
    """Write `path,label,fold,seed,predicted,correct`, a line an answer."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEADER)
    writer.writerows([a.path, a.label, a.fold, a.seed, a.predicted, int(a.correct)] for a in answers)
    write_text(path, text.getvalue())


def read_answers(path: Path, *, seed: int = 0) -> Answers:
    """The answers in a file that `write_answers` or an evaluation wrote (the latter are given `seed`).

    Raises InputError where it is neither.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows, names = list(reader), set(reader.fieldnames or ())
    except OSError as e:
        raise InputError(f"{path}: expected a file of answers, got {e.strerror}") from None
    if not names >= _COLUMNS:
        got = ", ".join(sorted(names)) or "none"
        raise InputError(f"{path}: expected the columns path, label, predicted, correct; got {got}")
    return Answers(
        tuple(
            Answer(
                path=r["path"],
                label=_number(r["label"]),
                predicted=_number(r["predicted"]),
                correct=r["correct"] == "1",
                seed=int(r.get("seed") or seed),
                fold=int(r.get("fold") or -1),
            )
            for r in rows
        )
    )


def _number(text: str) -> int:
    """A label where it is written as its number; -1 for a class's name, which only people read."""
    return int(text) if text.lstrip("-").isdigit() else -1


def answers_of(run: RunDir, *, seed: int = 0) -> Answers | None:
    """The answers in a run's folder, whatever measured them; None where there are none, as of a detector or a
    regression, whose predictions name no class of a video."""
    if run.answers.is_file():
        return read_answers(run.answers, seed=seed)
    place = run.evaluation.predictions
    return read_answers(place, seed=seed) if place.is_file() and _are_answers(place) else None


def _are_answers(file: Path) -> bool:
    """Whether the first line names the columns of answers."""
    with open(file, newline="", encoding="utf-8") as f:
        return set(next(csv.reader(f), [])) >= _COLUMNS
