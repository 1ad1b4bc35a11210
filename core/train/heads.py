"""Regression and multi-label classification: other heads on the classifier's network, on the same loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmae.core.errors import InputError
from vmae.core.measure.heads import Kind, measure_head, predict_videos
from vmae.core.model.classifier import VideoClassifier
from vmae.core.numerics import clip_to_video
from vmae.core.train.config import TrainConfig
from vmae.core.train.finetune import FinetuneConfig
from vmae.core.train.loop import Trainer
from vmae.core.train.optim import OptimConfig
from vmae.core.train.task import LabelledTask, StepContext, TrainResult, Where
from vmae.core.video.clips import ClipDataset
from vmae.core.video.samples import Sample

VALIDATED: dict[Kind, tuple[str, ...]] = {
    "regression": ("val/r2", "val/loss"),
    "multilabel": ("val/mean_ap", "val/loss"),
}
"""What an epoch's validation measures that can say which epoch is best (`train.best_by`)."""


def check_targets(samples: Sequence[Sample], kind: Kind, where: str, outputs: int | None = None) -> None:
    """Raise InputError for a list that has not what `kind` learns from, or more of it than `outputs`."""
    form = "numbers" if kind == "regression" else "labels"
    for sample in samples:
        if (kind == "regression") != bool(sample.values) or (kind == "multilabel") != (
            sample.labels is not None
        ):
            raise InputError(
                f"{where}: expected {form} on every line (data.annotation_format={form}), got none for "
                f"{sample.path}"
            )
    found = num_outputs(samples, kind)
    if outputs is not None and (found > outputs or (kind == "regression" and found != outputs)):
        raise InputError(f"{where}: expected {outputs} {form} a video, as in training, got {found}")


def num_outputs(samples: Sequence[Sample], kind: Kind) -> int:
    """Values of a line, or one more than the largest label."""
    if kind == "regression":
        return max(len(s.values) for s in samples)
    return max((max(s.labels, default=-1) for s in samples if s.labels is not None), default=-1) + 1


def targets_of(samples: Sequence[Sample], kind: Kind, outputs: int) -> np.ndarray:
    """float64 [M, K]: the values, or 1 for each label that a video has."""
    if kind == "regression":
        return np.array([s.values for s in samples], np.float64)
    table = np.zeros((len(samples), outputs))
    for row, sample in zip(table, samples, strict=True):
        row[list(sample.labels or ())] = 1
    return table


def scale_of(samples: Sequence[Sample]) -> tuple[list[float], list[float]]:
    """Mean and deviation of each value of a training list: a head predicts values in these units."""
    values = targets_of(samples, "regression", 0)
    deviation = values.std(0)
    return values.mean(0).tolist(), np.where(deviation > 0, deviation, 1.0).tolist()


def train_head(
    *,
    kind: Kind,
    model: VideoClassifier,
    config: FinetuneConfig,
    dataset: ClipDataset,
    val: ClipDataset | None,
    optim: OptimConfig,
    train: TrainConfig,
    resume: bool = True,
    should_stop: Callable[[], bool] | None = None,
    labels: list[str] | None = None,
    **where: Unpack[Where],
) -> TrainResult:
    """Train `model`, with one output a value or label, on the clips of `dataset`.

    Regression minimises the squared error of values in the training list's units of deviation (the scale is
    kept with the weights), multi-label the binary cross-entropy of each label. Mixing and label smoothing are
    not used. Every `config.eval_every` epochs the model is measured on `val`.

    Raises InputError for lists without such targets, and as `pretrain` does.
    """
    check_targets(dataset.samples, kind, "the training list", model.num_classes)
    if val is not None:
        check_targets(val.samples, kind, "the validation list", model.num_classes)
    if config.freeze_encoder:
        model.encoder.requires_grad_(False)
    own: dict[str, Any] = {"optim": optim, "train": train, "device": where.get("device", "cpu")}
    task = HeadTask(kind, dataset, model=model, config=config, val=val, labels=labels, **own)
    trainer = Trainer(task, model, dataset, optim=optim, train=train, **where)
    return trainer.run(resume=resume, should_stop=should_stop)


class HeadTask(LabelledTask):
    """The task: predict each clip's values, or which labels it has."""

    _model: VideoClassifier

    def __init__(self, kind: Kind, dataset: ClipDataset, **given: Any) -> None:
        self.name, self.validated = kind, VALIDATED[kind]  # type: ignore[misc]
        super().__init__(**given)
        self._kind, self._scale = kind, None
        self._targets = targets_of(dataset.samples, kind, self._model.num_classes)
        self.meta["task"] = kind
        if kind == "regression":
            mean, deviation = scale_of(dataset.samples)
            self._targets = (self._targets - mean) / deviation
            self._scale = self.meta["scale"] = {"mean": mean, "deviation": deviation}

    def inputs(self, batch: dict[str, Any], context: StepContext) -> tuple[Tensor, ...]:
        targets = torch.from_numpy(self._targets[batch["index"].numpy()]).float()
        return clip_to_video(batch["clip"], context.device), targets.to(context.device)

    def loss(self, module: nn.Module, *inputs: Tensor) -> Tensor:
        video, targets = inputs
        return head_loss(module(video), targets, self._kind)

    def validate(self, val: ClipDataset) -> dict[str, float]:
        found = predict_videos(
            self._model,
            val,
            kind=self._kind,
            scale=self._scale,
            batch_size=self._train.batch_size,
            device=self._device,
            precision=self._train.precision,
        )
        truth = targets_of(val.samples, self._kind, self._model.num_classes)
        return measure_head(found, truth, self._kind)


def head_loss(outputs: Tensor, targets: Tensor, kind: Kind) -> Tensor:
    """Mean squared error, or mean binary cross-entropy, of [B, K] in float32."""
    if kind == "regression":
        return F.mse_loss(outputs.float(), targets)
    return F.binary_cross_entropy_with_logits(outputs.float(), targets)
