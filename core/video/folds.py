"""Which videos may not be parted (groups), and folds that keep them together.

Clips of one session, scene or person share what is easier to learn than their class. A list split at random
then tests memory: groups stay whole, in one fold, and every class is spread over the folds as evenly as that
allows.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from vmae.core.errors import InputError, nearest
from vmae.core.files import write_text
from vmae.core.video.index import DatasetIndex
from vmae.core.video.samples import Sample


def find_groups(spec: str, samples: Sequence[Sample], table: str | Path | None = None) -> list[str]:
    """The group of each video: `spec` is a column of `table`, a csv with the columns `path` and `group`, or a
    regular expression on the paths, the first of these that it can be.

    Raises InputError as `groups_by_pattern` and `read_column`.
    """
    if table is not None and spec in table_of(table)[1]:
        return read_column(table, samples, spec)
    if Path(spec).is_file():
        return read_column(spec, samples, "group")
    return groups_by_pattern(spec, samples)


def groups_by_pattern(pattern: str, samples: Sequence[Sample]) -> list[str]:
    """The part of each path that a regular expression finds: its brackets, joined, or all that it matches.

    Raises InputError for a pattern that is none and for a path that it does not match.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as e:
        raise InputError(f"--groups: expected a column, a file or a pattern, got '{pattern}' ({e})") from None
    groups = []
    for sample in samples:
        match = compiled.search(sample.path)
        if match is None:
            raise InputError(f"--groups: expected '{pattern}' to match every path, got {sample.path}")
        groups.append("|".join(g or "" for g in match.groups()) or match[0])
    return groups


def read_folds(path: str | Path, samples: Sequence[Sample]) -> list[int]:
    """The fold of each video from a csv that `write_folds` wrote, or any with the columns `path` and `fold`.

    A negative fold, and no fold, is -1: a video that takes no part.
    Raises InputError as `read_column`, and for a fold that is no integer.
    """

    def number(text: str) -> int:
        try:
            return max(-1, int(text)) if text.strip() else -1
        except ValueError:
            raise InputError(f"{path}: expected a whole number in the column fold, got '{text}'") from None

    return [number(text) for text in read_column(path, samples, "fold")]


def read_column(path: str | Path, samples: Sequence[Sample], column: str) -> list[str]:
    """One column of a csv with a header and a column `path` (relative: to its folder), by each video's path.

    Raises InputError where there is no such column or a video has no line.
    """
    values, names = table_of(path)
    if column not in names:
        raise InputError(
            f"{path}: expected a column '{column}'{nearest(column, names)}, got {','.join(names)}"
        )
    found = []
    for sample in samples:
        row = values.get(os.path.realpath(sample.path))
        if row is None:
            raise InputError(f"{path}: expected a line for {sample.path}, found none")
        found.append(row[column])
    return found


def table_of(path: str | Path) -> tuple[dict[str, dict[str, str]], list[str]]:
    """A csv with a header as `{real path: row}` in the order of its lines, and the header's names.

    Raises InputError where there is no file or no column `path`.
    """
    path = Path(path)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows, names = list(reader), list(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"{path}: expected a csv with a header, got {e}") from None
    if "path" not in names:
        raise InputError(f"{path}: expected a column 'path', got {','.join(names) or 'an empty file'}")
    return {os.path.realpath(path.parent / row["path"]): row for row in rows}, names


def index_table(path: str | Path) -> DatasetIndex:
    """A csv with a header and the columns `path` and `label` or `class` (a name) as one list of videos.

    Labels come from `label` where there is one; classes are named by `class`, in the order of their labels,
    or of their names where there are none. Lines without either are left out.
    Raises InputError for other columns, labels that are no numbers and a class with two labels.
    """
    rows, names = table_of(path)
    if not {"label", "class"} & set(names):
        raise InputError(f"{path}: expected a column 'label' or 'class', got {','.join(names)}")
    numbered = "label" in names
    given = [r for r in rows.values() if r["label" if numbered else "class"].strip()]
    if not numbered:
        order = sorted({r["class"] for r in given})
        label_of = {name: i for i, name in enumerate(order)}
    samples: list[Sample] = []
    name_of: dict[int, str] = {}
    for place, row in rows.items():
        text = row["label" if numbered else "class"].strip()
        if not text:
            continue
        try:
            label = int(text) if numbered else label_of[row["class"]]
        except ValueError:
            raise InputError(f"{path}: expected a whole number in the column label, got '{text}'") from None
        if label < 0:
            continue
        name = row.get("class") or str(label)
        if name_of.setdefault(label, name) != name:
            raise InputError(
                f"{path}: expected one class for label {label}, got '{name_of[label]}' and '{name}'"
            )
        samples.append(Sample(path=place, label=label))
    classes = [name_of.get(i, str(i)) for i in range(max(name_of, default=-1) + 1)]
    return DatasetIndex(splits={"train": samples, "val": [], "test": []}, classes=classes)


