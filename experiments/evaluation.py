"""Evaluations of a classifier: runs of their own, shared by a cluster's nodes where one is given."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from vmae.core.config import flatten
from vmae.core.errors import InputError
from vmae.core.measure.evaluate import VideoPrediction, summarise
from vmae.core.progress import Progress
from vmae.core.weights.models import expect_classes
from vmae.experiments import jobs, stages
from vmae.experiments.cluster import files_to_see, video_map
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.data import open_test
from vmae.experiments.executors import Here
from vmae.experiments.layout import EvaluationDir, RunDir, found_config
from vmae.experiments.locks import given_up
from vmae.experiments.provenance import config_tags
from vmae.experiments.stages.finetune import class_names, measured_on, tested, write_evaluation
from vmae.experiments.stages.stage import Tested, Work
from vmae.experiments.tracking import Store, Tracker, create_store, key_of, tags
from vmae.experiments.weights import config_of_model, load_model_at, model_source, place_of


def evaluate_run(
    config: ExperimentConfig,
    store: Store,
    source: str,
    *,
    address: str | None = None,
    gpus: float = 0.0,
    progress: Callable[[int], Progress] | None = None,
) -> tuple[Tested, EvaluationDir]:
    """Evaluate the classifier at `source` on the configuration's test list, recorded as a run of its own.

    With `address` the nodes of that Ray cluster share the videos; each task takes one CPU and `gpus` GPUs.
    What a killed evaluation had done is not done again by the next of the same weights, list and views.

    Returns the result and the folder with predictions.csv, confusion.png and metrics.json. Raises InputError
    when the model is not a classifier, takes other clips than the configuration cuts or has fewer classes
    than the list.
    """
    model, meta, _ = load_model_at(store, source)
    place = f"{source}: `vmae finetune --init` or `vmae probe` it"
    model = expect_classes(model, meta, place)
    create_store(store)  # one that cannot be used is said before anything is measured
    data = config.data if address is None else replace(config.data, cache=False)
    config = replace(config, data=data)
    dataset = open_test(data, config.train.seed, store.layout.cache, alone=True, names=meta.get("labels"))
    views = dataset.clips_per_video
    checkpoint = video_map.shared_checkpoint(model_source(store, source), model, meta, store.layout)
    work = video_map.Work(
        kind="classify",
        checkpoint=checkpoint,
        data=data,
        seed=config.train.seed,
        batch_size=max(1, config.train.batch_size // views),
        precision=config.train.precision,
    )
    parts = store.layout.parts
    paths = files_to_see(data, data.test_csv or data.val_csv)
    paths.append(str(video_map.weights_file(checkpoint)))
    with video_map.place(address, paths, gpus) as where:
        shown = progress(len(dataset)) if progress is not None else None
        with shown or contextlib.nullcontext():
            rows = video_map.map_videos(
                work, dataset.samples, parts, where, cache=dataset.cache, progress=shown
            )
    evaluation = summarise(
        [
            VideoPrediction(
                index=row.index,
                path=sample.path,
                label=sample.label,
                probs=row.values,
                views=row.views,
                error=row.reason,
                detail=row.detail,
            )
            for row, sample in zip(rows, dataset.samples, strict=True)
        ],
        model.num_classes,
    )
    home = _home(config, store)
    labels = meta.get("labels") or class_names(config, model.num_classes)
    with _tracker(config, store, source, home) as tracker:
        on = measured_on(config, best=Path(model_source(store, source)).name == home.best.name)
        found = tested(evaluation, write_evaluation(evaluation, home.evaluation, labels, views, on), on)
        jobs.log_tested(tracker, found)
    video_map.forget(work, dataset.samples, parts)
    return found, home.evaluation


def test_run(
    config: ExperimentConfig,
    store: Store,
    source: str,
    *,
    progress: Callable[[int], Progress] | None = None,
) -> tuple[Tested, EvaluationDir]:
    """Test the model at `source`, of the task that `config.job` trains, recorded as a run of its own.

    Returns the result and the folder with its files. Raises InputError for a model of another kind.
    """
    stage, place = stages.STAGES[config.job], Path(model_source(store, source))
    assert stage.test is not None
    if not place.exists():
        load_model_at(store, source)  # says what is not there
        raise InputError(f"expected a folder with a model of task {stage.task}, got {source}")
    stage.ready(config)
    create_store(store)
    home = _home(config, store)
    context = Here(store.storage()).process.context(Work(config=config, home=home))
    with given_up(home.path):
        found = stage.test(context, place, progress)
    with _tracker(config, store, source, home) as tracker:
        jobs.log_tested(tracker, found)
    return found, home.evaluation


def _home(config: ExperimentConfig, store: Store) -> RunDir:
    """The folder of a new evaluation."""
    return store.layout.run(jobs.named(store, replace(config, name=f"{config.name}-evaluation"), None).name)


def _tracker(config: ExperimentConfig, store: Store, source: str, home: RunDir) -> Tracker:
    """What records it."""
    name = home.path.name
    return Tracker(
        store,
        home.path,
        name=name,
        key=key_of(home, name),
        kind=tags.EVALUATION,
        params=flatten(config),
        tags={tags.CHECKPOINT: place_of(store, source), **config_tags(config)},
    )


def evaluation_config(store: Store, source: str) -> ExperimentConfig:
    """The configuration to evaluate a model with: its run's, or one with its clip shape and sampling."""
    saved = found_config(Path(model_source(store, source)))
    if saved is not None:
        return ExperimentConfig.load(saved)
    model, meta, _ = load_model_at(store, source)
    return config_of_model(model, meta)
