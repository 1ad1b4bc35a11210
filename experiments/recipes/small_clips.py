"""Recipes for 200 to 20,000 short clips of your own, without foreign weights, on two CPU cores or on one GPU.

`vmae recommend LIST` starts from these and sets what the list, the machine and the budget decide. How the CPU
ones were found, and what did not help: docs/start.md.
"""

from __future__ import annotations

from dataclasses import replace

from vmae.core.measure.probe import ProbeConfig
from vmae.core.model.masking import MaskConfig
from vmae.core.model.videomae import VideoMAEConfig
from vmae.core.train.config import TrainConfig
from vmae.core.train.finetune import FinetuneConfig
from vmae.core.train.mixing import MixConfig
from vmae.core.train.optim import OptimConfig
from vmae.core.video.config import DataConfig
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.recipes.demo import tiny_model
from vmae.experiments.recipes.recipe import recipe
from vmae.experiments.stages import finetune, heads


@recipe
def small_clips_finetune() -> ExperimentConfig:
    """Train a tiny classifier on 200 to 2,000 short clips from fresh weights (or --init), on two CPU cores.

    Command: `vmae finetune --recipe small_clips_finetune --data LIST`. No epoch is chosen on the held-out
    list: the last one's weights are kept. Measured (docs/start.md), three folds of sessions, three seeds, 100
    epochs: ten gestures 81.0% [75.5, 85.0] (217 videos, chance 10.0%); seven tennis strokes, whose scene is
    kept (`model.background=keep`: `vmae finetune --data LIST` tries which), 19.6% [15.3, 24.6] (371 videos,
    chance 14.3%; with the scene taken away 11.1% [8.1, 15.1]).
    Cost: 0.162 GFLOP a clip, 0.0162 TFLOP a video over the run.
    """
    return ExperimentConfig(
        job=finetune.STAGE.name,
        model=replace(_tiny(), background="subtract"),
        data=_data(),
        optim=OptimConfig(
            base_lr=1.6e-2,  # 1e-3 for batches of 16
            min_lr=0.0,
            warmup_epochs=10,
            betas=(0.9, 0.999),
            layer_decay=0.75,
            clip_grad=1.0,
        ),
        train=TrainConfig(epochs=100, batch_size=16, checkpoint_every=10, best_by=None),
        finetune=FinetuneConfig(
            drop_path=0.0, label_smoothing=0.1, mix=MixConfig(mixup=0.8, cutmix=0.0), eval_every=10
        ),
    )


def _other_head(kind: heads.Kind) -> ExperimentConfig:
    base = small_clips_finetune()
    return replace(
        base,
        job=kind,
        finetune=replace(base.finetune, mix=MixConfig(mixup=0.0, cutmix=0.0)),
        data=replace(base.data, annotation_format=heads.FORMAT[kind]),
        train=replace(base.train, epochs=40),
    )


@recipe
def small_regression() -> ExperimentConfig:
    """Numbers instead of classes: small_clips_finetune's clips and optimiser, 40 epochs.

    Command: `vmae finetune --task regression --data LIST`, a line `path value[;value...]`.
    Cost: 0.162 GFLOP a clip, 0.00647 TFLOP a video over the run.
    """
    return _other_head("regression")


@recipe
def small_multilabel() -> ExperimentConfig:
    """Several labels a video: small_clips_finetune's clips and optimiser, 40 epochs.

    Command: `vmae finetune --task multilabel --data LIST`, a line `path label[;label...]`.
    Cost: 0.162 GFLOP a clip, 0.00647 TFLOP a video over the run.
    """
    return _other_head("multilabel")


@recipe
def small_clips_pretrain() -> ExperimentConfig:
    """Pre-train the same tiny model on 200 to 20,000 short clips on two CPU cores, for small_clips_finetune.

    Command: `vmae pretrain --recipe small_clips_pretrain --data LIST`. Measured (docs/start.md), three folds
    of sessions, each fold's videos unseen, three seeds: fine-tuned from it ten gestures reach 83.3% [77.0,
    87.8], from fresh weights 81.0% (217 videos, chance 10.0%), seven tennis strokes 18.1% [15.0, 21.9], from
    fresh weights 19.6% (371 videos, chance 14.3%). No gain is shown; `vmae recommend LIST --try-pretraining`
    tries it on a list.
    Cost: 0.116 GFLOP a clip, 0.0233 TFLOP a video over the run.
    """
    return ExperimentConfig(
        model=_tiny(),
        mask=MaskConfig(type="tube", ratio=0.75),  # 9 of 36 tokens are seen
        data=_data(),
        optim=OptimConfig(base_lr=2.4e-2, min_lr=0.0, warmup_epochs=10, clip_grad=1.0),
        train=TrainConfig(epochs=200, batch_size=16, checkpoint_every=10),
        probe=ProbeConfig(kind="linear", pooling="time"),
    )


@recipe
def small_clips_gpu_finetune() -> ExperimentConfig:
    """Train ViT-S on 200 to 20,000 short clips from fresh weights (or --init), on one GPU. Not measured yet.

    Command: `vmae finetune --recipe small_clips_gpu_finetune --data LIST`. The optimiser's and the
    augmentation's values are the CPU recipe's; the clip (16 frames of 112 pixels) and the model are larger,
    and no GPU was there to say how much that brings.
    Cost: 59.4 GFLOP a clip, 5.94 TFLOP a video over the run.
    """
    base = small_clips_finetune()
    return replace(
        base,
        model=_small(),
        data=replace(base.data, frames=16, size=(112, 112), short_side=128, workers=8),
        optim=replace(base.optim, base_lr=2e-3),
        train=replace(base.train, batch_size=64),
    )


@recipe
def small_clips_gpu_pretrain() -> ExperimentConfig:
    """Pre-train ViT-S on 200 to 20,000 short clips, on one GPU. Not measured yet, as its fine-tuning.

    Command: `vmae pretrain --recipe small_clips_gpu_pretrain --data LIST`.
    Cost: 20.2 GFLOP a clip, 16.2 TFLOP a video over the run.
    """
    base = small_clips_pretrain()
    return replace(
        base,
        model=_small(),
        mask=MaskConfig(type="tube", ratio=0.75),
        data=replace(base.data, frames=16, size=(112, 112), short_side=128, workers=8),
        optim=replace(base.optim, base_lr=6e-4, warmup_epochs=40),
        train=replace(base.train, epochs=800, batch_size=64),
    )


def _tiny() -> VideoMAEConfig:
    # One time slot: motion is inside the tokens, of which there are half as many.
    return replace(tiny_model(), tubelet_size=8)


def _small() -> VideoMAEConfig:
    return VideoMAEConfig.from_size("small", frames=16, height=112, width=112)


def _data() -> DataConfig:
    return DataConfig(
        frames=8,
        sampling="uniform",
        size=(48, 48),
        short_side=56,
        augment="multi_scale_crop",
        segments=2,
        crops=1,
        cache=True,
        workers=0,
    )
