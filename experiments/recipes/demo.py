"""Recipes for the built-in data set, sized for two CPU cores."""

from __future__ import annotations

from vmae.core.masking import MaskConfig
from vmae.core.optim import OptimConfig
from vmae.core.probe import ProbeConfig
from vmae.core.train import TrainConfig
from vmae.core.video.dataset import DataConfig
from vmae.core.videomae import VideoMAEConfig
from vmae.experiments.config import ExperimentConfig

DEMO_DATA = "data/demo"


def demo_pretrain() -> ExperimentConfig:
    """Pre-train a tiny model on the built-in data set (`vmae data demo`), then probe it.

    Command: `vmae pretrain --recipe demo_pretrain`. How its sizes were chosen: docs/demo_pilot.md.
    """
    return ExperimentConfig(
        name="demo_pretrain",
        recipe="demo_pretrain",
        model=VideoMAEConfig.from_size("tiny"),
        mask=MaskConfig(type="tube", ratio=0.75),
        data=DataConfig(
            train_csv=f"{DEMO_DATA}/train.csv",
            val_csv=f"{DEMO_DATA}/val.csv",
            frames=8,
            sampling_rate=3,
            size=(64, 64),
            short_side=64,
            augment="none",
            cache=True,
            workers=0,
        ),
        optim=OptimConfig(base_lr=4e-3, warmup_epochs=2),
        train=TrainConfig(epochs=10, batch_size=32, picture_every=5),
        probe=ProbeConfig(kind="linear", pooling="time"),
    )
