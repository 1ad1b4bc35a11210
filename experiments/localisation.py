"""Temporal localisation of a folder of windowed features: a head trained, measured, recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from vmae.core.config import flatten, to_dict
from vmae.core.measure.localised import Localised, localise_set
from vmae.core.progress import Progress
from vmae.core.train.localise import FeatureVideo, LocaliseConfig
from vmae.core.video.untrimmed import UntrimmedVideo, read_untrimmed
from vmae.experiments import jobs
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.locks import given_up
from vmae.experiments.run import default_device
from vmae.experiments.stages import localise as localise_stage
from vmae.experiments.tracking import Store, Tracker, create_store
from vmae.experiments.windowed import read_features, read_folder


def localise_folder(
    features: Path,
    config: LocaliseConfig,
    home: Path,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[int], Progress] | None = None,
) -> Localised:
    """Train a head on the features in a folder and measure it (see `localise_set`)."""
    settings, journal = read_folder(features)
    rows = {r["name"]: r for r in journal}
    config = replace(config, window=settings["window"], stride=settings["stride"])

    def of(video: UntrimmedVideo) -> FeatureVideo | None:
        row = rows.get(video.name)
        if row is None:
            return None
        return FeatureVideo(
            name=video.name,
            features=read_features(features / f"{video.name}.npy", settings["dim"]),
            # Windows at a rate of their own are counted at that rate, whatever the annotations say.
            fps=row["fps"] if settings.get("fps") else video.fps or row["fps"],
            duration_s=video.duration_s or row["duration_s"],
            segments=video.segments,
            labels=video.labels,
        )

    known = read_untrimmed(config.annotations)
    return localise_set(known, of, config, home, device=device, progress=progress)


def localise_run(
    config: ExperimentConfig,
    store: Store,
    features: Path,
    name: str | None = None,
    *,
    progress: Callable[[int], Progress] | None = None,
) -> tuple[Localised, Path]:
    """`localise_folder` recorded as a run of its own; returns the result and the folder with its files."""
    read_folder(features)
    read_untrimmed(config.localise.annotations)
    create_store(store)
    config = jobs.named(store, config, name)
    home = store.layout.run(config.name)
    with (
        given_up(home.path),
        Tracker(
            store,
            home.path,
            name=config.name,
            key=f"run:{config.name}",
            kind=localise_stage.STAGE.name,
            params=flatten({"localise": to_dict(config.localise), "features": str(features)}),
        ) as tracker,
    ):
        found = localise_folder(
            features, config.localise, home.evaluation.path, device=default_device(), progress=progress
        )
        stage = localise_stage.STAGE.name
        tracker.log_metrics({f"{stage}/{k}": v for k, v in found.numbers().items()}, 0)
        for file in ("detections.json", "metrics.json"):
            tracker.log_artifact(home.evaluation.path / file, "evaluation")
    return found, home.evaluation.path
