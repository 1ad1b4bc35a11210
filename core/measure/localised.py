"""A localisation head trained on some videos' features and measured on others'."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from vmae.core.config import to_dict
from vmae.core.errors import InputError
from vmae.core.files import write_json
from vmae.core.measure.localisation import LocalisationResult, temporal_map
from vmae.core.measure.precision import Instances, map_interval
from vmae.core.measure.statistics import Interval, ends_of
from vmae.core.progress import Progress
from vmae.core.train.localise import FeatureVideo, LocaliseConfig, localise, train_localiser
from vmae.core.video.untrimmed import UntrimmedSet, UntrimmedVideo

Features = Callable[[UntrimmedVideo], FeatureVideo | None]
"""The features of a video; None where there are none."""
STATE = "localiser.pt"
"""The training's state, in the folder of its results."""


@dataclass(frozen=True, kw_only=True)
class Localised:
    """What a head reaches on the test subset, and what stands against it."""

    result: LocalisationResult
    interval: Interval | None
    """Of the average mAP, over the test videos; None for one video."""
    chance: float
    """Average mAP of the same segments with random classes and scores."""
    classes: tuple[str, ...]
    train: int
    """Videos trained on."""
    test: int
    actions: int
    """True ones of the test videos."""
    missing: tuple[str, ...]
    """Videos of the two subsets without features: those of the test subset count with every action missed."""
    left_out: int
    """Annotated actions past their video's end or of no length."""

    def numbers(self) -> dict[str, float]:
        """For a run's log, without a prefix."""
        by_tiou = {f"map_{t:g}": v for t, v in self.result.mean_ap.items()}
        return {"average_map": self.result.average_map, "chance": self.chance, **by_tiou}


class Subsets(NamedTuple):
    """The videos of the two subsets with their features, and those that have none."""

    train: list[FeatureVideo]
    test: list[FeatureVideo]
    train_gone: list[UntrimmedVideo]
    test_gone: list[UntrimmedVideo]


def read_subsets(known: UntrimmedSet, features: Features, config: LocaliseConfig) -> Subsets:
    """The features of the videos to train on and to test on. Raises InputError where a subset has none."""
    first, second = known.subsets()
    wanted = (config.train_subset or first, config.test_subset or second)
    (train, gone_train), (test, gone) = (_with_features(known.subset(s), features) for s in wanted)
    for there, absent, subset in ((train, gone_train, wanted[0]), (test, gone, wanted[1])):
        if not there:
            raise InputError(
                f"{config.annotations}: expected features of its videos, got none of the subset {subset} "
                f"(such as {absent[0].name}.npy)"
            )
    return Subsets(train, test, gone_train, gone)


def localise_set(
    known: UntrimmedSet,
    subsets: Subsets,
    config: LocaliseConfig,
    home: Path,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[int], Progress] | None = None,
) -> Localised:
    """Train a head on the one subset and measure it on the other.

    `home` gets the training's state, detections.json (ActivityNet's results) and metrics.json. `progress` is
    told the number of epochs.
    """
    home.mkdir(parents=True, exist_ok=True)
    with progress(config.epochs) if progress is not None else nullcontext() as shown:
        model = train_localiser(
            subsets.train,
            len(known.classes),
            config,
            state=home / STATE,
            device=device,
            report=lambda epoch, loss: shown.update(1, loss=loss) if shown is not None else None,
        )
    found = [localise(model, video, config) for video in subsets.test]
    return _measured(known, config, subsets, found, home)


def _with_features(
    videos: Sequence[UntrimmedVideo], features: Features
) -> tuple[list[FeatureVideo], list[UntrimmedVideo]]:
    """The videos whose features are there, and the others."""
    there, gone = [], []
    for video in videos:
        found = features(video)
        if found is None:
            gone.append(video)
        else:
            there.append(found)
    return there, gone


def _measured(
    known: UntrimmedSet,
    config: LocaliseConfig,
    subsets: Subsets,
    found: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    home: Path,
) -> Localised:
    test, gone = subsets.test, subsets.test_gone
    videos: list[FeatureVideo | UntrimmedVideo] = [*test, *gone]
    truth = _instances([(v.segments, v.labels, None) for v in videos])
    predictions = _instances(found)
    rng = np.random.default_rng(config.seed)
    guesses = Instances(
        source=predictions.source,
        label=rng.integers(len(known.classes), size=len(predictions)),
        extent=predictions.extent,
        score=rng.random(len(predictions)),
    )
    result = temporal_map(truth, predictions)
    outcome = Localised(
        result=result,
        interval=map_interval(result.average_map, result.judged, np.arange(len(videos))),
        chance=temporal_map(truth, guesses).average_map,
        classes=known.classes,
        train=len(subsets.train),
        test=len(test) + len(gone),
        actions=len(truth),
        missing=tuple(v.name for v in (*subsets.train_gone, *gone)),
        left_out=known.left_out,
    )
    results = {
        video.name: [
            {"label": known.classes[c], "segment": [round(float(s), 3) for s in segment], "score": float(p)}
            for segment, c, p in zip(*rows, strict=True)
        ]
        for video, rows in zip(test, found, strict=True)
    }
    write_json(home / "detections.json", {"version": "1.3", "results": results, "external_data": {}})
    facts = {k: v for k, v in to_dict(outcome).items() if k not in ("result", "interval")}
    by_class = {known.classes[c]: list(ap) for c, ap in outcome.result.ap.items()}
    ends = ends_of(outcome.interval)
    write_json(home / "metrics.json", {**outcome.numbers(), "interval": ends, **facts, "ap": by_class})
    return outcome


def _instances(rows: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray | None]]) -> Instances:
    scores = [r[2] for r in rows]
    return Instances(
        source=np.repeat(np.arange(len(rows)), [len(r[0]) for r in rows]),
        label=np.concatenate([r[1] for r in rows]),
        extent=np.concatenate([r[0] for r in rows]),
        score=None if scores[0] is None else np.concatenate([s for s in scores if s is not None]),
    )
