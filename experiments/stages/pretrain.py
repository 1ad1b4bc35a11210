"""Masked pre-training, the first stage of every trial."""

from __future__ import annotations

from vmae.experiments.stages.stage import SHARE, SPEED, Config, Metric, Stage
from vmae.experiments.tracking import tags

LOSS = Metric(
    name="pretrain/loss",
    title="training loss",
    column="pre-training loss",
    higher_is_better=False,
    digits=3,
    curve=True,
    comparable=False,
)
KNN = Metric(
    name="pretrain/knn_top1",
    title="nearest-neighbour accuracy inside the training list",
    unit=SHARE,
    curve=True,
)
"""Leave-one-out, so that it may decide which trials go on: the held-out list is not looked at."""
SPEED_METRIC = Metric(name="pretrain/clips_per_s", title="clips/s", column="clips/s", unit=SPEED, digits=0)
STOP_ON = {"loss": LOSS, "knn": KNN}
"""What trials can be stopped by, as `vmae sweep --stop-on` calls it."""


def check(config: Config) -> None:
    """Raise InputError for a mask that leaves nothing to see or to predict, or an unknown `train.best_by`."""
    from vmae.core.model.masking import mask_counts
    from vmae.core.train.config import metric_of_best

    metric_of_best(config.train.best_by, ("knn_top1",) if config.pipeline.measure_every else ())
    mask_counts(config.mask.type, config.mask.ratio, config.model.grid)
    mask_counts("tube", config.evaluation_ratio, config.model.grid)


def flops(config: Config) -> float:
    """Of the encoder on visible tokens and the decoder."""
    from vmae.core.plan import training_flops

    return training_flops(config.model, config.mask)


STAGE = Stage(
    name="pretrain",
    metrics=(
        LOSS,
        KNN,
        SPEED_METRIC,
        Metric(name="pretrain/skipped_steps", title="skipped steps", higher_is_better=False, digits=0),
    ),
    share=lambda config: float(config.train.epochs),
    trains=True,
    section="train",
    check=check,
    flops=flops,
    unused=("finetune.", "pipeline.then", "pipeline.finetune_"),
    model_tag=tags.CHECKPOINT,
)
