"""A classifier trained end to end from the pre-trained encoder, and measured over several views a video."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vmae.experiments.stages.stage import (
    SHARE,
    Config,
    Context,
    Measured,
    Metric,
    Numbers,
    Stage,
    Tested,
    accuracies,
)
from vmae.experiments.tracking import tags

if TYPE_CHECKING:
    from vmae.core.measure.evaluate import Evaluation
    from vmae.core.model.classifier import VideoClassifier
    from vmae.core.model.encoder import VideoModel
    from vmae.core.progress import Progress
    from vmae.core.train.task import TrainResult
    from vmae.core.video.samples import Sample
    from vmae.experiments.layout import EvaluationDir

HELD_OUT = "on held-out videos"
TEST = Metric(name="test/top1", title="test accuracy", unit=SHARE, score=True, where=HELD_OUT)
"""Of a single run: over all views of a list that chose nothing."""
CHOSEN = Metric(
    name="val/final_top1",
    title="accuracy of the chosen epoch",
    unit=SHARE,
    score=True,
    where="on the videos that chose it",
)
"""Of a single run without a test list: over all views of the list on which the epoch was chosen."""


def settings(config: Config) -> Config:
    """The pipeline's own optimiser and loop; of the training list and no other, whatever was pre-trained on,
    the share that `pipeline.finetune_share` says, in as many steps as the whole of it."""
    pipeline, share = config.pipeline, config.pipeline.finetune_share
    optim, train = pipeline.finetune_optim, pipeline.finetune_train
    return replace(
        config,
        job=STAGE.name,
        data=replace(config.data, train_share=share, train_weight=1.0, more_lists=()),
        optim=replace(optim, warmup_epochs=optim.warmup_epochs / share),
        train=replace(train, seed=config.train.seed, epochs=max(1, round(train.epochs / share))),
    )


def check(config: Config) -> None:
    """Raise InputError for an unknown `train.best_by`."""
    from vmae.core.train.config import metric_of_best
    from vmae.core.train.finetune import VALIDATED

    metric_of_best(config.train.best_by, VALIDATED)


def check_list(config: Config, samples: Sequence[Sample], listed: str) -> None:
    """Raise InputError where a video has no label."""
    from vmae.core.video.samples import require_labels

    require_labels(samples, listed)


def flops(config: Config) -> float:
    """Of the encoder on all tokens and the head; no backward pass through a frozen encoder."""
    from vmae.core.plan import training_flops

    found = training_flops(config.model, None)
    return found / 3 if config.finetune.freeze_encoder else found


def views(config: Config) -> int:
    """Clips of a video that the test looks at."""
    return int(config.data.segments * config.data.crops)


def watches(config: Config) -> int:
    """Epochs between validations; 0: only the last."""
    return int(config.finetune.eval_every)


def build_classifier(config: Config, num_classes: int, init: VideoModel | None = None) -> VideoClassifier:
    """A classifier on `config.model`'s encoder, with `init`'s encoder weights where there are any.

    The head is drawn from the run's seed either way; torch's global generator is left as it was.
    """
    import torch

    from vmae.core.model.classifier import VideoClassifier, VideoClassifierConfig
    from vmae.core.numerics import derive_seed

    f = config.finetune
    changes = {"drop_path": f.drop_path, "dropout": f.dropout, "init_scale": f.init_scale}
    shape = VideoClassifierConfig.from_encoder(config.model, **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.train.seed, "weights"))
        model = VideoClassifier(shape, num_classes)
    if init is not None:
        model.load_encoder(init)
    return model


def class_names(config: Config, num_classes: int) -> list[str] | None:
    """Names from `classes.txt` (one a line) beside the training list, where there are enough of them."""
    from vmae.core.video import classes

    names = classes.class_names(config.data.train_csv) if config.data.train_csv else []
    return names[:num_classes] if len(names) >= num_classes else None


def read_teacher(config: Config, labels: list[str] | None) -> VideoClassifier | None:
    """The classifier that `finetune.distill` names; InputError for one of other classes than `labels`."""
    from vmae.core.errors import InputError
    from vmae.core.model.classifier import VideoClassifier
    from vmae.core.weights.models import expect_model
    from vmae.core.weights.zoo import load_init

    place = config.finetune.distill.teacher
    if not place:
        return None
    loaded = load_init(place)
    known = loaded.meta.get("labels")
    if known and labels and list(known) != labels:
        other = next(
            f"{a} and {b}" for a, b in zip([*labels, "none"], [*known, "none"], strict=False) if a != b
        )
        raise InputError(f"finetune.distill.teacher: expected the list's classes in its order, got {other}")
    return expect_model(loaded.model, VideoClassifier, place)


def train(context: Context) -> TrainResult:
    """Fine-tune a classifier, or continue the one there, validated on the held-out list."""
    from vmae.core.train.finetune import finetune

    config, data = context.config, context.data()
    labels = class_names(config, data.num_classes)
    return finetune(
        model=build_classifier(config, data.num_classes, context.initial()),
        config=config.finetune,
        dataset=data.train,
        val=data.val,
        **context.training(),
        labels=labels,
        teacher=read_teacher(config, labels),
    )


def run(context: Context) -> Numbers:
    """The last weights on the test views, not those of the best epoch: that one was chosen on this list."""
    found, _ = evaluated(context, context.home.model, measured_on(context.config, best=False))
    return {
        "finetune/top1": found.top1,
        "finetune/top5": found.top5,
        "finetune/mean_class": found.mean_class,
        "finetune/chance": 1 / len(found.confusion),
    }


def measured_on(config: Config, *, best: bool, validated: tuple[str, ...] | None = None) -> Measured:
    """The list that a run with this configuration is measured on; `best`: its best epoch's weights are.

    `validated`: by which metrics an epoch can be chosen (default: a classifier's).
    """
    from vmae.core.train.config import metric_of_best
    from vmae.core.train.finetune import VALIDATED

    data, known = config.data, VALIDATED if validated is None else validated
    listed = data.test_csv or data.val_csv
    chosen = best and metric_of_best(config.train.best_by, known) in known
    same = bool(data.val_csv) and os.path.realpath(listed) == os.path.realpath(data.val_csv)
    return Measured(listed=listed, chose=chosen and same)


def evaluated(
    context: Context, place: Path, on: Measured, progress: Callable[[int], Progress] | None = None
) -> tuple[Evaluation, list[Path]]:
    """The classifier at `place` on the test views, and the files about it that were written to `home`.

    `progress` is told how many videos there are.
    """
    from vmae.core.measure.evaluate import evaluate
    from vmae.core.model.classifier import VideoClassifier
    from vmae.core.weights.checkpoint import load_model
    from vmae.core.weights.models import expect_model
    from vmae.experiments.data import open_test

    config = context.config
    model = expect_model(load_model(place)[0], VideoClassifier, place)
    dataset = open_test(config.data, config.train.seed, context.cache)
    views = dataset.clips_per_video
    found = evaluate(
        model,
        dataset,
        num_classes=model.num_classes,
        batch_size=max(1, config.train.batch_size // views),
        device=context.device,
        precision=config.train.precision,
        progress=progress(len(dataset)) if progress is not None else None,
    )
    names = class_names(config, model.num_classes)
    return found, write_evaluation(found, context.home.evaluation, names, views, on)


def test(context: Context, place: Path, progress: Callable[[int], Progress] | None = None) -> Tested:
    """What the classifier at `place` reaches on the test views; its files go to `home`."""
    on = measured_on(context.config, best=place.name == context.home.best.name)
    return tested(*evaluated(context, place, on, progress), on)


def tested(found: Evaluation, files: list[Path], on: Measured) -> Tested:
    """An evaluation in words: accuracies with an interval, on which list and how many videos."""
    views = max(p.views for p in found.predictions)
    name, videos = Path(on.listed).name, len(found.predictions)
    top5 = f"top-5 {found.top5:.1%}  " if len(found.confusion) > 5 else ""
    lines = [
        f"top-1 {found.interval().text()}  {top5}mean class {found.mean_class:.1%}  "
        f"(chance {1 / len(found.confusion):.1%}) on {videos} videos of {name}, {views} views each"
    ]
    if on.chose:
        lines.append(
            f"{name} chose the epoch, so this number is too good by some points: data.test_csv or --folds "
            "measure on videos that chose nothing"
        )
    if found.unreadable:
        lines.append(f"{found.unreadable} videos could not be read and count as wrong")
    return Tested(numbers=evaluation_metrics(found), files=files, lines=lines, on=on)


def evaluation_metrics(found: Evaluation) -> Numbers:
    """An evaluation's numbers, the interval of its accuracy among them."""
    interval = found.interval()
    return {**found.metrics(), "top1_low": interval.low, "top1_high": interval.high}


def write_evaluation(
    found: Evaluation, home: EvaluationDir, names: list[str] | None, views: int, on: Measured
) -> list[Path]:
    """Write predictions.csv, confusion.png and metrics.json to `home`; returns the files."""
    from PIL import Image

    from vmae.core.files import write_json
    from vmae.core.measure.evaluate import confusion_picture, write_predictions

    home.path.mkdir(parents=True, exist_ok=True)
    write_predictions(home.predictions, found, names)
    Image.fromarray(confusion_picture(found.confusion, names)).save(home.confusion)
    facts = {"videos": len(found.predictions), "views": views, "list": on.listed, "chose": on.chose}
    write_json(home.metrics, {**evaluation_metrics(found), **facts})
    return [home.predictions, home.confusion, home.metrics]


STAGE = Stage(
    name="finetune",
    metrics=(
        *accuracies("finetune", "fine-tuned accuracy"),
        Metric(
            name="finetune/loss",
            title="fine-tuning loss",
            column="fine-tuning loss",
            higher_is_better=False,
            digits=3,
            curve=True,
        ),
        TEST,
        CHOSEN,
        Metric(
            name="finetune/val_top1",
            title="validation accuracy",
            unit=SHARE,
            score=True,
            curve=True,
            where=HELD_OUT,
        ),
    ),
    share=lambda config: 2.0 * config.pipeline.finetune_train.epochs,
    train=train,
    run=run,
    section="pipeline.finetune_train",
    settings=settings,
    check=check,
    flops=flops,
    varies="finetune (mixing changes what a step computes)",
    takes_share=True,
    task="classification",
    recipe="demo_finetune",
    advised=True,
    labels=True,
    views=views,
    watches=watches,
    check_list=check_list,
    unused=(
        "mask.",
        "detect.",
        "localise.",
        "pipeline.",
        "probe.",
        "monitor.",
        "model.decoder_",
        "model.drop_path",
    ),
    model_tag=tags.CLASSIFIER,
    best_counts=True,
    test=test,
    baseline="fine-tuned from scratch",
)
