"""Fine-tuning a classifier, on the same loop as pre-training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmae.core.errors import InputError
from vmae.core.measure.evaluate import evaluate
from vmae.core.model.classifier import VideoClassifier
from vmae.core.numerics import clip_to_video, derive_seed
from vmae.core.train.config import TrainConfig
from vmae.core.train.loop import Trainer
from vmae.core.train.mixing import MixConfig, mix_clips, soft_targets
from vmae.core.train.optim import OptimConfig
from vmae.core.train.parallel import World
from vmae.core.train.task import LabelledTask, StepContext, TrainResult, Where
from vmae.core.video.clips import ClipDataset

VALIDATED = ("val/top1", "val/mean_class", "val/top5", "val/loss")
"""What an epoch's validation measures that can say which epoch is best (`train.best_by`)."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """A classifier whose answers are learnt beside the labels (Hinton et al., arXiv 1503.02531)."""

    teacher: str = ""
    """A run, a path or hf://org/name of a classifier of the same classes; empty: no teacher."""
    weight: float = 0.9
    """The teacher's share of the loss; the labels have the rest."""
    temperature: float = 2.0
    """By which both models' logits are divided before they are compared."""

    def __post_init__(self) -> None:
        if not 0 < self.weight <= 1:
            raise InputError(f"expected finetune.distill.weight in (0, 1]; got {self.weight}")
        if not self.temperature > 0:
            raise InputError(f"expected finetune.distill.temperature > 0; got {self.temperature}")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """What fine-tuning adds to the optimiser and the loop. Defaults are VideoMAE's scripts."""

    drop_path: float = 0.1
    """Stochastic depth of the last block; rises linearly from 0 at the first."""
    dropout: float = 0.0
    """Before the head."""
    init_scale: float = 0.001
    """The fresh head's weights are scaled by it."""
    label_smoothing: float = 0.1
    """Share of the target that is spread evenly over the classes."""
    mix: MixConfig = field(default_factory=MixConfig)
    eval_every: int = 1
    """Epochs between validations (the last epoch always has one); 0: only the last."""
    freeze_encoder: bool = False
    """Train the head alone (the papers' linear probe with augmentation)."""
    distill: DistillConfig = field(default_factory=DistillConfig)

    def __post_init__(self) -> None:
        for name in ("drop_path", "dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"expected finetune.{name} in [0, 1); got {getattr(self, name)}")
        if not self.init_scale > 0:
            raise InputError(f"expected finetune.init_scale > 0; got {self.init_scale}")
        if self.eval_every < 0:
            raise InputError(f"expected finetune.eval_every >= 0; got {self.eval_every}")


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over clips of -sum(targets * log softmax(logits)); both `[B, C]`, computed in float32."""
    return -(targets * logits.float().log_softmax(1)).sum(1).mean()


def divergence(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean over clips of `T^2 KL(teacher || student)` at temperature T; both `[B, C]`, computed in float32.

    The square keeps the gradient's size whatever T is (arXiv 1503.02531, section 2).
    """
    said = (logits.float() / temperature).log_softmax(1)
    taught = (teacher.float() / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(said, taught, reduction="batchmean", log_target=True)


def check_teacher(teacher: VideoClassifier, student: VideoClassifier) -> None:
    """Raise InputError unless both see the same clips and answer with as many classes."""
    for name in ("frames", "height", "width", "channels"):
        expected, got = getattr(student.config, name), getattr(teacher.config, name)
        if expected != got:
            raise InputError(f"finetune.distill.teacher: expected clips of {name} {expected}, got {got}")
    if teacher.num_classes != student.num_classes:
        raise InputError(
            f"finetune.distill.teacher: expected {student.num_classes} classes, got {teacher.num_classes}"
        )


def finetune(
    *,
    model: VideoClassifier,
    config: FinetuneConfig,
    dataset: ClipDataset,
    val: ClipDataset | None,
    optim: OptimConfig,
    train: TrainConfig,
    resume: bool = True,
    should_stop: Callable[[], bool] | None = None,
    labels: list[str] | None = None,
    teacher: VideoClassifier | None = None,
    **where: Unpack[Where],
) -> TrainResult:
    """Train `model` (already with pre-trained weights, drop path and dropout set) on labelled clips.

    Every `config.eval_every` epochs the model (its average, with `train.ema_decay`) is evaluated on `val`,
    one centre clip a video; `run_dir/best` keeps the weights of the best epoch (`train.best_by`, by default
    of the highest top-1). Mixing pairs clips within a
    process, so unlike pre-training the numbers depend on the number of processes when mixing is on. `labels`
    are the classes' names, kept with the weights. A `teacher` answers the very clips that the student sees,
    mixed and augmented (arXiv 2106.05237); `config.distill` weighs its answers against the labels.

    Raises InputError for labels the model has no class for, for a teacher of other clips or classes, and as
    `pretrain` does.
    """
    for name, part in (("training", dataset), ("validation", val)):
        if part is not None and (worst := max(s.label for s in part.samples)) >= model.num_classes:
            raise InputError(f"expected labels 0 to {model.num_classes - 1} in the {name} list; got {worst}")
    if config.freeze_encoder:
        model.encoder.requires_grad_(False)
    if teacher is not None:
        check_teacher(teacher, model)
    own: dict[str, Any] = {"optim": optim, "train": train, "device": where.get("device", "cpu")}
    task = Finetuning(model=model, config=config, val=val, labels=labels, teacher=teacher, **own)
    trainer = Trainer(task, model, dataset, optim=optim, train=train, **where)
    return trainer.run(resume=resume, should_stop=should_stop)


class Finetuning(LabelledTask):
    """The task: name the class of each (mixed) clip; measured on the held-out list."""

    name = "finetune"
    varies = "finetune (mixing changes what a step computes)"
    validated = VALIDATED
    _model: VideoClassifier
    _config: FinetuneConfig

    def __init__(self, *, teacher: VideoClassifier | None = None, **given: Any) -> None:
        super().__init__(**given)
        self._teacher = None if teacher is None else teacher.eval().requires_grad_(False).to(self._device)

    def inputs(self, batch: dict[str, Any], context: StepContext) -> tuple[Tensor, ...]:
        video = clip_to_video(batch["clip"], context.device)
        labels = batch["label"].to(context.device)
        targets = soft_targets(labels, self._model.num_classes, self._config.label_smoothing)
        seed = derive_seed(context.seed, context.epoch, context.step, context.first_row, "mix")
        mixed = mix_clips(video, targets, self._config.mix, np.random.default_rng(seed))
        if self._teacher is None:
            return mixed
        with torch.no_grad():
            return *mixed, self._teacher(mixed[0])

    def loss(self, module: nn.Module, *inputs: Tensor) -> Tensor:
        video, targets, *taught = inputs
        logits = module(video)
        loss = soft_cross_entropy(logits, targets)
        if not taught:
            return loss
        c = self._config.distill
        return torch.lerp(loss, divergence(logits, taught[0], c.temperature), c.weight)

    def validate(self, val: ClipDataset) -> dict[str, float]:
        result = evaluate(
            self._model,
            val,
            num_classes=self._model.num_classes,
            batch_size=max(1, self._train.batch_size // (World.current().size * self._train.accumulate)),
            device=self._device,
            precision=self._train.precision,
        )
        return result.metrics()
