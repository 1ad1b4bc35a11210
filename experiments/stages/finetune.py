"""A classifier trained end to end from the pre-trained encoder, and measured over several views a video."""

from __future__ import annotations

from dataclasses import replace

from vmae.experiments.stages.stage import SHARE, Config, Metric, Stage, accuracies
from vmae.experiments.tracking import tags

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
    """The pipeline's own optimiser and loop; the whole training list, whatever share was pre-trained on."""
    pipeline = config.pipeline
    return replace(
        config,
        job=STAGE.name,
        data=replace(config.data, train_share=1.0),
        optim=pipeline.finetune_optim,
        train=replace(pipeline.finetune_train, seed=config.train.seed),
    )


def check(config: Config) -> None:
    """Raise InputError for an unknown `train.best_by`."""
    from vmae.core.train.config import metric_of_best
    from vmae.core.train.finetune import VALIDATED

    metric_of_best(config.train.best_by, VALIDATED)


def flops(config: Config) -> float:
    """Of the encoder on all tokens and the head; no backward pass through a frozen encoder."""
    from vmae.core.plan import training_flops

    found = training_flops(config.model, None)
    return found / 3 if config.finetune.freeze_encoder else found


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
    trains=True,
    section="pipeline.finetune_train",
    settings=settings,
    check=check,
    flops=flops,
    labels=True,
    unused=("mask.", "pipeline.", "probe.", "model.decoder_", "model.drop_path"),
    model_tag=tags.CLASSIFIER,
    best_counts=True,
    baseline="fine-tuned from scratch",
)
