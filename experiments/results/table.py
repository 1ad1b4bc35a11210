"""What a question's page is made of: one sweep as two small files, `NAME.json` and `NAME.csv`.

The first says what was run, the second has a line a trial. They hold no frame, no path and no name of a
video; held-out videos are numbered in the order of their paths.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vmae.core.errors import InputError
from vmae.core.files import read_json, write_json, write_text
from vmae.experiments.answers import Answer, Answers
from vmae.experiments.stages import metric
from vmae.experiments.stages.stage import Metric
from vmae.experiments.sweeps.spec import BASELINE

RIGHT, WRONG, ABSENT = "1", "0", "."
_FIXED = ("setting", "seed", "fold", "right")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the trials of one row have in common."""

    overrides: dict[str, Any]
    baseline: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """One finished trial. `right`: a character a held-out video, RIGHT, WRONG or ABSENT (in another fold)."""

    setting: int
    seed: int
    fold: int = -1
    numbers: dict[str, float] = field(default_factory=dict)
    right: str = ""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """How it was run."""

    command: str
    commit: str
    recipe: str
    clip: str
    model: str
    schedule: str
    ranked_by: str
    """The metric whose answers `right` are."""
    measured: str
    """How that is read out."""
    trained_on: int
    """Videos of a training list (the largest, where folds differ)."""


@dataclass(frozen=True, kw_only=True)
class SweepTable:
    """One sweep that answers a question on a set of videos."""

    name: str
    facts: Facts
    settings: tuple[Setting, ...]
    rows: tuple[Row, ...]

    @property
    def metric(self) -> Metric:
        """What ranks the settings."""
        return metric(self.facts.ranked_by)

    @property
    def seeds(self) -> list[int]:
        return sorted({r.seed for r in self.rows})

    @property
    def folds(self) -> list[int]:
        """The folds that were held out in turn; empty without."""
        return sorted({r.fold for r in self.rows} - {-1})

    @property
    def videos(self) -> int:
        """How many held-out videos there are."""
        return max(len(r.right) for r in self.rows)

    def of(self, setting: int) -> list[Row]:
        """The trials of a setting."""
        return [r for r in self.rows if r.setting == setting]

    def answers(self, setting: int) -> Answers:
        """Who was right in a setting's trials."""
        return Answers(
            tuple(
                Answer(path=f"{i:06d}", label=-1, predicted=-1, correct=c == RIGHT, seed=r.seed, fold=r.fold)
                for r in self.of(setting)
                for i, c in enumerate(r.right)
                if c != ABSENT
            )
        )

    def mean(self, setting: int, number: str) -> float:
        """Over the setting's trials; NaN where none has it."""
        found = [r.numbers[number] for r in self.of(setting) if number in r.numbers]
        return sum(found) / len(found) if found else math.nan

    @property
    def chance(self) -> float:
        """The accuracy of guessing, NaN where it is not known."""
        found = [r.numbers[self.metric.chance] for r in self.rows if self.metric.chance in r.numbers]
        return sum(found) / len(found) if found else math.nan

    @property
    def baseline(self) -> int | None:
        """The setting that was not pre-trained."""
        return next((i for i, s in enumerate(self.settings) if s.baseline), None)

    def label(self, setting: int) -> str:
        """A setting's values as text, as `published` has them."""
        found = self.settings[setting]
        return BASELINE if found.baseline else ", ".join(str(v) for v in found.overrides.values())


def write_table(table: SweepTable, folder: Path) -> None:
    """Write both files; the same table gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    head = {"facts": asdict(table.facts), "settings": [asdict(s) for s in table.settings]}
    write_json(folder / f"{table.name}.json", head)
    names = sorted({n for r in table.rows for n in r.numbers})
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_FIXED[:3], *names, _FIXED[3]])
    for r in table.rows:
        numbers = [f"{r.numbers[n]:.6g}" if n in r.numbers else "" for n in names]
        writer.writerow([r.setting, r.seed, r.fold, *numbers, r.right])
    write_text(folder / f"{table.name}.csv", text.getvalue())


def read_table(folder: Path, name: str) -> SweepTable:
    """What `write_table` wrote; InputError where it is damaged or has no trial."""
    try:
        head = read_json(folder / f"{name}.json")
        with open(folder / f"{name}.csv", newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        table = SweepTable(
            name=name,
            facts=Facts(**head["facts"]),
            settings=tuple(Setting(**s) for s in head["settings"]),
            rows=tuple(_row(line) for line in lines),
        )
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise InputError(f"{folder / name}: expected the two files of an exported sweep, got: {e}") from e
    if not table.rows:
        raise InputError(f"{folder / name}.csv: expected a line a trial, got none")
    return table


def names_in(folder: Path) -> list[str]:
    """The sweeps whose tables lie in a folder, sorted."""
    return sorted(p.stem for p in folder.glob("*.json"))


def right_of(answers: Answers, places: Mapping[str, int]) -> str:
    """One trial's answers as `Row.right`; `places` numbers the videos of the whole sweep."""
    said = [ABSENT] * len(places)
    for a in answers.rows:
        said[places[a.path]] = RIGHT if a.correct else WRONG
    return "".join(said)


def places_of(answers: Sequence[Answers]) -> dict[str, int]:
    """Every held-out video's number, in the order of paths."""
    return {p: i for i, p in enumerate(sorted({a.path for found in answers for a in found.rows}))}


def _row(line: Mapping[str, str]) -> Row:
    return Row(
        setting=int(line["setting"]),
        seed=int(line["seed"]),
        fold=int(line["fold"]),
        numbers={k: float(v) for k, v in line.items() if k not in _FIXED and v},
        right=line["right"],
    )
