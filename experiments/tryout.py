"""A choice that no look at the list can make: both answers are tried on the training list alone.

Should a scene before which things move be taken away (`model.background`)? Two linear classifiers are fitted
in closed form to a coarse picture of each clip, one to its grey levels, one to how far they are from their
mean over the clip. The training list is divided into parts of whole groups, each held out in turn. The
held-out list is not looked at. What was found is remembered by the list, the files and the settings.

Training small models instead was tried: 8 epochs on two thirds of 144 clips of ten gestures told nothing
(12.5% against 9.7%, 15 processor seconds), where the classifiers say 68% against 17% in less than one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from vmae.core.config import to_dict
from vmae.core.errors import VideoError
from vmae.core.files import read_json, write_json
from vmae.core.measure.statistics import interval, paired
from vmae.core.video.cache import DecodedCache, build_cache
from vmae.core.video.clips import ClipDataset
from vmae.core.video.folds import groups_beside, make_folds
from vmae.core.video.identity import fingerprints
from vmae.core.video.samples import Sample, num_classes
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.data import all_samples, read_list
from vmae.experiments.layout import TRIED

PARTS = 3
CELLS = 8
"""Of a frame, in each direction, whose means are looked at."""
MOST = 400
"""Videos that take part: whole groups, drawn."""
BACKGROUNDS = ("keep", "subtract")
"""The first stays where the second is not shown to be better."""
_RIDGE = 1.0
_VERSION = 2

Progress = Callable[[int, int], None]
"""Told (done, total): videos decoded."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What was chosen, and a sentence with the numbers."""

    value: str
    reason: str


def try_backgrounds(config: ExperimentConfig, cache: Path, progress: Progress | None = None) -> Tried | None:
    """Which `model.background` tells more on the training list of `config`; None where that cannot be tried.

    It takes groups that part it three ways (`groups_of`): clips of one session on both sides would be told by
    the scene, which is what is asked about. Decoded clips and the answer are kept in `cache`. Seconds, and
    the decoding, which the training is spared.
    """
    listed = Path(config.data.train_csv)
    samples = read_list(config.data, str(listed))
    groups = groups_of(listed, samples)
    if groups is None:
        return None
    samples, parts = _part(samples, groups)
    if len(set(parts)) < PARTS:
        return None
    kept = cache / TRIED / f"{digest(config, samples, parts)}.json"
    known = read_json(kept)
    if known is not None:
        return Tried(**known)
    pictures = _pictures(config, samples, _decoded(config, samples, cache, progress))
    features = pictures, np.abs(pictures - pictures.mean(1, keepdims=True))
    labels, part = np.array([s.label for s in samples]), np.array(parts)
    right = np.stack([_answers(x.reshape(len(x), -1), labels, part) for x in features])
    found = told(right, num_classes(samples))
    write_json(kept, asdict(found))
    return found


def told(right: np.ndarray, classes: int) -> Tried:
    """The choice that answers float64 `[2, videos]` of both backgrounds allow.

    The scene is taken away where that is better by an interval without zero, and better than chance by one.
    """
    found, pair = [interval(answers) for answers in right], paired(right[1], right[0])
    value, end = BACKGROUNDS[0], f"not told apart: {BACKGROUNDS[0]} stays"
    if pair.high < 0:
        end = "the scene tells more"
    elif pair.low > 0:
        value, end = BACKGROUNDS[1], "what moves tells more"
        if found[1].low <= 1 / classes:
            value, end = BACKGROUNDS[0], f"neither is shown to beat chance ({1 / classes:.1%}): keep stays"
    numbers = ", ".join(f"{v} {i.text()}" for v, i in zip(BACKGROUNDS, found, strict=True))
    reason = (
        f"tried on {right.shape[1]} videos of the training list by linear classifiers of coarse pictures, "
        f"{PARTS} parts of whole groups held out in turn: {numbers}; difference {pair.text()}, {end}"
    )
    return Tried(value=value, reason=reason)


