"""The lines of a list of videos: what one says, a share of them, and the text file they come from."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vmae.core.errors import InputError

VIDEO_SUFFIXES = (
    ".mp4", ".avi", ".webm", ".mkv", ".mov", ".mpg", ".mpeg", ".m4v", ".ts", ".flv", ".wmv", ".3gp", ".ogv",
    ".gif", ".npy", ".mts", ".m2ts", ".m2t", ".vob", ".asf", ".3g2", ".m1v", ".m2v", ".dv", ".mxf", ".divx",
    ".xvid", ".mp4v", ".mpe", ".mpv", ".qt", ".f4v", ".ogm", ".mk3d", ".y4m", ".rm", ".rmvb", ".wtv", ".amv",
    ".mod", ".tod", ".trp", ".tp", ".mjpeg", ".mjpg", ".h264", ".264", ".hevc", ".h265", ".265", ".ivf",
    ".nut", ".gxf", ".lrv", ".insv",
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
    """One line of a list. `label` is -1 where there is none; `class_name` its name where the line has that.

    `start` and `num_frames` choose a stretch of the frames; `num_frames` None means to the end. `time_s`, in
    seconds on the list's clock, is the key frame that the clip is centred on, and `boxes` who is in it (AVA).
    """

    path: str
    label: int
    start: int = 0
    num_frames: int | None = None
    time_s: float | None = None
    boxes: tuple[PersonBox, ...] = ()
    class_name: str = ""
    values: tuple[float, ...] = ()
    """Numbers to be predicted (regression)."""
    labels: tuple[int, ...] | None = None
    """Several labels, or none of them (multi-label); None: the list has one a line."""


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
        raise InputError(
            f"{csv}: expected a {what}, got a folder (vmae data index {csv} --layout folders makes lists)"
        ) from None
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"{csv}: expected a readable UTF-8 {what}, got {e}") from None
    # Not splitlines(): a path may hold characters that it takes for line ends (a form feed, U+2028).
    return [(f"{csv}:{n}", line.strip()) for n, line in enumerate(text.split("\n"), 1) if line.strip()]


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


def repeat(samples: list[Sample], weight: float, seed: int) -> list[Sample]:
    """Every sample as often as the whole part of `weight` says, and that share of them that its rest is, in
    the list's order (see `subset`)."""
    whole, rest = divmod(weight, 1)
    return samples * int(whole) + (subset(samples, rest, seed) if rest else [])


MAX_LABEL = 999_999
"""A label is a class's number: a head has a row for each up to the largest."""


def require_labels(samples: Sequence[Sample], where: str) -> None:
    """Raise InputError where a sample has no label, for what learns from labels or is measured by them."""
    absent = [s.path for s in samples if s.label < 0]
    if absent:
        raise InputError(
            f"{where}: expected a label of 0 or more on every line, got -1 on {len(absent)} of "
            f"{len(samples)}, first {absent[0]}; vmae pretrain needs no labels"
        )


def num_classes(samples: Sequence[Sample]) -> int:
    """One more than the largest label; 0 where no sample has a label."""
    return max((s.label for s in samples), default=-1) + 1
