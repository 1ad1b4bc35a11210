"""AVA 2.x: who does what in the key frames of films (action detection).

A row of the list is one action of one person in one key frame:

    video_id,timestamp,x1,y1,x2,y2,action_id,person_id

The timestamp counts seconds of the film, the box is in shares of the frame from its upper left corner, the
ids of actions count from 1. There is no header. Beside the lists the data set has a label map (`.pbtxt`) and
lists of excluded time stamps (`video_id,timestamp`).

What is kept: every row, grouped by key frame (`Sample.time_s`) and by person and box (`Sample.boxes`), in the
order of the file. A clip is centred on its key frame; `vmae.core.video.boxes` moves boxes as it is cut.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from vmae.core.errors import InputError
from vmae.core.video.samples import VIDEO_SUFFIXES, PersonBox, Sample, read_lines

_COLUMNS = "video_id,timestamp,x1,y1,x2,y2,action_id,person_id"
_ROW = re.compile(
    r"(?P<video>.*\S)\s*,\s*(?P<time>\d+(?:\.\d+)?)"
    r"\s*,\s*(?P<x1>[^,]+?)\s*,\s*(?P<y1>[^,]+?)\s*,\s*(?P<x2>[^,]+?)\s*,\s*(?P<y2>[^,]+?)"
    r"\s*,\s*(?P<action>\d+)\s*,\s*(?P<person>\d+)"
)
_NUMBER = re.compile(r"[+-]?(?:\d*\.\d+|\d+)|nan|inf")


def looks_like_ava(line: str) -> bool:
    """Whether a line has AVA's eight columns, whatever its box is: no list of paths has four numbers with a
    fraction among them, or each 0 or 1, before its last two."""
    row = _ROW.fullmatch(line)
    if row is None:
        return False
    box = [row[k] for k in ("x1", "y1", "x2", "y2")]
    return all(map(_NUMBER.fullmatch, box)) and ("." in "".join(box) or set(box) <= {"0", "1"})


def read_ava(
    csv: str | Path, root: str | Path, *, excluded: Iterable[tuple[str, float]] = ()
) -> list[Sample]:
    """One `Sample` per key frame of the list, with its time, boxes and actions, in the order of the file.

    Args:
        csv: the list.
        root: folder of the films: `ID.mp4` (or another suffix of a video) anywhere below. One that is not
            there gets the path `root/ID`, so that `vmae data check` names it.
        excluded: `(video_id, timestamp)` to leave out (see `read_excluded`).

    Raises:
        InputError: no list, an empty one, a line that does not fit (with its number), or two films of one id.
    """
    left_out = set(excluded)
    frames: dict[tuple[str, float], dict[tuple[int, tuple[float, ...]], list[int]]] = {}
    for where, line in read_lines(csv):
        row = _ROW.fullmatch(line)
        if row is None:
            raise InputError(f"{where}: expected '{_COLUMNS}', got '{line}'")
        try:
            x1, y1, x2, y2 = box = tuple(float(row[k]) for k in ("x1", "y1", "x2", "y2"))
        except ValueError:
            raise InputError(f"{where}: expected numbers in x1,y1,x2,y2, got '{line}'") from None
        if not (0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1):
            raise InputError(
                f"{where}: expected a box 0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1 in shares of the frame, "
                f"got {x1:g},{y1:g},{x2:g},{y2:g}"
            )
        action = int(row["action"])
        if action < 1:
            raise InputError(f"{where}: expected an action_id of 1 or more, got {action}")
        key = (row["video"], float(row["time"]))
        if key in left_out:
            continue
        actions = frames.setdefault(key, {}).setdefault((int(row["person"]), box), [])
        if action not in actions:
            actions.append(action)
    if not frames:
        raise InputError(f"{csv}: expected at least one line '{_COLUMNS}', got none that is not excluded")
    films = find_films(root, {video for video, _ in frames})
    return [
        Sample(
            path=films[video],
            label=-1,
            time_s=time_s,
            boxes=tuple(
                PersonBox(box=box, actions=tuple(actions), person=person)  # type: ignore[arg-type]
                for (person, box), actions in people.items()
            ),
        )
        for (video, time_s), people in frames.items()
    ]


def find_films(root: str | Path, ids: Iterable[str]) -> dict[str, str]:
    """Id -> path of the one video of that name below `root`; `root/ID` where there is none."""
    wanted = set(ids)
    films: dict[str, str] = {}
    for parent, folders, names in os.walk(root, followlinks=True):
        folders.sort()
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if stem not in wanted or suffix.lower() not in VIDEO_SUFFIXES:
                continue
            path = os.path.join(parent, name)
            if stem in films:
                raise InputError(f"{root}: expected one video of the id {stem}, got {films[stem]} and {path}")
            films[stem] = path
    return {i: films.get(i, str(Path(root) / i)) for i in wanted}


def ava_rows(sample: Sample) -> list[str]:
    """The rows of a key frame, one per person and action, as `read_ava` reads them."""
    assert sample.time_s is not None
    video = Path(sample.path)
    name = video.stem if video.suffix.lower() in VIDEO_SUFFIXES else video.name
    # AVA writes whole seconds with four digits.
    time = f"{sample.time_s:04.0f}" if sample.time_s.is_integer() else f"{sample.time_s!r}"
    rows = []
    for b in sample.boxes:
        box = ",".join(f"{v:.3f}" if round(v, 3) == v else repr(v) for v in b.box)
        rows += [f"{name},{time},{box},{action},{b.person}\n" for action in b.actions]
    return rows


def read_excluded(csv: str | Path) -> set[tuple[str, float]]:
    """`(video_id, timestamp)` of a list of excluded time stamps; an empty file excludes none.

    Raises:
        InputError: no such file, or a line that is not `video_id,timestamp`.
    """
    found = set()
    for where, line in read_lines(csv, "list of time stamps"):
        row = re.fullmatch(r"(.*\S)\s*,\s*(\d+(?:\.\d+)?)", line)
        if row is None:
            raise InputError(f"{where}: expected 'video_id,timestamp', got '{line}'")
        found.add((row[1], float(row[2])))
    return found


def read_label_map(pbtxt: str | Path) -> dict[int, str]:
    """Action id -> name from AVA's label map: `item { name: "..." id: N }` (2.2) or
    `label { name: "..." label_id: N }` (2.1).

    Raises:
        InputError: no such file, an entry without a name or id, an id that comes twice, or no entry.
    """
    text = "\n".join(line for _, line in read_lines(pbtxt, "label map"))
    names: dict[int, str] = {}
    for entry in re.finditer(r"\b(?:item|label)\s*\{([^}]*)\}", text):
        name = re.search(r'\bname\s*:\s*"([^"]*)"', entry[1])
        number = re.search(r"\b(?:label_id|id)\s*:\s*(\d+)", entry[1])
        if name is None or number is None:
            got = " ".join(entry[0].split())
            raise InputError(f"{pbtxt}: expected a name and an id in every entry, got '{got}'")
        if int(number[1]) in names:
            raise InputError(f"{pbtxt}: expected every id once, got {number[1]} twice")
        names[int(number[1])] = name[1]
    if not names:
        raise InputError(f"{pbtxt}: expected entries 'item {{ name: ... id: ... }}', got none")
    return names
