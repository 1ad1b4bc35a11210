"""Boxes drawn over the frames of a clip: what is true beside what a detector says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vmae.core.errors import InputError
from vmae.core.measure.detection import box_iou
from vmae.core.video.coco import KeyFrame
from vmae.core.video.samples import Sample, read_lines

TRUTH, RIGHT, WRONG = (74, 222, 128), (96, 165, 250), (251, 146, 60)
"""Colours: of annotated boxes, of a person all of whose shown actions are true, and of any other."""
SMALLEST = 288
"""Frames are enlarged to about this height, so that names can be read."""


@dataclass(frozen=True, kw_only=True)
class DrawnBox:
    """A box in shares of the frame, what stands at it, a line each, and its colour."""

    box: tuple[float, float, float, float]
    lines: tuple[str, ...]
    colour: tuple[int, int, int]


Predicted = dict[KeyFrame, list[tuple[tuple[float, float, float, float], int, float]]]
"""Of each key frame (film's id, second): boxes with an action id and its score."""


def read_predictions(file: Path) -> Predicted:
    """What `write_detections` wrote. Raises InputError for a file that is not that."""
    found: Predicted = {}
    for where, line in read_lines(file, "file of predictions"):
        row = line.split(",")
        try:
            x1, y1, x2, y2, score = (float(v) for v in (*row[2:6], row[7]))
            key = (row[0], float(row[1]))
            found.setdefault(key, []).append(((x1, y1, x2, y2), int(row[6]), score))
        except (ValueError, IndexError):
            raise InputError(
                f"{where}: expected 'video_id,timestamp,x1,y1,x2,y2,action_id,score', got '{line}'"
            ) from None
    return found


def of_sample(predicted: Predicted, sample: Sample) -> list[tuple[tuple[float, ...], int, float]]:
    """The predictions for a key frame; times are compared as the file has them."""
    assert sample.time_s is not None
    return list(predicted.get((Path(sample.path).stem, float(f"{sample.time_s:g}")), []))


def true_boxes(sample: Sample, name: Callable[[int], str]) -> list[DrawnBox]:
    """The annotated people of a key frame."""
    return [DrawnBox(box=b.box, lines=tuple(name(a) for a in b.actions), colour=TRUTH) for b in sample.boxes]


def predicted_boxes(
    sample: Sample, predicted: Predicted, name: Callable[[int], str], *, min_score: float
) -> list[DrawnBox]:
    """A detector's people with their actions from `min_score` on, a person without any left out."""
    people: dict[tuple[float, ...], list[tuple[int, float]]] = {}
    for box, action, score in of_sample(predicted, sample):
        if score >= min_score:
            people.setdefault(box, []).append((action, score))
    drawn = []
    for box, actions in people.items():
        actions.sort(key=lambda a: -a[1])
        true = _actions_at(sample, box)
        right = all(action in true for action, _ in actions)
        lines = tuple(f"{name(action)} {score:.2f}" for action, score in actions)
        drawn.append(DrawnBox(box=box, lines=lines, colour=RIGHT if right else WRONG))  # type: ignore[arg-type]
    return drawn


def _actions_at(sample: Sample, box: Sequence[float]) -> tuple[int, ...]:
    """What the annotated person does that a box overlaps most, at an IoU of a half or more."""
    if not sample.boxes:
        return ()
    overlap = box_iou(np.array(box)[None], np.array([b.box for b in sample.boxes]))
    best = int(overlap.argmax())
    return sample.boxes[best].actions if overlap[best] >= 0.5 else ()


def with_boxes(frames: np.ndarray, boxes: Sequence[DrawnBox], *, key: int) -> np.ndarray:
    """uint8 [T, H, W, 3], enlarged to about SMALLEST; boxes belong to frame `key`, and are thin elsewhere."""
    scale = max(1, round(SMALLEST / frames.shape[1]))
    out = []
    for t, frame in enumerate(frames):
        picture = Image.fromarray(frame)
        picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.BICUBIC)
        draw = ImageDraw.Draw(picture)
        for box in boxes:
            _draw(draw, picture.size, box, width=3 if t == key else 1, named=t == key)
        out.append(np.asarray(picture))
    return np.stack(out)


def film_of(
    frames: np.ndarray, drawn: Mapping[str, Sequence[DrawnBox]], *, key: int
) -> list[tuple[str, np.ndarray]]:
    """Rows for `vmae.core.measure.films.film`: the clip once for each set of boxes, under its title."""
    return [(title, with_boxes(frames, boxes, key=key)) for title, boxes in drawn.items()]


def _draw(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], box: DrawnBox, *, width: int, named: bool
) -> None:
    w, h = size
    x1, y1, x2, y2 = (v * s for v, s in zip(box.box, (w, h, w, h), strict=True))
    draw.rectangle((x1, y1, max(x1 + 1, x2 - 1), max(y1 + 1, y2 - 1)), outline=box.colour, width=width)
    if not named or not box.lines:
        return
    font = ImageFont.load_default(size=max(11, h // 22))
    text = "\n".join(box.lines)
    left, top, right, bottom = draw.multiline_textbbox((0, 0), text, font=font, spacing=1)
    x = min(max(0, x1), max(0, w - (right - left) - 6))
    y = y1 - (bottom - top) - 8 if y1 > bottom - top + 8 else y1
    draw.rectangle((x, y, x + right - left + 6, y + bottom - top + 8), fill=box.colour)
    draw.multiline_text((x + 3, y + 2), text, fill=(0, 0, 0), font=font, spacing=1)