def groups_of(listed: Path, samples: Sequence[Sample]) -> list[str] | None:
    """The group of each video by a table beside the list; None where no two belong together."""
    found = groups_beside(listed, samples)
    return found[0] if found is not None and len(set(found[0])) < len(samples) else None


def _part(samples: Sequence[Sample], groups: Sequence[str]) -> tuple[list[Sample], list[int]]:
    """Up to `MOST` videos of whole groups, and the part of each."""
    chosen: set[str] = set()
    videos = 0
    for group in np.random.default_rng(0).permutation(sorted(set(groups))).tolist():
        size = groups.count(group)
        if not chosen or videos + size <= MOST:
            chosen.add(group)
            videos += size
    kept = [i for i, g in enumerate(groups) if g in chosen and samples[i].label >= 0]
    if len({groups[i] for i in kept}) < PARTS:
        return [], []
    parts = make_folds([samples[i].label for i in kept], [groups[i] for i in kept], PARTS)
    return [samples[i] for i in kept], parts


def _pictures(config: ExperimentConfig, samples: Sequence[Sample], cache: DecodedCache) -> np.ndarray:
    """Grey levels in [0, 1] of the centre clips in coarse cells, float32 `[videos, T, rows, columns]`; zeros
    for a video that cannot be read."""
    data = replace(config.data, train_csv="", val_csv="", test_csv="")
    dataset = ClipDataset(samples, data, "val", 0, cache=cache)
    (height, width), frames = data.size, data.frames
    rows, columns = (np.arange(min(CELLS, side)) * side // min(CELLS, side) for side in (height, width))
    areas = np.diff([*rows, height])[:, None] * np.diff([*columns, width])[None]
    clip = np.empty((1, frames, height, width, 3), np.uint8)
    out = np.zeros((len(samples), frames, len(rows), len(columns)), np.float32)
    for i in range(len(samples)):
        try:
            dataset.fill(i, 0, clip)
        except VideoError:
            continue
        grey = clip[0].mean(-1, dtype=np.float32) / 255
        out[i] = np.add.reduceat(np.add.reduceat(grey, rows, 1), columns, 2) / areas
    return out


def _answers(x: np.ndarray, labels: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Who is right, bool `[videos]`: ridge regression on the classes, fitted without each one's part."""
    right = np.zeros(len(x), bool)
    for held in range(PARTS):
        train, test = x[parts != held], x[parts == held]
        scale = (train.std(0) + 1e-3 * train.std() + 1e-6) * x.shape[1] ** 0.5
        a, b = (train - train.mean(0)) / scale, (test - train.mean(0)) / scale
        target = np.eye(labels.max() + 1)[labels[parts != held]]
        weights = np.linalg.solve(a @ a.T + _RIDGE * np.eye(len(a)), target - target.mean(0))
        right[parts == held] = (b @ a.T @ weights + target.mean(0)).argmax(1) == labels[parts == held]
    return right


def _decoded(
    config: ExperimentConfig, samples: Sequence[Sample], cache: Path, progress: Progress | None
) -> DecodedCache:
    """What the training decodes anyway, where it decodes all; else these videos."""
    if config.data.cache:
        found = build_cache(all_samples(config.data), config.data, cache, progress=progress)
        assert found is not None
        return found
    return DecodedCache.build(samples, cache, config.data.decoded_short_side, progress=progress)


def digest(
    config: ExperimentConfig, samples: Sequence[Sample], parts: Sequence[object], *more: object
) -> str:
    """Of what an answer depends on: how clips are cut, the files, their labels and parts, and `more`."""
    cut = {k: v for k, v in to_dict(config.data).items() if not k.endswith("_csv")}
    files = fingerprints(sorted({s.path for s in samples}))
    lines = [f"{s.path} {files[s.path]} {s.label} {p}" for s, p in zip(samples, parts, strict=True)]
    text = json.dumps([_VERSION, cut, sorted(lines), *more], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:20]
