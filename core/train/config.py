"""How a training run is set up, whatever is trained; and what of that can be refused before it starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from vmae.core.errors import InputError, nearest


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, how much at once, how precisely, and what is kept."""

    epochs: int = 800
    """Passes over the training list."""
    batch_size: int = 256
    """Clips of one optimiser step, over all processes and micro-batches (repeated samples not counted)."""
    accumulate: int = 1
    """Micro-batches whose gradients make one step; divides batch_size / processes."""
    seed: int = 0
    """Of the weights, the order of clips, crops, masks and drop path."""
    threads: int = 0
    """CPU threads of a step; 0: as many as torch takes, or in a run of its own without OMP_NUM_THREADS what
    is measured to be fastest before it begins."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 on GPUs that have it, fp32 elsewhere. fp16 scales the loss."""
    ema_decay: float | None = None
    """Keep an exponential moving average of the weights with this decay; it is what is validated."""
    compile: bool | Literal["auto"] = "auto"
    """torch.compile each transformer block. auto: on a CUDA device, in a run of more than ten minutes, if a
    trial of the real step says that it is faster."""
    cuda_graph: bool | Literal["auto"] = "auto"
    """Forward and backward as one captured CUDA graph, which saves the launches (pre-training on one GPU).
    auto: as `compile`, where a step can be captured."""
    shard: Literal["none", "fsdp"] = "none"
    """fsdp: shard weights, gradients and optimiser over the processes (FSDP2); for L, H, g."""
    checkpoint_every: int = 1
    """Epochs between training checkpoints; the last epoch always has one."""
    checkpoint_every_steps: int | None = None
    """Also a checkpoint every so many steps (long epochs)."""
    keep_last: int = 2
    """How many training checkpoints are kept, newest first; the best epoch's stays besides."""
    best_by: str | None = "auto"
    """Metric of an epoch by which one is best (names ending in `loss`: the lowest): its weights are kept in
    `best`, its training checkpoint among `checkpoints`. auto: `val/top1` in fine-tuning with a held-out list,
    `knn_top1` in pre-training that measures it, else `loss`, looked at where a checkpoint is due; none: no
    best epoch."""
    log_every: int = 10
    """Steps between `step` events."""
    picture_every: int = 0
    """Epochs between reconstruction pictures (of long runs more, so that there are at most about twenty); 0:
    none."""
    max_bad_steps: int = 20
    """Steps in a row with NaN or infinite gradients after which the run stops."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "checkpoint_every", "keep_last", "log_every"):
            if getattr(self, name) < 1:
                raise InputError(f"expected train.{name} >= 1; got {getattr(self, name)}")
        for name in ("picture_every", "seed", "threads"):
            if getattr(self, name) < 0:
                raise InputError(f"expected train.{name} >= 0; got {getattr(self, name)}")
        if self.max_bad_steps < 1:
            raise InputError(f"expected train.max_bad_steps >= 1; got {self.max_bad_steps}")
        if self.checkpoint_every_steps is not None and self.checkpoint_every_steps < 1:
            raise InputError(
                f"expected train.checkpoint_every_steps >= 1 or none; got {self.checkpoint_every_steps}"
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise InputError(f"expected train.ema_decay in (0, 1) or none; got {self.ema_decay}")


def few_clips(batch: int, clips: int) -> str:
    """What is said of a training list of `clips` that has not one batch."""
    return f"expected at least one batch of train.batch_size = {batch} clips; the training list has {clips}"


def metric_of_best(wanted: str | None, measured: tuple[str, ...]) -> str | None:
    """The metric that `train.best_by` means in a run that measures these; InputError names the nearest."""
    known = (*measured, "loss")
    if wanted is None or wanted in known:
        return wanted
    if wanted == "auto":
        return known[0]
    options = ["auto", "none", *known]
    raise InputError(
        f"expected train.best_by to be one of {', '.join(options)}; got '{wanted}'{nearest(wanted, options)}"
    )


def check_capturable(
    train: TrainConfig, device: torch.device, *, varies: str = "", draws: bool = False, processes: int = 1
) -> None:
    """Raise InputError where a step of this run cannot be one CUDA graph, with the first reason.

    `varies`: what the task is and why its steps differ; empty where they do not (`Task.varies`).
    """
    reasons = {
        f"a CUDA device, got {device.type}": device.type != "cuda",
        f"pre-training, got {varies}": bool(varies),
        f"one process, got {processes} (gradients are exchanged during the step)": processes > 1,
        f"train.accumulate = 1, got {train.accumulate}": train.accumulate > 1,
        "no drop path (it draws in every step), got some": draws,
    }
    for reason, given in reasons.items():
        if given:
            raise InputError(f"train.cuda_graph: expected {reason}")
