"""Regression and multi-label classification, fine-tuned end to end: numbers or several labels a video."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vmae.experiments.stages.finetune import (
    build_classifier,
    class_names,
    flops,
    measured_on,
    views,
    watches,
)
from vmae.experiments.stages.stage import SHARE, Config, Context, Metric, Numbers, Stage, Tested
from vmae.experiments.tracking import tags

if TYPE_CHECKING:
    import numpy as np

    from vmae.core.progress import Progress
    from vmae.core.train.task import TrainResult
    from vmae.core.video.samples import Sample

Kind = Literal["regression", "multilabel"]
FORMAT: dict[Kind, Literal["numbers", "labels"]] = {"regression": "numbers", "multilabel": "labels"}
HELD_OUT = "on held-out videos"


def settings(config: Config, kind: Kind) -> Config:
    """The pipeline's own optimiser and loop; the whole training list, read as the task needs it."""
    pipeline = config.pipeline
    return replace(
        config,
        job=kind,
        data=replace(config.data, train_share=1.0, annotation_format=FORMAT[kind]),
        optim=pipeline.finetune_optim,
        train=replace(pipeline.finetune_train, seed=config.train.seed),
    )


def check(config: Config, kind: Kind) -> None:
    """Raise InputError for an unknown `train.best_by`, and for a list that is read as another kind."""
    from vmae.core.errors import InputError
    from vmae.core.train.config import metric_of_best
    from vmae.core.train.heads import VALIDATED

    metric_of_best(config.train.best_by, VALIDATED[kind])
    if config.data.annotation_format != FORMAT[kind]:
        raise InputError(
            f"data.annotation_format: expected {FORMAT[kind]} for {kind}, got {config.data.annotation_format}"
        )


def check_list(config: Config, samples: Sequence[Sample], listed: str, *, kind: Kind) -> None:
    """Raise InputError for a list without numbers, or labels, on every line."""
    from vmae.core.train.heads import check_targets

    if samples:
        check_targets(samples, kind, listed)


def train(context: Context, kind: Kind) -> TrainResult:
    """Train the head with the encoder, or continue, validated on the held-out list."""
    from vmae.core.train.heads import num_outputs, train_head

    config, data = context.config, context.data()
    outputs = num_outputs(data.train_plain.samples, kind)
    return train_head(
        kind=kind,
        model=build_classifier(config, outputs, context.model()),
        config=config.finetune,
        dataset=data.train,
        val=data.val,
        **context.training(),
        labels=class_names(config, outputs),
    )


