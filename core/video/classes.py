"""Names of classes: the numbers of two lists mean the same classes only where their names say so.

`classes.txt` beside a list names its labels, a line each (line 1 is label 0); a list can also have the names
themselves, which are then numbered in the order of `classes.txt`, else sorted. A checkpoint carries the names
of the list that it was trained on. Where both are known labels are mapped by name; where one is not, they are
taken by number.
"""

from __future__ import annotations

import functools
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vmae.core.errors import InputError, nearest
from vmae.core.video.samples import VIDEO_SUFFIXES, Sample, num_classes, read_lines

CLASSES = "classes.txt"


def class_names(csv: str | Path) -> list[str]:
    """The names of a list's labels, by label: those in `classes.txt` beside it, else those on its lines,
    sorted; empty where it has neither."""
    path = Path(csv).with_name(CLASSES)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return _names_on_lines(csv)
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"{path}: expected a readable UTF-8 list of names, got {e}") from None
    names = [line.strip() for line in text.split("\n")]
    while names and not names[-1]:
        names.pop()
    return names


def split_named(line: str) -> tuple[str, str] | None:
    """`(path, name)` of a line whose label is a name; None where it is none.

    The name is what follows the last comma or tab, or the blank after a path that ends like a video.
    """
    match = _BY_COMMA.match(line) or _BY_SUFFIX.match(line)
    if match is None or _NUMBER.fullmatch(match["name"]) or match["name"].lower().endswith(VIDEO_SUFFIXES):
        return None
    return match["path"], match["name"]


_BY_COMMA = re.compile(r"^(?P<path>.*\S)[ \t]*[,\t][ \t]*(?P<name>[^,\t]*\S)$")
_BY_SUFFIX = re.compile(
    rf"^(?P<path>.*(?:{'|'.join(map(re.escape, VIDEO_SUFFIXES))})\"?)[ \t]+(?P<name>\S.*)$", re.IGNORECASE
)
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([ \t]+[+-]?\d+)?")
HEADER = re.compile(r"(path|video|file\w*)[ ,\t]+(label|class)", re.IGNORECASE)


def _names_on_lines(csv: str | Path) -> list[str]:
    """The different names on the lines of a list with names, sorted; empty for any other list."""
    names: set[str] = set()
    if Path(csv).suffix.lower() == ".json":
        return []
    try:
        lines = read_lines(csv)
    except InputError:
        return []
    for number, (_, line) in enumerate(lines):
        found = split_named(line)
        if found is None or HEADER.fullmatch(line):
            if number:
                return []
            continue
        names.add(found[1])
    return sorted(names)


def label_of(name: str, names: Sequence[str], where: str) -> int:
    """The number of a class by its name, capitals, blanks, `_` and `-` apart; InputError where it is none."""
    alike = [i for i, known in enumerate(names) if known == name]
    alike = alike or [i for i, known in enumerate(names) if _plain(known) == _plain(name)]
    if len(alike) != 1:
        raise InputError(
            f"{where}: expected one of the {len(names)} classes of {CLASSES}, got '{name}'"
            f"{nearest(name, list(names))}"
        )
    return alike[0]


def names_of(csv: str | Path, samples: Sequence[Sample]) -> list[str]:
    """`class_names` of a list, where there is one for each of its labels; else none."""
    names = class_names(csv)
    return names if len(names) >= num_classes(samples) else []


def by_name(samples: Sequence[Sample], names: Sequence[str], onto: Sequence[str], where: str) -> list[Sample]:
    """The samples with the labels that their classes have in `onto`.

    Names are the same where they differ in capitals, blanks, `_` or `-` alone. Unlabelled samples stay. By
    number where either has no names (or those that Transformers makes up, `LABEL_0`).

    Args:
        names: of the samples' labels.
        onto: the names that are mapped to, of a model or another list.
        where: the list, for errors.

    Raises:
        InputError: a class of the samples that is not among `onto`, or more than once.
    """
    if not names or not onto or all(re.fullmatch(r"LABEL_\d+", n) for n in onto) or list(names) == list(onto):
        return list(samples)
    exact = {name: i for i, name in enumerate(onto)}
    alike: dict[str, list[int]] = {}
    for i, name in enumerate(onto):
        alike.setdefault(_plain(name), []).append(i)
    number: dict[int, int] = {}
    counts = Counter(s.label for s in samples if s.label >= 0)
    for label in sorted(counts):
        name = names[label] if label < len(names) else str(label)
        places = [exact[name]] if name in exact else alike.get(_plain(name), [])
        if len(places) != 1:
            raise InputError(
                f"{where}: expected classes that the model or the training list has, got '{name}' "
                f"({counts[label]} videos){nearest(name, list(onto))}; it has {_few(onto)}"
            )
        number[label] = places[0]
    moved = [f"{label} is {to} ({onto[to]})" for label, to in number.items() if label != to]
    if moved:
        _say(
            f"{where}: classes matched by name, not by number: {', '.join(moved[:5])}"
            + ", ..." * (len(moved) > 5)
        )
    return [replace(s, label=number[s.label]) if s.label >= 0 else s for s in samples]


@functools.cache
def _say(line: str) -> None:
    """Once in a process, however often a list is read."""
    logging.getLogger("vmae").warning(line)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFC", name)).strip().casefold()


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f", ... ({len(names)} in all)" if len(names) > 8 else "")