def make_folds(labels: Sequence[int], groups: Sequence[str], folds: int, *, seed: int = 0) -> list[int]:
    """A fold 0..folds-1 for each video: groups whole, classes as even as that allows.

    Greedy, the groups that are hardest to place first (the largest): each goes where the counts of its
    classes over the folds, each count as a share of its class, are then the most even (their sum of
    squares is smallest), of equals to the fold with the fewest videos. As scikit-learn's
    `StratifiedGroupKFold`, which compares standard deviations. Equal inputs give equal folds; `seed` decides
    between equals.

    Raises InputError for fewer than two folds or fewer groups than folds.
    """
    names = sorted(set(groups))
    if folds < 2:
        raise InputError(f"--folds: expected 2 or more, got {folds}")
    if len(names) < folds:
        raise InputError(f"--folds: expected at most as many folds as groups ({len(names)}), got {folds}")
    classes = sorted(set(labels))
    class_of = {c: i for i, c in enumerate(classes)}
    number_of = {g: i for i, g in enumerate(names)}
    counts = np.zeros((len(names), len(classes)))
    for label, group in zip(labels, groups, strict=True):
        counts[number_of[group], class_of[label]] += 1
    shares = counts / counts.sum(0)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-counts.sum(1)[order], kind="stable")]
    have, size, fold_of = np.zeros((folds, len(classes))), np.zeros(folds), np.zeros(len(names), np.int64)
    for place, group in enumerate(order):
        # What the sum of squares grows by where this group is added, for each fold at once.
        grown = (shares[group] * (2 * have + shares[group])).sum(1)
        # As many groups are left as folds are empty: the empty ones get them.
        if len(order) - place <= int((size == 0).sum()):
            grown[size > 0] = np.inf
        best = np.flatnonzero(np.isclose(grown, grown.min()))
        chosen = best[np.argmin(size[best])]
        fold_of[group] = chosen
        have[chosen] += shares[group]
        size[chosen] += counts[group].sum()
    return [int(fold_of[number_of[g]]) for g in groups]


def write_folds(
    path: str | Path,
    samples: Sequence[Sample],
    groups: Sequence[str],
    folds: Sequence[int],
    *,
    shown: Callable[[str], str] = os.path.abspath,
) -> None:
    """Write `path,label,group,fold`; `shown` makes a path as the list has it."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "label", "group", "fold"])
    for sample, group, fold in zip(samples, groups, folds, strict=True):
        writer.writerow([shown(sample.path), sample.label, group, fold])
    write_text(Path(path), text.getvalue())


def describe_folds(labels: Sequence[int], groups: Sequence[str], folds: Sequence[int]) -> list[str]:
    """A line a fold: videos, groups and the smallest and largest number of a class."""
    lines = []
    known = sorted({c for c in labels if c >= 0})
    for fold in sorted({f for f in folds if f >= 0}):
        inside = [i for i, f in enumerate(folds) if f == fold]
        counts = [sum(labels[i] == c for i in inside) for c in known]
        lines.append(
            f"fold {fold}: {len(inside)} videos, {len({groups[i] for i in inside})} groups, "
            f"{min(counts, default=0)} to {max(counts, default=0)} of a class"
        )
    return lines


TABLES = ("folds.csv", "groups.csv")
"""Files beside a list in which its groups are looked for."""


def groups_beside(listed: str | Path, samples: Sequence[Sample]) -> tuple[list[str], Path] | None:
    """The group of each sample, and the table beside the list that names them; None without one."""
    for name in TABLES:
        table = Path(listed).with_name(name)
        if table.is_file() and "group" in table_of(table)[1]:
            return read_column(table, samples, "group"), table
    return None
