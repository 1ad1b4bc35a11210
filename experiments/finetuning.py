"""Fine-tuning and evaluation runs: named, tracked, resumable by name."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vmae.core.config import flatten
from vmae.core.files import write_json
from vmae.core.measure.evaluate import (
    Evaluation,
    VideoPrediction,
    confusion_picture,
    evaluate,
    summarise,
    write_predictions,
)
from vmae.core.model.classifier import VideoClassifier, VideoClassifierConfig
from vmae.core.model.encoder import VideoModel
from vmae.core.model.videomae import VideoMAEConfig
from vmae.core.numerics import derive_seed
from vmae.core.progress import Progress
from vmae.core.train.config import metric_of_best
from vmae.core.train.finetune import VALIDATED, finetune
from vmae.core.train.task import Report, TrainResult
from vmae.core.video.cache import build_cache
from vmae.core.video.clips import ClipDataset
from vmae.core.weights.models import expect_model
from vmae.experiments import jobs, run
from vmae.experiments.cluster import files_to_see, video_map
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.distributed import WorkersConfig
from vmae.experiments.layout import found_config
from vmae.experiments.locks import at_work
from vmae.experiments.provenance import config_tags
from vmae.experiments.tracking import Store, Tracker, create_store, tags
from vmae.experiments.weights import load_model_at, model_source, place_of


@dataclass(frozen=True, kw_only=True)
class FinetuneOutcome:
    """A finished (or stopped) fine-tuning run; `evaluation` is None when stopped or without a list."""

    result: TrainResult
    evaluation: Evaluation | None
    folder: Path


def build_classifier(
    config: ExperimentConfig, num_classes: int, init: VideoModel | None = None
) -> VideoClassifier:
    """A classifier on `config.model`'s encoder, with `init`'s encoder weights where there are any.

    The head is drawn from the run's seed either way; torch's global generator is left as it was.
    """
    f = config.finetune
    changes = {"drop_path": f.drop_path, "dropout": f.dropout, "init_scale": f.init_scale}
    shape = VideoClassifierConfig.from_encoder(config.model, **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.train.seed, "weights"))
        model = VideoClassifier(shape, num_classes)
    if init is not None:
        model.load_encoder(init)
    return model


def class_names(config: ExperimentConfig, num_classes: int) -> list[str] | None:
    """Names from `classes.txt` (one a line) beside the training list, where there are enough of them."""
    path = Path(config.data.train_csv).with_name("classes.txt")
    if not config.data.train_csv or not path.is_file():
        return None
    names = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    return names if len(names) == num_classes else None


def finetune_stage(
    config: ExperimentConfig,
    data: run.Data,
    run_dir: Path,
    *,
    init: VideoModel | None = None,
    device: torch.device,
    tracker: Tracker | None = None,
    report: Report | None = None,
    should_stop: Callable[[], bool] | None = None,
    resume: bool = True,
) -> tuple[VideoClassifier, TrainResult]:
    """Fine-tune a classifier in `run_dir` (or continue the one there), validated on `data.val`."""
    model = build_classifier(config, data.num_classes, init)
    result = finetune(
        model=model,
        config=config.finetune,
        dataset=data.train,
        val=data.val,
        optim=config.optim,
        train=config.train,
        run_dir=run_dir,
        device=device,
        report=run.reporter(tracker, report, stage="finetune"),
        resume=resume,
        should_stop=should_stop,
        labels=class_names(config, data.num_classes),
    )
    return model, result


def test_list(config: ExperimentConfig, cache_dir: Path, *, alone: bool = False) -> ClipDataset:
    """The test list (the held-out list where there is none), with segments x crops views a video.

    A training has decoded its lists together; `alone`: decode this one by itself.
    """
    data = config.data
    samples = run.read_list(data, data.test_csv or data.val_csv)
    cache = build_cache(samples if alone else run.all_samples(data), data, cache_dir)
    return ClipDataset(samples, data, "test", config.train.seed, cache=cache)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What an evaluation's numbers are of: the list, and whether an epoch was chosen on it."""

    listed: str
    chose: bool

    @property
    def prefix(self) -> str:
        """How its metrics are called: `test/` is for lists that chose nothing."""
        return "val/final_" if self.chose else "test/"


