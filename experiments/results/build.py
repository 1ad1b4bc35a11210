"""From tables to `docs/results`: a page and a picture a question, and the index."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vmae.core.errors import InputError
from vmae.core.files import write_text
from vmae.experiments.results import questions
from vmae.experiments.results.figures import monitors_figure, question_figure, save
from vmae.experiments.results.pages import index_page, monitors_page, question_page
from vmae.experiments.results.ranks import Points, Rank, points_of, ranks
from vmae.experiments.results.table import SweepTable, names_in, read_table

DATA = "data"
"""Where the tables lie in the pages' folder."""


@dataclass(frozen=True, kw_only=True)
class Built:
    """What was written."""

    answered: dict[str, dict[str, str]]
    """By question and set: on how much."""
    left_out: tuple[str, ...]
    """Tables whose names say no question."""


def build_results(tables: Path, out: Path) -> Built:
    """Write the pages of every question that the tables answer; the same tables give the same bytes.

    The tables and strips themselves are kept in `out`/data. Raises InputError where `tables` has none.
    """
    names = names_in(tables)
    found: dict[str, dict[str, SweepTable]] = {}
    for name in names:
        asked = questions.of_sweep(name)
        if asked is not None:
            found.setdefault(asked[0].name, {})[asked[1].name] = read_table(tables, name)
    if not found:
        raise InputError(f"{tables}: expected tables of `vmae results export`, found none")
    (out / DATA).mkdir(parents=True, exist_ok=True)
    answered: dict[str, dict[str, str]] = {}
    for question in questions.ALL.values():
        if question.name not in found:
            continue
        own = _in_order(found[question.name])
        strips = [on for on in own if (tables / f"{question.name}-{on}.png").is_file()]
        for on in own:
            _keep(tables, out, f"{question.name}-{on}", strip=on in strips)
        save(question_figure(question, own), out / f"{question.name}.png")
        write_text(out / f"{question.name}.md", question_page(question, own, strips))
        answered[question.name] = {on: _size(table) for on, table in own.items()}
    answered |= _monitors(found, out)
    write_text(out / "README.md", index_page(answered))
    left = tuple(n for n in names if questions.of_sweep(n) is None)
    return Built(answered=answered, left_out=left)


def _monitors(found: Mapping[str, Mapping[str, SweepTable]], out: Path) -> dict[str, dict[str, str]]:
    """The page of the question that all sweeps together answer, for the sets with enough settings."""
    question = next(q for q in questions.ALL.values() if not q.sweep)
    by_set: dict[str, list[SweepTable]] = {}
    for own in found.values():
        for on, table in own.items():
            by_set.setdefault(on, []).append(table)
    points: dict[str, Points] = {}
    ordered: dict[str, list[Rank]] = {}
    for on in _in_order({on: tables[0] for on, tables in by_set.items()}):
        made = points_of(by_set[on])
        best = ranks(made)
        if best:
            points[on], ordered[on] = made, best
    if not points:
        return {}
    save(monitors_figure(points, ordered), out / f"{question.name}.png")
    write_text(out / f"{question.name}.md", monitors_page(question, points, ordered))
    return {question.name: {on: f"{len(made.accuracy)} pre-trainings" for on, made in points.items()}}


def _size(table: SweepTable) -> str:
    """`3 seeds, 360 videos`."""
    seeds = len(table.seeds)
    return f"{seeds} seed{'s' * (seeds != 1)}, {table.videos} videos"


def _in_order(own: Mapping[str, SweepTable]) -> dict[str, SweepTable]:
    """By set, the known ones first."""
    known = [on for on in questions.SETS if on in own]
    return {on: own[on] for on in [*known, *sorted(set(own) - set(known))]}


def _keep(tables: Path, out: Path, name: str, *, strip: bool) -> None:
    """The table's files and its strip, beside the pages."""
    for suffix in (".json", ".csv", *([".png"] if strip else [])):
        _copy(tables / f"{name}{suffix}", out / DATA / f"{name}{suffix}")


def _copy(source: Path, target: Path) -> None:
    if source.resolve() != target.resolve():
        shutil.copyfile(source, target)
