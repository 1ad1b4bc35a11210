"""Masked pre-training, on the training loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

from torch import Tensor, nn

from vmae.core.config import to_dict
from vmae.core.errors import InputError
from vmae.core.model.joint import JointEncoder, draw_directions
from vmae.core.model.masking import MaskConfig, TokenMask, check_mask, sample_masks
from vmae.core.model.target import SIGREG, target_function, teacher_of
from vmae.core.model.videomae import VideoMAE, VideoMAEConfig
from vmae.core.numerics import clip_to_video
from vmae.core.train.config import TrainConfig
from vmae.core.train.loop import Trainer
from vmae.core.train.optim import OptimConfig
from vmae.core.train.parallel import World
from vmae.core.train.task import Report, StepContext, Task, TrainResult, Where, silent
from vmae.core.train.watch import (
    HELD_OUT,
    collapse_warning,
    flat_loss_warning,
    held_out_warnings,
    prediction_variance,
)
from vmae.core.video.clips import ClipDataset

AfterEpoch = Callable[[int, nn.Module], dict[str, float]]


def pretrain(
    *,
    model: VideoMAE | JointEncoder,
    mask: MaskConfig,
    dataset: ClipDataset,
    optim: OptimConfig,
    train: TrainConfig,
    resume: bool = True,
    should_stop: Callable[[], bool] | None = None,
    after_epoch: AfterEpoch | None = None,
    measured: tuple[str, ...] = (),
    **where: Unpack[Where],
) -> TrainResult:
    """Masked pre-training of `model` on `dataset` (P1 section 3; V2's dual masking with `mask.decoder_type`),
    or that of a `JointEncoder`, whose views are the dataset's repeats.

    Each step draws one mask per clip (and repeat). `run_dir` receives `checkpoints/` (training state),
    `model` (weights to share), `best` (those of the best epoch by `train.best_by`) and, after a NaN,
    `bad_batches.json`. With `resume` the newest whole checkpoint in `run_dir` is continued, to the same bits
    as an unbroken run (CPU, fp32); without it checkpoints and best weights of an earlier run are deleted.
    `should_stop` is asked after every step; on True the state is saved and the result has `stopped`.
    `after_epoch(epoch, model)` may return more metrics for the epoch's event; `measured` are the names of
    those among them that can say which epoch is best.

    Raises InputError when batch size, data and processes do not fit, the checkpoint is of another run, or as
    `check_objective` does; TrainingDiverged after `train.max_bad_steps` NaN steps in a row.
    """
    check_objective(mask, model.config)
    task = Pretraining(
        model=model,
        mask=mask,
        optim=optim,
        train=train,
        report=where.get("report", silent),
        more=after_epoch,
        measured=measured,
        views=dataset.clips_per_video,
    )
    trainer = Trainer(task, model, dataset, optim=optim, train=train, **where)
    return trainer.run(resume=resume, should_stop=should_stop)


def check_objective(mask: MaskConfig, model: VideoMAEConfig) -> None:
    """Raise InputError where masks or targets cannot be made: counts, and functions of one's own."""
    check_mask(mask, model.grid)
    if model.target == SIGREG and mask.decoder_type is not None:
        raise InputError(f"expected no mask.decoder_type with target {SIGREG}, which has no decoder")
    if not model.predicts_pixels and model.target != SIGREG and teacher_of(model.target) is None:
        target_function(model.target)


class Pretraining(Task):
    """The task: reconstruct the masked patches of each clip, and watch that something is learnt."""

    name = "pretrain"

    def __init__(
        self,
        *,
        model: VideoMAE | JointEncoder,
        mask: MaskConfig,
        optim: OptimConfig,
        train: TrainConfig,
        report: Report = silent,
        more: AfterEpoch | None = None,
        measured: tuple[str, ...] = (),
        views: int = 1,
    ) -> None:
        self._views = views
        self.measured = measured
        self.meta = {"mask": to_dict(mask), "optim": to_dict(optim), "train": to_dict(train)}
        self._model, self._mask, self._epochs, self._more = model, mask, train.epochs, more
        self._report = report if World.current().rank == 0 else silent
        self._seen: tuple[Tensor, TokenMask] | None = None
        self._warned: set[str] = set()

    def ahead(self, batch: dict[str, Any], context: StepContext) -> dict[str, Any]:
        """The masks, drawn for all clips of the step and kept for those of this micro-batch."""
        mask, decode = sample_masks(
            self._mask,
            self._model.grid,
            context.total_rows,
            context.generator("mask"),
            rows=context.rows,
            video=batch["clip"].permute(0, 4, 1, 2, 3),
        )
        made = {"visible": mask.visible, "masked": mask.masked}
        if isinstance(self._model, JointEncoder):
            width, generator = self._model.config.predicted_dim, context.generator("directions")
            return {**made, "directions": draw_directions(width, generator)}
        return made if decode is None else {**made, "decode": decode}

    def inputs(self, batch: dict[str, Any], context: StepContext) -> tuple[Tensor, ...]:
        video = clip_to_video(batch["clip"], context.device)
        names = [name for name in ("visible", "masked", "decode", "directions") if name in batch]
        visible, masked, *more = (batch[name].to(context.device) for name in names)
        if batch["path"]:
            self._seen = video[:2], TokenMask(visible[:2], masked[:2])
        return video, visible, masked, *more

    def loss(self, module: nn.Module, *inputs: Tensor) -> Tensor:
        video, visible, masked, *more = inputs
        views = (self._views,) if isinstance(self._model, JointEncoder) else ()
        loss: Tensor = module(video, TokenMask(visible, masked), *more, *views)
        return loss

    def after_epoch(self, epoch: int, history: list[dict[str, float]]) -> dict[str, float]:
        config, found = self._model.config, {}
        of_variance = (config.target, config.loss) == ("normalized", "mse")
        texts: dict[str, str | None] = {}
        # None seen: an epoch whose steps were all done before this process.
        if self._seen is not None and isinstance(self._model, VideoMAE):
            found["pred_variance"] = prediction_variance(self._model, *self._seen)
            texts["collapse"] = collapse_warning(found["pred_variance"], epoch)
        if of_variance:
            texts["flat"] = flat_loss_warning([h["loss"] for h in history], self._epochs)
        extra = {} if self._more is None else self._more(epoch, self._model)
        if HELD_OUT in extra:
            texts |= held_out_warnings([*history[:-1], {**history[-1], **extra}], of_variance)
        for kind, text in texts.items():
            if text is not None and kind not in self._warned:
                self._warned.add(kind)
                self._report("warning", {"epoch": epoch, "text": text})
        return {**found, **extra}
