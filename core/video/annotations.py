"""Lists of videos: every annotation format the official code bases read, with exact errors.

| format | line | from |
|---|---|---|
| `label` | `path label` (`path -1`: no label) | V1 pre-training and fine-tuning, V2 fine-tuning on videos |
| `label` | `path,name`, or `path name` for files: names of classes | lists made by hand |
| `label` | `path` alone on every line: no labels | `find`, `ls` |
| `start_total` | `path start total` (`path 0 -1`: the whole video) | V2 pre-training; unlabelled |
| `total_label` | `frame_dir total label` | V2 fine-tuning on raw frames |
| `numbers` | `path value[;value...]`: numbers to be predicted | lists made by hand |
| `labels` | `path label[;label...]` (`path -`: none of them): several labels | lists made by hand |
| `ava` | `video_id,timestamp,x1,y1,x2,y2,action_id,person_id` | AVA 2.x (see `vmae.core.video.ava`) |
| `coco` | a `.json` file of images and annotations | AVA of the official detection repository (`coco`) |

Which of these a list has its first line says (`numbers` and `labels` must be named). Names are numbered in
the order of `classes.txt` beside the list, else sorted. No header is needed. Separators are spaces, tabs or
one comma; the path is everything before the numbers, so it may hold spaces and any letters; quotation marks
around a path (pandas writes them) are taken off. `start` counts frames of a video from 0; in a folder of
images it is the number in the name of the first image, as in V2 (0: the first image, whatever its name). The
lists of UCF101, HMDB51, Kinetics and SSv2 are read by `vmae.core.video.index`, which writes the ones above.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from vmae.core.errors import InputError, nearest
from vmae.core.files import write_bytes
from vmae.core.video.ava import ava_rows, looks_like_ava, read_ava
from vmae.core.video.classes import HEADER, class_names, label_of, split_named
from vmae.core.video.coco import read_coco
from vmae.core.video.identity import canonical
from vmae.core.video.samples import MAX_LABEL, VIDEO_SUFFIXES, Sample, read_lines

AnnotationFormat = Literal["auto", "label", "start_total", "total_label", "numbers", "labels", "ava", "coco"]
FORMATS: tuple[str, ...] = get_args(AnnotationFormat)


def read_annotations(
    csv: str | Path,
    data_root: str | Path | None = None,
    *,
    format: AnnotationFormat = "auto",
    rooted: bool = True,
    excluded: Iterable[tuple[str, float]] = (),
) -> list[Sample]:
    """Read a list of videos.

    Args:
        csv: the list; see the module's table.
        data_root: folder that relative paths start from (default: the folder of the list).
        format: `auto` takes two columns as `path label`, and three as `path start total` where the path ends
            like a video or the last number is -1; three columns after a folder could mean two things and
            must be named. A list whose first line has AVA's eight columns is `ava`, a `.json` file `coco`.
        rooted: False leaves paths as the list has them (AVA's are always those of the films found).
        excluded: `(video_id, timestamp)` of key frames to leave out (`vmae.core.video.ava.read_excluded`).

    Returns:
        One `Sample` per non-empty line, in the order of the file, paths in their `canonical` form.
        `ava`, `coco`: one per key frame (see `vmae.core.video.ava.read_ava`).

    Raises:
        InputError: no such file, an empty file, or a line that does not fit (with its number).
    """
    csv = Path(csv)
    if format not in FORMATS:
        raise InputError(
            f"format: expected one of {', '.join(FORMATS)}, got '{format}'{nearest(format, FORMATS)}"
        )
    root = Path(data_root) if data_root else csv.parent
    if format == "coco" or (format == "auto" and csv.suffix.lower() == ".json"):
        return read_coco(csv, canonical(str(root)), excluded=excluded)
    lines = read_lines(csv)
    if format == "ava" or (format == "auto" and lines and looks_like_ava(lines[0][1])):
        return read_ava(csv, canonical(str(root)), excluded=excluded)
    if lines and HEADER.fullmatch(lines[0][1]):
        del lines[0]
    if not lines:
        raise InputError(f"{csv}: expected at least one line 'path label', the file is empty")
    if format in ("numbers", "labels"):
        several = [_several(line, format, where) for where, line in lines]
        if len(counts := {len(s.values) for s in several}) > 1:
            raise InputError(f"{csv}: expected as many values on every line, got {sorted(counts)}")
        return [_rooted(s, root) for s in several] if rooted else several
    kind = _kind(lines[0][1], root) if format in ("auto", "label") else "numbers"
    if kind == "names":
        samples = _named(lines, csv)
    elif kind == "paths":
        samples = [_bare(line, where) for where, line in lines]
    else:
        samples = [_parse(line, format, where) for where, line in lines]
    return [_rooted(sample, root) for sample in samples] if rooted else samples


_SEVERAL = re.compile(r"(?P<path>.*\S)(?:[ \t]+|[ \t]*,[ \t]*)(?P<values>[^ \t,]+)")


def _several(line: str, format: str, where: str) -> Sample:
    """A line of `numbers` or `labels`."""
    row = _SEVERAL.fullmatch(line)
    wanted = "path value[;value...]" if format == "numbers" else "path label[;label...] (- for none)"
    if row is None:
        raise InputError(f"{where}: expected '{wanted}', got '{line}'")
    path, parts = _unquoted(row["path"]), row["values"].split(";")
    if format == "labels":
        if row["values"] == "-":
            return Sample(path=path, label=-1, labels=())
        if not all(p.isdecimal() and int(p) <= MAX_LABEL for p in parts):
            got = row["values"]
            raise InputError(f"{where}: expected labels 0 to {MAX_LABEL:,} in '{wanted}', got '{got}'")
        return Sample(path=path, label=-1, labels=tuple(sorted({int(p) for p in parts})))
    try:
        values = tuple(float(p) for p in parts)
    except ValueError:
        values = (math.nan,)
    if not all(map(math.isfinite, values)):
        raise InputError(f"{where}: expected finite numbers in '{wanted}', got '{row['values']}'")
    return Sample(path=path, label=-1, values=values)


def _kind(line: str, root: Path) -> Literal["numbers", "names", "paths"]:
    """What a list has beside its paths, by its first line."""
    if _ONE.match(line) is not None:
        return "numbers"
    path = _unquoted(line)
    if path.lower().endswith(VIDEO_SUFFIXES) or (root / path).is_dir():
        return "paths"
    return "names" if split_named(line) is not None else "numbers"


def _named(lines: list[tuple[str, str]], csv: Path) -> list[Sample]:
    found: list[tuple[str, str, str]] = []
    for where, line in lines:
        parts = split_named(line)
        if parts is None:
            raise InputError(f"{where}: expected a path and the name of a class as on line 1, got '{line}'")
        found.append((where, *parts))
    names = class_names(csv)
    return [
        Sample(path=_unquoted(path), label=label_of(name, names, where), class_name=name)
        for where, path, name in found
    ]


def _bare(line: str, where: str) -> Sample:
    if _ONE.match(line) is not None or split_named(line) is not None:
        raise InputError(f"{where}: expected a path alone as on line 1 (no labels), got '{line}'")
    return Sample(path=_unquoted(line), label=-1)


def write_annotations(csv: str | Path, samples: list[Sample]) -> None:
    """Write `path label` lines (`path start total` for unlabelled stretches, AVA's rows for key frames),
    atomically.

    Raises:
        InputError: a sample that no line can hold: a line break or bytes that are no UTF-8 in its path, a
            label with a start frame.
    """
    csv = Path(csv)
    csv.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for s in samples:
        if "\n" in s.path or "\r" in s.path:
            raise InputError(f"{csv}: a path with a line break cannot be listed: {s.path!r}")
        path = _quoted(s.path)
        if s.time_s is not None:
            lines += ava_rows(s)
        elif s.values or s.labels is not None:
            lines.append(f"{path} {';'.join(map(str, s.values or s.labels or '-'))}\n")
        elif s.class_name:
            lines.append(f"{path},{s.class_name}\n")
        elif s.start == 0 and s.num_frames is None:
            lines.append(f"{path} {s.label}\n")
        elif s.label < 0:
            lines.append(f"{path} {s.start} {-1 if s.num_frames is None else s.num_frames}\n")
        elif s.start == 0:
            lines.append(f"{path} {s.num_frames} {s.label}\n")
        else:
            raise InputError(f"{csv}: no format holds a label and a start frame: {s}")
    try:
        text = "".join(lines).encode()
    except UnicodeEncodeError as e:
        line = e.object[: e.start].count("\n") + 1
        raise InputError(
            f"{csv}:{line}: a path that is no UTF-8 cannot be listed: {lines[line - 1]!r}"
        ) from None
    write_bytes(csv, text)


_ONE = re.compile(r"^(?P<path>.*?\S)(?:[ \t]+|[ \t]*,[ \t]*)(?P<a>[+-]?\d+)$")
_TWO = re.compile(
    r"^(?P<path>.*?\S)(?:[ \t]+|[ \t]*,[ \t]*)(?P<a>[+-]?\d+)(?:[ \t]+|[ \t]*,[ \t]*)(?P<b>[+-]?\d+)$"
)


def _parse(line: str, format: AnnotationFormat, where: str) -> Sample:
    one, two = _ONE.match(line), _TWO.match(line)
    if one is None:
        raise InputError(
            f"{where}: expected 'path label' with an integer label, got '{line}'; without a label: "
            "'path -1' (a stretch of one: 'path start total', all of it 'path 0 -1')"
        )
    _require_digits(one["a"], where)
    if format == "auto":
        if two is None or _unquoted(one["path"]).lower().endswith(VIDEO_SUFFIXES):
            format = "label"
        elif int(two["b"]) == -1 or _unquoted(two["path"]).lower().endswith(VIDEO_SUFFIXES):
            format = "start_total"
        else:
            raise InputError(
                f"{where}: '{line}' could be 'frame_dir total label' or 'path start total': "
                "expected the format to be named (total_label or start_total), got auto"
            )
    if format == "label":
        label = int(one["a"])
        if label < -1:
            raise InputError(f"{where}: expected a label of 0 or more (-1: none), got {label}")
        if label > MAX_LABEL:
            raise InputError(f"{where}: expected a label of at most {MAX_LABEL:,}, got {label}")
        return Sample(path=_unquoted(one["path"]), label=label)
    if two is None:
        names = "path start total" if format == "start_total" else "frame_dir total label"
        raise InputError(f"{where}: expected '{names}', got '{line}'")
    _require_digits(two["a"], where)
    a, b = int(two["a"]), int(two["b"])
    if format == "start_total":
        if a < 0 or b < -1 or b == 0:
            raise InputError(
                f"{where}: expected a start of 0 or more and a total of 1 or more or -1, got {a} {b}"
            )
        return Sample(path=_unquoted(two["path"]), label=-1, start=a, num_frames=None if b == -1 else b)
    if a < 1 or b < 0:
        raise InputError(f"{where}: expected a total of 1 or more and a label of 0 or more, got {a} {b}")
    if b > MAX_LABEL:
        raise InputError(f"{where}: expected a label of at most {MAX_LABEL:,}, got {b}")
    return Sample(path=_unquoted(two["path"]), label=b, num_frames=a)


def _require_digits(number: str, where: str) -> None:
    if len(number) > 18:
        raise InputError(f"{where}: expected a label of at most {MAX_LABEL:,}, got {number[:40]}")


def _unquoted(path: str) -> str:
    whole = re.fullmatch(r'"((?:[^"]|"")+)"', path)
    return path if whole is None else whole[1].replace('""', '"')


def _quoted(path: str) -> str:
    """A path as a list may hold it: in quotes where it would be read as another one without."""
    if path == path.strip() and path == _unquoted(path) and not re.search(r"[ \t,][+-]?\d+$", path):
        return path
    return '"' + path.replace('"', '""') + '"'


def _rooted(sample: Sample, root: Path) -> Sample:
    return replace(sample, path=canonical(os.path.join(root, sample.path)))
