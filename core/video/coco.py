"""AVA as the official detection repository keeps it, and the people a detector found.

**Annotations** (MCG-NJU/VideoMAE-Action-Detection, AlphAction's `ava_*_v2.2.json`) are COCO-style: `images`
with `id`, `movie`, `timestamp` (seconds), `width`, `height`; `annotations` with `image_id`, `bbox`
(`x, y, width, height` in pixels) and `action_ids` (from 1).

**Proposals** are boxes of people with a score, from any person detector:

| file | what it holds |
|---|---|
| `.json` | COCO results: a list of `{image_id, bbox, score}`; the images are the annotations' |
| `.csv` | `video_id,timestamp,x1,y1,x2,y2[,action],score`, boxes in shares (SlowFast) |
| `.pkl` | `{"video_id,timestamp": array [K, 5]}` of `x1,y1,x2,y2,score` in shares (MMAction2) |

A pickle can run code as it is opened: one that holds anything but such arrays is refused.
"""

from __future__ import annotations

import csv
import json
import math
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vmae.core.errors import InputError
from vmae.core.video.ava import find_films
from vmae.core.video.boxes import check_boxes, clip_boxes, has_area, to_shares
from vmae.core.video.samples import PersonBox, Sample, read_lines

KeyFrame = tuple[str, float]
"""The id of a film and a time in seconds."""


class Image(NamedTuple):
    """A key frame of the annotations, its size in pixels."""

    movie: str
    time_s: float
    width: int
    height: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Proposals:
    """People found in key frames: for each, float64 [K, 5], `x1, y1, x2, y2` in shares of the frame and a
    score, from the highest score down."""

    people: dict[KeyFrame, np.ndarray]
    below: int
    """Boxes left out for their score."""
    empty: int
    """Boxes left out because nothing of them lies in the frame."""

    def without(self, samples: Iterable[Sample]) -> list[Sample]:
        """The key frames in which nobody was found."""
        return [s for s in samples if self.of(s) is None]

    def of(self, sample: Sample) -> np.ndarray | None:
        """The people of a key frame, [K, 5]; None where nobody was found."""
        assert sample.time_s is not None
        return self.people.get((Path(sample.path).stem, sample.time_s))


def read_coco(file: str | Path, root: str | Path, *, excluded: Iterable[KeyFrame] = ()) -> list[Sample]:
    """One `Sample` per key frame of the annotations that has a person, with its time, boxes and actions.

    `root` is the folder of the films (`MOVIE.mp4`, or a folder `MOVIE` of clips of a second each), `excluded`
    are key frames to leave out. Boxes that reach up to a pixel over the edge of the frame are cut there.

    Raises:
        InputError: no such file, no COCO-style JSON, or an annotation that does not fit (with its number).
    """
    content = _load(file)
    images = read_images(file, content)
    people: dict[Any, list[PersonBox]] = {}
    for k, row in enumerate(content.get("annotations", [])):
        where = f"{file}: annotations[{k}]"
        image = images.get(_value(row, "image_id", where))
        if image is None:
            raise InputError(f"{where}: expected the image_id of an image, got {row['image_id']!r}")
        box = _shares(_value(row, "bbox", where), image, where, slack=1.0)
        actions = _value(row, "action_ids", where)
        if not isinstance(actions, list) or not all(isinstance(a, int) and a > 0 for a in actions):
            raise InputError(f"{where}: expected action_ids from 1, got {actions!r}")
        if actions:
            own = people.setdefault(row["image_id"], [])
            own.append(PersonBox(box=box, actions=tuple(dict.fromkeys(actions)), person=len(own)))
    left_out = set(excluded)
    images = {i: image for i, image in images.items() if i in people and image[:2] not in left_out}
    if not images:
        raise InputError(f"{file}: expected at least one person with an action, got none (or excluded)")
    films = find_films(root, {image.movie for image in images.values()})
    return [
        Sample(path=films[image.movie], label=-1, time_s=image.time_s, boxes=tuple(people[i]))
        for i, image in images.items()
    ]


def read_images(file: str | Path, content: Mapping[str, Any] | None = None) -> dict[Any, Image]:
    """The key frames of COCO-style annotations by their id (`content`: the file's, where it is read)."""
    images = {}
    for k, row in enumerate((content or _load(file)).get("images", [])):
        where = f"{file}: images[{k}]"
        movie, time_s, width, height, number = (
            _value(row, name, where) for name in ("movie", "timestamp", "width", "height", "id")
        )
        if not all(isinstance(v, int | float) and v > 0 for v in (width, height)):
            raise InputError(f"{where}: expected a width and height above 0, got {width!r} x {height!r}")
        images[number] = Image(str(movie), _seconds(time_s, where), int(width), int(height))
    if not images:
        raise InputError(f"{file}: expected images, got none")
    return images


