"""Temporal localisation of a folder of windowed features: a head trained, measured, recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from vmae.core.config import flatten, to_dict
from vmae.core.errors import InputError, nearest
from vmae.core.measure.localised import STATE, Localised, Subsets, localise_set, read_subsets
from vmae.core.progress import Progress
from vmae.core.train.localise import FeatureVideo, LocaliseConfig
from vmae.core.video.untrimmed import UntrimmedSet, UntrimmedVideo, read_untrimmed
from vmae.experiments import jobs
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.locks import at_work
from vmae.experiments.run import default_device
from vmae.experiments.stages import localise as localise_stage
from vmae.experiments.tracking import Store, Tracker, create_store
from vmae.experiments.windowed import read_features, read_folder


def read_set(features: Path, config: LocaliseConfig) -> tuple[LocaliseConfig, UntrimmedSet, Subsets]:
    """A folder's features of the annotated videos, and the configuration with its windows.

    Raises InputError for annotations or features that cannot be read, and where a subset has none.
    """
    known = read_untrimmed(config.annotations)
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

    return config, known, read_subsets(known, of, config)


def named(store: Store, config: ExperimentConfig, name: str | None, resume: str | None) -> ExperimentConfig:
    """The configuration under a new name, or under that of the run to go on with.

    Raises InputError for a name that is taken, or where `resume` is no run of this verb.
    """
    if resume is None:
        return jobs.named(store, config, name)
    if name is not None:
        raise InputError(f"--run-name: expected none with --resume, which names the run; got '{name}'")
    if not kept(store, resume):
        raise InputError(
            f"--resume: expected an interrupted run of vmae localise in {store.runs_dir}, got '{resume}'"
            f"{nearest(resume, store.layout.runs())}"
        )
    return replace(config, name=resume)


def kept(store: Store, name: str) -> bool:
    """Whether the run of that name has a state to go on from."""
    return (store.layout.run(name).evaluation.path / STATE).is_file()


@at_work
def localise_run(
    config: ExperimentConfig,
    store: Store,
    features: Path,
    *,
    progress: Callable[[int], Progress] | None = None,
) -> tuple[Localised, Path]:
    """A head trained on the features in a folder and measured (`localise_set`), recorded as the run of the
    configuration's name; returns the result and the folder with its files. What is refused leaves no run."""
    own, known, subsets = read_set(features, config.localise)
    create_store(store)
    home, stage = store.layout.run(config.name), localise_stage.STAGE.name
    with Tracker(
        store,
        home.path,
        name=config.name,
        key=f"run:{config.name}",
        kind=stage,
        params=flatten({"localise": to_dict(config.localise), "features": str(features)}),
    ) as tracker:
        found = localise_set(
            known, subsets, own, home.evaluation.path, device=default_device(), progress=progress
        )
        tracker.log_metrics({f"{stage}/{k}": v for k, v in found.numbers().items()}, 0)
        for file in ("detections.json", "metrics.json"):
            tracker.log_artifact(home.evaluation.path / file, "evaluation")
    return found, home.evaluation.path
