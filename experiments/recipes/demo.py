"""Recipes for the built-in data set, sized for two CPU cores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vmae.core.measure.probe import ProbeConfig
from vmae.core.model.masking import MaskConfig
from vmae.core.model.videomae import VideoMAEConfig
from vmae.core.train.config import TrainConfig
from vmae.core.train.detect import DetectConfig
from vmae.core.train.finetune import FinetuneConfig
from vmae.core.train.mixing import MixConfig
from vmae.core.train.optim import OptimConfig
from vmae.core.video.config import DataConfig
from vmae.core.video.demo_boxes import ACTIONS, DemoBoxesConfig, make_demo_boxes
from vmae.experiments.config import ExperimentConfig, PipelineConfig
from vmae.experiments.recipes.recipe import recipe
from vmae.experiments.stages import detection, finetune
from vmae.experiments.timing import usable_cores

DEMO_DATA = "data/demo"
DEMO_BOXES = "data/demo_boxes"
FILMS = DemoBoxesConfig(train_films=100, val_films=30, size=64)
"""What `DEMO_BOXES` holds."""


def tiny_model() -> VideoMAEConfig:
    """For two CPU cores: 48 x 48 pixels."""
    return VideoMAEConfig.from_size(
        "tiny",
        height=48,
        width=48,
        tubelet_size=4,
        depth=3,
        decoder_embed_dim=128,
        decoder_depth=1,
        decoder_num_heads=4,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )


@recipe
def demo_pretrain() -> ExperimentConfig:
    """Pre-train a tiny model on the built-in data set (`vmae data demo`), then probe it.

    Command: `vmae pretrain --recipe demo_pretrain`. How its sizes were chosen: docs/demo_pilot.md. Three of
    them decide whether anything is learnt in minutes: tubelets of four frames (half the tokens, each with
    motion inside), a decoder as wide as the encoder (fixed flat positions need width to be told apart), and
    many small batches.
    Cost: 0.199 GFLOP a clip, 0.0109 TFLOP a video over the run.
    """
    return ExperimentConfig(
        model=tiny_model(),
        mask=MaskConfig(type="tube", ratio=0.75),
        data=DataConfig(
            train_csv=f"{DEMO_DATA}/train.csv",
            val_csv=f"{DEMO_DATA}/val.csv",
            frames=8,
            sampling_rate=4,
            size=(48, 48),
            short_side=48,
            augment="none",
            cache=True,
            workers=0,
        ),
        # 1.5e-3 for batches of 16.
        optim=OptimConfig(base_lr=2.4e-2, min_lr=0.0, warmup_epochs=1.3, clip_grad=1.0),
        train=TrainConfig(epochs=55, batch_size=16, picture_every=5),
        probe=ProbeConfig(kind="linear", pooling="time"),
        pipeline=PipelineConfig(
            finetune_optim=OptimConfig(base_lr=4e-3, betas=(0.9, 0.999), warmup_epochs=1, layer_decay=0.75),
            finetune_train=TrainConfig(epochs=10, batch_size=32),
        ),
    )


@recipe
def demo_finetune() -> ExperimentConfig:
    """Fine-tune the tiny model of demo_pretrain on the built-in data set.

    Command: `vmae finetune --init demo_pretrain-1`; without --init the same from fresh weights. Measured
    against each other in docs/results_finetune.md. No flip (left and right are classes) and no mixing: at
    this length they only slow learning down.
    Cost: 0.307 GFLOP a clip, 0.00307 TFLOP a video over the run.
    """
    base = demo_pretrain()
    return replace(
        base,
        job=finetune.STAGE.name,
        data=replace(base.data, segments=2, crops=1),
        optim=OptimConfig(
            base_lr=1.6e-2,  # 1e-3 for batches of 16
            min_lr=0.0,
            warmup_epochs=1,
            betas=(0.9, 0.999),
            weight_decay=0.05,
            layer_decay=0.75,
            clip_grad=1.0,
        ),
        train=TrainConfig(epochs=10, batch_size=16),
        finetune=FinetuneConfig(
            drop_path=0.0, label_smoothing=0.1, mix=MixConfig(mixup=0.0, cutmix=0.0), eval_every=2
        ),
    )


@recipe
def demo_detection() -> ExperimentConfig:
    """A small detector on the built-in films (a miniature AVA), from fresh weights or those of --init.

    Command: `vmae finetune --task detection`. The actions are motions: a key frame alone tells nothing.
    Measured in docs/detection.md.
    Cost: 0.579 GFLOP a clip, 0.0116 TFLOP a video over the run.
    """
    base = demo_finetune()
    return replace(
        base,
        job=detection.STAGE.name,
        model=replace(base.model, height=64, width=64),
        data=DataConfig(
            train_csv=f"{DEMO_BOXES}/train.csv",
            val_csv=f"{DEMO_BOXES}/val.csv",
            data_root=f"{DEMO_BOXES}/films",
            frames=8,
            sampling_rate=4,
            size=(64, 64),
            short_side=64,
            augment="none",
            workers=0,
        ),
        train=TrainConfig(epochs=20, batch_size=16, best_by=None),
        detect=DetectConfig(
            num_classes=len(ACTIONS), label_map=f"{DEMO_BOXES}/labels.pbtxt", drop_path=0.0, eval_every=5
        ),
    )


@recipe
def demo_end_to_end() -> ExperimentConfig:
    """A detector that finds its people too, on the same films: twice the frames, so that some can be dropped.

    Command: `vmae finetune --task detection --recipe demo_end_to_end --set detect.keep_rate=0.7`. Measured in
    docs/detection.md.
    Cost: 1.31 GFLOP a clip, 0.0262 TFLOP a video over the run.
    """
    base = demo_detection()
    return replace(
        base,
        model=replace(base.model, frames=16),
        data=replace(base.data, frames=16, sampling_rate=2),
        detect=replace(base.detect, end_to_end=True, queries=16, context_depth=1),
    )


def make_demo_films() -> int:
    """Write `DEMO_BOXES` where it is not; the number of films that were made."""
    films = Path(DEMO_BOXES) / "films"
    before = len(list(films.glob("*.mp4")))
    make_demo_boxes(DEMO_BOXES, FILMS, workers=usable_cores())
    return len(list(films.glob("*.mp4"))) - before