def read_proposals(
    file: str | Path, *, images: Mapping[Any, Image] | None = None, min_score: float = 0.8
) -> Proposals:
    """People with a score of at least `min_score` (published: 0.8); see the module's table.

    `images` are the annotations' (`read_images`), which a JSON file of COCO results needs. Boxes are cut at
    the edges of the frame.

    Raises:
        InputError: no such file, another format, a row that does not fit, or a pickle that is not safe.
    """
    suffix = Path(file).suffix.lower()
    rows: Iterable[tuple[KeyFrame, tuple[float, ...]]]
    if suffix == ".json":
        rows = _json_rows(file, images)
    elif suffix == ".csv":
        rows = _csv_rows(file)
    elif suffix in (".pkl", ".pickle"):
        rows = _pickle_rows(file)
    else:
        raise InputError(f"{file}: expected proposals in a .json, .csv or .pkl file")
    found: dict[KeyFrame, list[tuple[float, ...]]] = {}
    below = empty = 0
    for key, row in rows:
        box = clip_boxes(np.asarray(row[:4])[None], 1, 1)
        if not row[4] >= min_score:
            below += 1
        elif not has_area(box * 1000)[0]:
            empty += 1
        else:
            found.setdefault(key, []).append((*box[0], row[4]))
    people = {}
    for key, boxes in found.items():
        table = np.array(boxes, np.float64)
        people[key] = table[np.argsort(-table[:, 4], kind="stable")]
    return Proposals(people=people, below=below, empty=empty)


def _json_rows(
    file: str | Path, images: Mapping[Any, Image] | None
) -> Iterable[tuple[KeyFrame, tuple[float, ...]]]:
    content = _load(file)
    if isinstance(content, dict):
        images, content = read_images(file, content), content.get("annotations", [])
    if images is None:
        raise InputError(f"{file}: expected the annotations of the key frames too (COCO-style JSON)")
    for k, row in enumerate(content):
        where = f"{file}: [{k}]"
        image = images.get(_value(row, "image_id", where))
        if image is None:
            raise InputError(f"{where}: expected the image_id of an image, got {row['image_id']!r}")
        score = _value(row, "score", where)
        box = _shares(_value(row, "bbox", where), image, where)
        yield (image.movie, image.time_s), _numbers((*box, score), where)


def _csv_rows(file: str | Path) -> Iterable[tuple[KeyFrame, tuple[float, ...]]]:
    for where, line in read_lines(file, "list of proposals"):
        row = next(csv.reader([line]))
        if len(row) not in (7, 8):
            raise InputError(
                f"{where}: expected 'video_id,timestamp,x1,y1,x2,y2[,action],score', got '{line}'"
            )
        yield (row[0], _seconds(row[1], where)), _numbers((*row[2:6], row[-1]), where)


def _pickle_rows(file: str | Path) -> Iterable[tuple[KeyFrame, tuple[float, ...]]]:
    try:
        with open(file, "rb") as f:
            content = _ArraysOnly(f).load()
    except OSError as e:
        raise InputError(f"{file}: expected a file of proposals, {e.strerror or e}") from None
    except pickle.UnpicklingError as e:
        raise InputError(f"{file}: refused: {e}") from None
    except Exception as e:  # a broken pickle raises anything
        raise InputError(f"{file}: not a readable pickle ({type(e).__name__}: {e})") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected a dictionary of key frames, got {type(content).__name__}")
    for name, table in content.items():
        movie, _, time_s = str(name).rpartition(",")
        boxes = np.asarray(table)
        if not movie or boxes.ndim != 2 or boxes.shape[1] != 5 or boxes.dtype.kind != "f":
            raise InputError(
                f"{file}: expected 'video_id,timestamp' and an array [K, 5], got {str(name)!r} and "
                f"{boxes.dtype} {list(boxes.shape)}"
            )
        for row in boxes:
            where = f"{file}: {name}"
            yield (movie, _seconds(time_s, where)), _numbers(tuple(row), where)


class _ArraysOnly(pickle.Unpickler):
    """Builds numpy's arrays and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        arrays = {"_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer"}
        known = module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy._core.numeric")
        if (known and name in arrays) or (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(
            f"its pickle asks for {module}.{name}, and unpickling that can run code; write the proposals as "
            "JSON or csv"
        )


def _load(file: str | Path) -> Any:
    try:
        return json.loads(Path(file).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{file}: expected a JSON file, found no such file") from None
    except (OSError, ValueError) as e:
        raise InputError(f"{file}: expected JSON, got {e}") from None


def _value(row: Any, name: str, where: str) -> Any:
    if not isinstance(row, dict) or name not in row:
        raise InputError(f"{where}: expected '{name}', got {sorted(row) if isinstance(row, dict) else row!r}")
    return row[name]


def _seconds(value: Any, where: str) -> float:
    time_s = _numbers((value,), where)[0]
    if time_s < 0:
        raise InputError(f"{where}: expected a time of 0 s or later, got {value!r}")
    return time_s


def _numbers(values: tuple[Any, ...], where: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(v) for v in values)
    except (TypeError, ValueError):
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
        raise InputError(f"{where}: expected numbers, got {', '.join(map(str, values))}")
    return numbers


def _shares(
    bbox: Any, image: Image, where: str, slack: float | None = None
) -> tuple[float, float, float, float]:
    """A COCO box in shares of the frame; with `slack` (pixels over the edge) an InputError beyond it."""
    if not isinstance(bbox, list | tuple) or len(bbox) != 4:
        raise InputError(f"{where}: expected bbox [x, y, width, height], got {bbox!r}")
    x, y, w, h = _numbers(tuple(bbox), where)
    box = np.array([[x, y, x + w, y + h]])
    shares = to_shares(box, image.height, image.width)
    if slack is not None:
        cut = clip_boxes(box, image.height, image.width)
        if np.abs(cut - box).max() <= slack:
            shares = to_shares(cut, image.height, image.width)
        check_boxes(shares, where)
    x1, y1, x2, y2 = (float(v) for v in shares[0])
    return x1, y1, x2, y2
