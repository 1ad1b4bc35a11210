"""The frozen model that a configuration's target names, read."""

from __future__ import annotations

from dataclasses import replace

from vmae.core.model.target import teacher_of
from vmae.core.model.teacher import Latents
from vmae.core.model.videomae import VideoMAE, VideoMAEConfig
from vmae.core.weights.zoo import load_init


def read_teacher(config: VideoMAEConfig) -> Latents | None:
    """The teacher that `config.target` names, in the configuration's clip shape; None where it names none.

    A classifier teaches as well as a pre-trained model does. Errors as `load_init` and `Latents`.
    """
    place = teacher_of(config.target)
    if place is None:
        return None
    loaded = load_init(place, frames=config.frames, height=config.height, width=config.width)
    return Latents(loaded.model, config.target_layer)


def sized(config: VideoMAEConfig, teacher: Latents | None) -> VideoMAEConfig:
    """The configuration that predicts as many numbers as the teacher is wide, where it does not say."""
    if teacher is None or config.target_dim is not None:
        return config
    return replace(config, target_dim=teacher.dim)


def with_teacher(model: VideoMAE) -> VideoMAE:
    """The model, with the teacher that its target names (if any) to learn from or to be measured against."""
    teacher = read_teacher(model.config)
    if teacher is not None:
        model.learn_from(teacher)
    return model
