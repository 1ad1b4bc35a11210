"""Trials that cost the same: how many epochs each setting gets, so that a cheap one is trained for longer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vmae.core.errors import InputError
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.stages import pretrain

Equal = Literal["epochs", "flops", "time"]
"""What trials have in common: their epochs as they are set, or what they cost."""


Measured = dict[str, float]
"""Seconds a clip of a step takes, by all that the step depends on."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """What a frozen teacher cost and costs, in matrix-product FLOPs a video of its list and a clip."""

    trained: float
    forward: float


def teacher_cost(config: ExperimentConfig) -> Teacher:
    """Of the teacher of a configuration's target: zero without one.

    A pre-trained teacher's own training counts where its checkpoint says how it was trained; a classifier's
    or a converted one's does not, which favours it. Raises InputError where no header can be read.
    """
    from vmae.core.model.target import teacher_of
    from vmae.core.model.videomae import VideoMAEConfig
    from vmae.core.plan import forward_flops, training_flops
    from vmae.core.weights.files import WEIGHTS_NAME, read_header

    place = teacher_of(config.model.target)
    if place is None:
        return Teacher(trained=0.0, forward=0.0)
    path = Path(place)
    header = read_header(path / WEIGHTS_NAME if path.is_dir() else path)
    if header is None or header.get("model") != "VideoMAE":
        raise InputError(f"--equal: expected a teacher pre-trained by vmae, whose cost is known, got {place}")
    shape, meta = VideoMAEConfig.from_dict(header["config"]), header.get("meta", {})
    trained = 0.0
    if "mask" in meta:
        from vmae.core.config import from_dict
        from vmae.core.model.masking import MaskConfig

        trained = training_flops(shape, from_dict(MaskConfig, meta["mask"])) * float(meta.get("epochs", 0))
    return Teacher(trained=trained, forward=forward_flops(shape))


def step_cost(config: ExperimentConfig, by: Equal, measured: Measured | None = None) -> float:
    """Of one video in one epoch, its repeats and its teacher's look counted: FLOPs, or seconds here.

    Steps that differ in nothing are timed once where `measured` keeps what was found.
    """
    repeats = config.data.repeats
    if by == "flops":
        return (pretrain.flops(config) + teacher_cost(config).forward) * repeats
    from vmae.experiments.run import default_device
    from vmae.experiments.timing import time_steps

    measured = {} if measured is None else measured
    train = replace(config.train, epochs=1, seed=0)
    key = repr(
        (config.model, config.mask, config.data.size, repeats, replace(config.optim, warmup_epochs=0), train)
    )
    if key not in measured:
        device = default_device()
        # The fastest of a few: what else the machine does would make one setting look dear.
        measured[key] = min(time_steps(config, 0, device=device).step_s for _ in range(3))
    return measured[key] * repeats


def equal_epochs(
    config: ExperimentConfig, base: ExperimentConfig, by: Equal, measured: Measured | None = None
) -> int:
    """For how many epochs `config` trains at what `base`, as it stands, costs.

    A teacher's own training is paid from it first (in time: as its FLOPs at the base's speed). Raises
    InputError where not one epoch is left.
    """
    own, reference = step_cost(config, by, measured), step_cost(base, by, measured)
    share = config.data.train_share / base.data.train_share
    budget = reference * base.train.epochs
    paid = teacher_cost(config).trained * (reference / step_cost(base, "flops"))
    epochs = int((budget - paid) / (own * share) + 0.5)
    if epochs < 1:
        raise InputError(
            f"--equal {by}: expected at least one epoch at the cost of {base.train.epochs} of the base's, "
            f"got none for {config.model.target}: its teacher cost {paid / budget:.0%} of it"
        )
    return epochs


def at_equal_cost(
    config: ExperimentConfig, base: ExperimentConfig, by: Equal, measured: Measured | None = None
) -> dict[str, Any]:
    """The settings with which `config` costs what `base` does: its epochs, and the warm-up in proportion."""
    epochs = equal_epochs(config, base, by, measured)
    warmup = base.optim.warmup_epochs * epochs / base.train.epochs
    return {"train.epochs": epochs, "optim.warmup_epochs": round(warmup, 3)}