def test(
    context: Context, place: Path, progress: Callable[[int], Progress] | None = None, *, kind: Kind
) -> Tested:
    """The head at `place` over the test views of each video; predictions.csv and metrics.json."""
    from contextlib import nullcontext

    from vmae.core.errors import InputError
    from vmae.core.files import write_json
    from vmae.core.measure.heads import measure_head, predict_videos
    from vmae.core.model.classifier import VideoClassifier
    from vmae.core.train.heads import VALIDATED, check_targets, targets_of
    from vmae.core.video.clips import ClipDataset
    from vmae.core.weights.checkpoint import load_model
    from vmae.core.weights.models import expect_model
    from vmae.experiments.data import read_list

    config = context.config
    loaded, meta = load_model(place)
    model = expect_model(loaded, VideoClassifier, place)
    if meta.get("task") != kind:
        got = meta.get("task", "classification")
        raise InputError(f"{place}: expected a model of task {kind}, got one of {got}")
    on = measured_on(config, best=place.name == context.home.best.name, validated=VALIDATED[kind])
    samples = read_list(config.data, on.listed)
    check_targets(samples, kind, on.listed, model.num_classes)
    dataset = ClipDataset(samples, config.data, "test", config.train.seed)
    with progress(len(samples)) if progress is not None else nullcontext() as shown:
        found = predict_videos(
            model,
            dataset,
            kind=kind,
            scale=meta.get("scale"),
            batch_size=max(1, config.train.batch_size // dataset.clips_per_video),
            device=context.device,
            precision=config.train.precision,
            progress=shown,
        )
    truth = targets_of(samples, kind, model.num_classes)
    numbers = measure_head(found, truth, kind)
    home = context.home.evaluation
    home.path.mkdir(parents=True, exist_ok=True)
    names = meta.get("labels") or [str(k) for k in range(model.num_classes)]
    _write_predictions(home.predictions, samples, found, truth, names)
    write_json(home.metrics, {**numbers, "videos": len(samples), "list": on.listed, "chose": on.chose})
    text = "  ".join(f"{k} {v:.4g}" for k, v in numbers.items() if k != "loss")
    listed, count = Path(on.listed).name, dataset.clips_per_video
    lines = [f"{text} on {len(samples)} videos of {listed}, {count} views each"]
    if kind == "regression":
        lines[0] += f" (the mean alone: r2 0, mae {abs(truth - truth.mean(0)).mean():.4g})"
    if on.chose:
        lines.append(f"{listed} chose the epoch: data.test_csv measures on videos that did not")
    return Tested(numbers=numbers, files=[home.predictions, home.metrics], lines=lines, on=on)


def _write_predictions(
    file: Path, samples: Sequence[Sample], found: np.ndarray, truth: np.ndarray, names: Sequence[str]
) -> None:
    """A line a video: its path, then for every output what is true and what is predicted."""
    import csv

    from vmae.core.files import replacing

    with replacing(file) as temporary, open(temporary, "w", encoding="utf-8", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["path", *(f"{word}_{n}" for n in names for word in ("true", "predicted"))])
        for sample, said, true in zip(samples, found, truth, strict=True):
            pairs = zip(true.tolist(), said.tolist(), strict=True)
            writer.writerow([sample.path, *(f"{v:.6g}" for pair in pairs for v in pair)])


def run(context: Context, kind: Kind) -> Numbers:
    """The last weights, not those of the best epoch: that one was chosen on this list."""
    found = test(context, context.home.model, kind=kind)
    return {f"{kind}/{k}": v for k, v in found.numbers.items() if k != "loss"}


def _metrics(kind: Kind) -> tuple[Metric, ...]:
    loss = Metric(
        name=f"{kind}/loss", title=f"{kind} loss", column=f"{kind} loss", higher_is_better=False, digits=3,
        curve=True,
    )  # fmt: skip
    shared: dict[str, Any] = {"score": True, "where": HELD_OUT}
    if kind == "regression":
        return (
            Metric(
            name="regression/r2", title="R2", column="R2", digits=3, chance="regression/chance", **shared,
        ),
        Metric(name="regression/chance", title="R2 of the mean", digits=3),
            Metric(
                name="regression/mae", title="mean absolute error", column="MAE", higher_is_better=False,
                where=HELD_OUT,
            ),
            loss,
            Metric(name="test/r2", title="test R2", digits=3, **shared),
            Metric(name="regression/val_r2", title="validation R2", digits=3, curve=True, **shared),
        )  # fmt: skip
    return (
        Metric(
            name="multilabel/mean_ap", title="mAP over labels", column="mAP", unit=SHARE,
            chance="multilabel/chance", **shared,
        ),
        Metric(name="multilabel/chance", title="share of videos that have a label", unit=SHARE),
        loss,
        Metric(name="test/mean_ap", title="test mAP over labels", unit=SHARE, **shared),
        Metric(name="multilabel/val_mean_ap", title="validation mAP", unit=SHARE, curve=True, **shared),
    )  # fmt: skip


def _stage(kind: Kind) -> Stage:
    return Stage(
        name=kind,
        metrics=_metrics(kind),
        share=lambda config: 2.0 * config.pipeline.finetune_train.epochs,
        train=partial(train, kind=kind),
        run=partial(run, kind=kind),
        section="pipeline.finetune_train",
        settings=partial(settings, kind=kind),
        check=partial(check, kind=kind),
        flops=flops,
        task=kind,
        recipe=f"small_{kind}",
        views=views,
        watches=watches,
        check_list=partial(check_list, kind=kind),
        test=partial(test, kind=kind),
        unused=(
            "mask.",
            "detect.",
            "localise.",
            "pipeline.",
            "probe.",
            "finetune.mix.",
            "finetune.distill.",
            "finetune.label_smoothing",
            "model.decoder_",
            "model.drop_path",
        ),
        model_tag=tags.CLASSIFIER,
        best_counts=True,
        baseline="trained from scratch",
    )


REGRESSION, MULTILABEL = _stage("regression"), _stage("multilabel")
