"""Untrimmed videos and their actions, from the JSON of ActivityNet and THUMOS14 (as ActionFormer reads it).

    {"database": {"ID": {"subset": "validation", "duration": 172.6, "fps": 30.0,
                         "annotations": [{"label": "Diving", "segment": [2.1, 7.9]}, ...]}, ...}}

Seconds throughout. `fps` may be absent (the features' journal has it), and so may `label_id`: classes are
numbered by it where every action has one, else in the order of the alphabet.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vmae.core.errors import InputError, nearest


@dataclass(frozen=True, kw_only=True, eq=False)
class UntrimmedVideo:
    """A video's actions: `segments` float64 [M, 2] (start, end in seconds), `labels` int64 [M]."""

    name: str
    subset: str
    duration_s: float | None
    fps: float | None
    segments: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, kw_only=True)
class UntrimmedSet:
    """The videos of an annotation file and its classes by number."""

    videos: tuple[UntrimmedVideo, ...]
    classes: tuple[str, ...]
    left_out: int
    """Actions past their video's end, or of no length."""

    def subset(self, name: str) -> list[UntrimmedVideo]:
        """The videos of a subset. Raises InputError where there are none."""
        found = [v for v in self.videos if v.subset == name]
        if not found:
            known = sorted({v.subset for v in self.videos})
            raise InputError(
                f"expected videos of the subset '{name}' in the annotations, got those of "
                f"{', '.join(known)}{nearest(name, known)} (localise.train_subset, localise.test_subset)"
            )
        return found

    def subsets(self) -> tuple[str, str]:
        """To train on and to test on: training and validation (ActivityNet), validation and test (THUMOS)."""
        known = {v.subset for v in self.videos}
        return ("training", "validation") if "training" in known else ("validation", "test")


def read_untrimmed(file: str | Path) -> UntrimmedSet:
    """Read an annotation file; actions past the video's end or of no length are left out and counted.

    Raises:
        InputError: no such file, no JSON of this layout, or an action that does not fit (with its place).
    """
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{file}: expected a file of annotations, found no such file") from None
    except (OSError, ValueError) as e:
        raise InputError(f"{file}: expected JSON, got {e}") from None
    database = content.get("database") if isinstance(content, dict) else None
    if not isinstance(database, dict) or not database:
        raise InputError(f"{file}: expected a 'database' of videos, got none")
    rows = {name: _rows(video, f"{file}: {name}") for name, video in database.items()}
    classes = _classes([a for found in rows.values() for a in found], str(file))
    number = {name: k for k, name in enumerate(classes)}
    videos, left_out = [], 0
    for name, found in rows.items():
        video = database[name]
        duration = _positive(video.get("duration"), f"{file}: {name}: duration")
        kept = [a for a in found if a["segment"][1] > a["segment"][0]]
        kept = [a for a in kept if duration is None or a["segment"][0] < duration]
        left_out += len(found) - len(kept)
        segments = np.array([a["segment"] for a in kept], np.float64).reshape(-1, 2)
        videos.append(
            UntrimmedVideo(
                name=name,
                subset=str(video.get("subset", "")).lower(),
                duration_s=duration,
                fps=_positive(video.get("fps"), f"{file}: {name}: fps"),
                segments=segments if duration is None else np.minimum(segments, duration),
                labels=np.array([number[a["label"]] for a in kept], np.int64),
            )
        )
    return UntrimmedSet(videos=tuple(videos), classes=classes, left_out=left_out)


def _rows(video: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(video, dict):
        raise InputError(f"{where}: expected a video with its subset and annotations, got {video!r}")
    found = video.get("annotations") or []
    for k, row in enumerate(found):
        segment: Any = row.get("segment") if isinstance(row, dict) else None
        fits = isinstance(segment, list) and len(segment) == 2 and all(map(_finite, segment))
        if not fits or not isinstance(row.get("label"), str):
            raise InputError(
                f"{where}: annotations[{k}]: expected label and segment [start, end], got {row!r}"
            )
        if segment[0] < 0 or segment[1] < segment[0]:
            raise InputError(f"{where}: annotations[{k}]: expected 0 <= start <= end, got {segment}")
    return list(found)


def _classes(rows: list[dict[str, Any]], file: str) -> tuple[str, ...]:
    names = sorted({r["label"] for r in rows})
    if not names:
        raise InputError(f"{file}: expected at least one action, got none")
    ids = {r["label"]: r["label_id"] for r in rows if isinstance(r.get("label_id"), int)}
    if len(ids) == len(names) == len(set(ids.values())) and min(ids.values()) >= 0:
        names.sort(key=lambda n: ids[n])
    return tuple(names)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _positive(value: Any, where: str) -> float | None:
    if value is None:
        return None
    if not _finite(value) or value <= 0:
        raise InputError(f"{where}: expected a number above 0, got {value!r}")
    return float(value)
