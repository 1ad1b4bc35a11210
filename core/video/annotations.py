"""Lists of videos: every annotation format the official code bases read, with exact errors.

| format | line | from |
|---|---|---|
| `label` | `path label` | V1 pre-training and fine-tuning, V2 fine-tuning on videos |
| `start_total` | `path start total` (`path 0 -1`: the whole video) | V2 pre-training; unlabelled |
| `total_label` | `frame_dir total label` | V2 fine-tuning on raw frames |
| `ava` | `video_id,timestamp,x1,y1,x2,y2,action_id,person_id` | AVA 2.x (see `vmae.core.video.ava`) |

No header is needed. Separators are spaces, tabs or one comma; the path is everything before the numbers, so
it may hold spaces and any letters; quotation marks around a path (pandas writes them) are taken off. `start`
counts frames of a video from 0; in a folder of images it is the number in the name of the first image, as in
V2 (0: the first image, whatever its name). The lists of UCF101, HMDB51, Kinetics and SSv2 are read by
`vmae.core.video.index`, which writes the ones above.
"""

from __future__ import annotations

import os
import random
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from vmae.core.errors import InputError, nearest

AnnotationFormat = Literal["auto", "label", "start_total", "total_label", "ava"]
FORMATS: tuple[str, ...] = get_args(AnnotationFormat)
VIDEO_SUFFIXES = (
    ".mp4", ".avi", ".webm", ".mkv", ".mov", ".mpg", ".mpeg", ".m4v", ".ts", ".flv", ".wmv", ".3gp", ".ogv",
    ".gif", ".npy",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PersonBox:
    """A person in a key frame of AVA: `box` is `(x1, y1, x2, y2)` in shares of the frame's width and height,
    `actions` the ids (from 1) of everything they do, `person` their number within the video."""

    box: tuple[float, float, float, float]
    actions: tuple[int, ...]
    person: int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One line of a list. `label` is -1 where there is none.

    `start` and `num_frames` choose a stretch of the frames; `num_frames` None means to the end. `time_s`, in
    seconds on the list's clock, is the key frame that the clip is centred on, and `boxes` who is in it (AVA).
    """

    path: str
    label: int
    start: int = 0
    num_frames: int | None = None
    time_s: float | None = None
    boxes: tuple[PersonBox, ...] = ()


def read_annotations(
    csv: str | Path,
    data_root: str | Path | None = None,
    *,
    format: AnnotationFormat = "auto",
    rooted: bool = True,
) -> list[Sample]:
    """Read a list of videos.

    Args:
        csv: the list; see the module's table.
        data_root: folder that relative paths start from (default: the folder of the list).
        format: `auto` takes two columns as `path label`, and three as `path start total` where the path ends
            like a video or the last number is -1; three columns after a folder could mean two things and
            must be named. A list whose first line has AVA's eight columns is `ava`.
        rooted: False leaves paths as the list has them (AVA's are always those of the films found).

    Returns:
        One `Sample` per non-empty line, in the order of the file, paths made absolute or joined to the root.
        `ava`: one per key frame (see `vmae.core.video.ava.read_ava`).

    Raises:
        InputError: no such file, an empty file, or a line that does not fit (with its number).
    """
    csv = Path(csv)
    if format not in FORMATS:
        raise InputError(
            f"format: expected one of {', '.join(FORMATS)}, got '{format}'{nearest(format, FORMATS)}"
        )
    lines = read_lines(csv)
    root = Path(data_root) if data_root else csv.parent
    from vmae.core.video import ava

    if format == "ava" or (format == "auto" and lines and ava.looks_like_ava(lines[0][1])):
        return ava.read_ava(csv, root)
    samples: list[Sample] = []
    for where, line in lines:
        if not samples and re.fullmatch(r"(path|video|file\w*)[ ,\t]+label", line, re.IGNORECASE):
            continue
        sample = _parse(line, format, where)
        samples.append(_rooted(sample, root) if rooted else sample)
    if not samples:
        raise InputError(f"{csv}: expected at least one line 'path label', the file is empty")
    return samples


def read_lines(csv: str | Path, what: str = "list of videos") -> list[tuple[str, str]]:
    """The non-empty lines of a list, stripped, each with where it stands (`train.csv:3`).

    Raises:
        InputError: no such file, a folder, or no UTF-8 text.
    """
    try:
        text = Path(csv).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{csv}: expected a {what}, found no such file") from None
    except IsADirectoryError:
        raise InputError(f"{csv}: expected a {what}, got a folder") from None
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"{csv}: expected a readable UTF-8 {what}, got {e}") from None
    # Not splitlines(): a path may hold characters that it takes for line ends (a form feed, U+2028).
    return [(f"{csv}:{n}", line.strip()) for n, line in enumerate(text.split("\n"), 1) if line.strip()]


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
            from vmae.core.video import ava

            lines += ava.ava_rows(s)
        elif s.start == 0 and s.num_frames is None:
            lines.append(f"{path} {s.label}\n")
        elif s.label < 0:
            lines.append(f"{path} {s.start} {-1 if s.num_frames is None else s.num_frames}\n")
        elif s.start == 0:
            lines.append(f"{path} {s.num_frames} {s.label}\n")
        else:
            raise InputError(f"{csv}: no format holds a label and a start frame: {s}")
    temporary = csv.with_name(f".{csv.name}.{os.getpid()}.tmp")
    try:
        text = "".join(lines).encode()
    except UnicodeEncodeError as e:
        line = e.object[: e.start].count("\n") + 1
        raise InputError(
            f"{csv}:{line}: a path that is no UTF-8 cannot be listed: {lines[line - 1]!r}"
        ) from None
    temporary.write_bytes(text)
    os.replace(temporary, csv)


def subset(samples: list[Sample], share: float, seed: int) -> list[Sample]:
    """A share of the list: of every label alike (at least one each), in the list's order.

    The draw depends on `seed` alone, so a smaller share's samples are among a larger one's.
    """
    if share >= 1:
        return list(samples)
    rng = random.Random(f"vmae-subset-{seed}")
    by_label: dict[int, list[int]] = {}
    for index, sample in enumerate(samples):
        by_label.setdefault(sample.label, []).append(index)
    kept: list[int] = []
    for label in sorted(by_label):
        indices = by_label[label]
        rng.shuffle(indices)
        kept += indices[: max(1, round(len(indices) * share))]
    return [samples[i] for i in sorted(kept)]


def num_classes(samples: list[Sample]) -> int:
    """One more than the largest label; 0 where no sample has a label."""
    return max((s.label for s in samples), default=-1) + 1


_ONE = re.compile(r"^(?P<path>.*?\S)(?:[ \t]+|[ \t]*,[ \t]*)(?P<a>[+-]?\d+)$")
_TWO = re.compile(
    r"^(?P<path>.*?\S)(?:[ \t]+|[ \t]*,[ \t]*)(?P<a>[+-]?\d+)(?:[ \t]+|[ \t]*,[ \t]*)(?P<b>[+-]?\d+)$"
)


def _parse(line: str, format: AnnotationFormat, where: str) -> Sample:
    one, two = _ONE.match(line), _TWO.match(line)
    if one is None:
        raise InputError(f"{where}: expected 'path label' with an integer label, got '{line}'")
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
        return Sample(path=_unquoted(one["path"]), label=label)
    if two is None:
        names = "path start total" if format == "start_total" else "frame_dir total label"
        raise InputError(f"{where}: expected '{names}', got '{line}'")
    a, b = int(two["a"]), int(two["b"])
    if format == "start_total":
        if a < 0 or b < -1 or b == 0:
            raise InputError(
                f"{where}: expected a start of 0 or more and a total of 1 or more or -1, got {a} {b}"
            )
        return Sample(path=_unquoted(two["path"]), label=-1, start=a, num_frames=None if b == -1 else b)
    if a < 1 or b < 0:
        raise InputError(f"{where}: expected a total of 1 or more and a label of 0 or more, got {a} {b}")
    return Sample(path=_unquoted(two["path"]), label=b, num_frames=a)


def _unquoted(path: str) -> str:
    whole = re.fullmatch(r'"((?:[^"]|"")+)"', path)
    return path if whole is None else whole[1].replace('""', '"')


def _quoted(path: str) -> str:
    """A path as a list may hold it: in quotes where it would be read as another one without."""
    if path == path.strip() and path == _unquoted(path) and not re.search(r"[ \t,][+-]?\d+$", path):
        return path
    return '"' + path.replace('"', '""') + '"'


def _rooted(sample: Sample, root: Path) -> Sample:
    if os.path.isabs(sample.path):
        return sample
    return replace(sample, path=str(root / sample.path))