def measured_on(config: ExperimentConfig, *, best: bool) -> Measured:
    """The list that a run with this configuration is measured on; `best`: its best epoch's weights are."""
    data = config.data
    listed = data.test_csv or data.val_csv
    chosen = best and metric_of_best(config.train.best_by, VALIDATED) in VALIDATED
    same = bool(data.val_csv) and os.path.realpath(listed) == os.path.realpath(data.val_csv)
    return Measured(listed=listed, chose=chosen and same)


def evaluate_stage(
    model: VideoClassifier,
    config: ExperimentConfig,
    folder: Path,
    cache_dir: Path,
    *,
    device: torch.device,
    best: bool = False,
    tracker: Tracker | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate on the test views; `folder` gets predictions.csv, confusion.png and metrics.json.

    `best`: the model is the best epoch's (see `measured_on`).
    """
    dataset = test_list(config, cache_dir)
    views = dataset.clips_per_video
    evaluation = evaluate(
        model,
        dataset,
        num_classes=model.num_classes,
        batch_size=max(1, config.train.batch_size // views),
        device=device,
        precision=config.train.precision,
        progress=progress,
    )
    on = measured_on(config, best=best)
    write_evaluation(evaluation, folder, class_names(config, model.num_classes), views, on, tracker)
    return evaluation


def write_evaluation(
    evaluation: Evaluation,
    folder: Path,
    names: list[str] | None,
    views: int,
    on: Measured,
    tracker: Tracker | None,
) -> None:
    """Write predictions.csv, confusion.png and metrics.json to `folder`, and track them."""
    folder.mkdir(parents=True, exist_ok=True)
    write_predictions(folder / "predictions.csv", evaluation, names)
    picture = confusion_picture(evaluation.confusion, names)
    from PIL import Image

    Image.fromarray(picture).save(folder / "confusion.png")
    found = evaluation.interval()
    metrics = {**evaluation.metrics(), "top1_low": found.low, "top1_high": found.high}
    facts = {"videos": len(evaluation.predictions), "views": views, "list": on.listed, "chose": on.chose}
    write_json(folder / "metrics.json", {**metrics, **facts})
    if tracker is not None:
        tracker.log_metrics({f"{on.prefix}{k}": v for k, v in metrics.items()}, 0)
        for name in ("predictions.csv", "confusion.png", "metrics.json"):
            tracker.log_artifact(folder / name, "evaluation")


@at_work
def finetune_run(
    config: ExperimentConfig,
    store: Store,
    *,
    report: Report | None = None,
    cache_progress: run.CacheProgress | None = None,
    test_progress: Callable[[int], Progress] | None = None,
    notes: Callable[[str], None] | None = None,
    ahead: jobs.Ahead | None = None,
    workers: WorkersConfig | None = None,
) -> FinetuneOutcome:
    """Fine-tune, or go on with the run of this name; evaluate the best epoch's model on the test views.

    With `workers` it trains on Ray workers, else in this process without Ray. Nothing is written before the
    lists are read and every held-out video is known to decode.
    """
    config, init, data, home, device = jobs.begin(config, store, cache_progress, workers, notes, ahead)
    with (
        Tracker(
            store,
            home.path,
            name=config.name,
            key=f"run:{config.name}",
            kind="finetune",
            params=flatten(config),
            tags={**config_tags(config), tags.INIT: config.init or "fresh weights"},
        ) as tracker,
        jobs.stop_on_signal() as should_stop,
    ):
        run.log_start(tracker, home)
        if workers is None:
            _, result = finetune_stage(
                config,
                data,
                home.path,
                init=init,
                device=device,
                tracker=tracker,
                report=report,
                should_stop=should_stop,
            )
        else:
            result = jobs.on_workers(
                config, store, home.path, workers, tracker=tracker, report=report, should_stop=should_stop
            )
        tracker.set_tags({tags.CHECKPOINT: str(result.best_model_path or result.model_path)})
        run.log_checkpoints(tracker, config, home, stopped=result.stopped)
        if result.stopped:
            tracker.finish("KILLED")
            return FinetuneOutcome(result=result, evaluation=None, folder=home.path)
        evaluation = None
        if config.data.test_csv or config.data.val_csv:
            place = str(result.best_model_path or result.model_path)
            best = expect_model(load_model_at(store, place)[0], VideoClassifier, place)
            videos = len(run.read_list(config.data, config.data.test_csv or config.data.val_csv))
            shown = test_progress(videos) if test_progress is not None else None
            evaluation = evaluate_stage(
                best,
                config,
                home.evaluation,
                store.layout.cache,
                device=device,
                best=result.best_model_path is not None,
                tracker=tracker,
                progress=shown,
            )
    return FinetuneOutcome(result=result, evaluation=evaluation, folder=home.path)


def evaluate_run(
    config: ExperimentConfig,
    store: Store,
    source: str,
    *,
    address: str | None = None,
    gpus: float = 0.0,
    progress: Callable[[int], Progress] | None = None,
) -> tuple[Evaluation, Path]:
    """Evaluate the classifier at `source` on the configuration's test list, recorded as a run of its own.

    With `address` the nodes of that Ray cluster share the videos; each task takes one CPU and `gpus` GPUs.
    What a killed evaluation had done is not done again by the next of the same weights, list and views.

    Returns the result and the folder with predictions.csv, confusion.png and metrics.json. Raises InputError
    when the model is not a classifier, takes other clips than the configuration cuts or has fewer classes
    than the list.
    """
    model, meta, _ = load_model_at(store, source)
    place = f"{source}: `vmae finetune --init` or `vmae probe` it"
    model = expect_model(model, VideoClassifier, place, wanted="a fine-tuned classifier")
    data = config.data if address is None else replace(config.data, cache=False)
    config = replace(config, data=data)
    dataset = test_list(config, store.layout.cache, alone=True)
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
    create_store(store)
    name = jobs.named(store, replace(config, name=f"{config.name}-evaluation"), None).name
    home = store.layout.run(name)
    labels = meta.get("labels") or class_names(config, model.num_classes)
    with Tracker(
        store,
        home.path,
        name=name,
        key=f"run:{name}",
        kind="evaluate",
        params=flatten(config),
        tags={tags.CHECKPOINT: place_of(store, source), **config_tags(config)},
    ) as tracker:
        on = measured_on(config, best=Path(model_source(store, source)).name == home.best.name)
        write_evaluation(evaluation, home.evaluation, labels, views, on, tracker)
    video_map.forget(work, dataset.samples, parts)
    return evaluation, home.evaluation


def evaluation_config(store: Store, source: str) -> ExperimentConfig:
    """The configuration to evaluate a model with: its run's, or one with its clip shape and sampling."""
    saved = found_config(Path(model_source(store, source)))
    if saved is not None:
        return ExperimentConfig.load(saved)
    model, meta, _ = load_model_at(store, source)
    return config_of_model(model, meta)


def config_of_model(model: VideoModel, meta: dict[str, Any]) -> ExperimentConfig:
    """A configuration with the clip shape of a model and, where it carries it, how it sampled frames."""
    base = ExperimentConfig()
    c = model.config
    sampling = {k: v for k, v in meta.get("sampling", {}).items() if k in ("sampling_rate", "sampling")}
    data = replace(base.data, frames=c.frames, size=(c.height, c.width), short_side=c.height, **sampling)
    shape = {"frames": c.frames, "height": c.height, "width": c.width, "channels": c.channels}
    return replace(
        base,
        name="model",
        data=data,
        model=VideoMAEConfig.from_size(
            "tiny", patch_size=c.patch_size, tubelet_size=c.tubelet_size, mean=c.mean, std=c.std, **shape
        ),
    )
