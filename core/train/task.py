"""What a run trains for, as the loop sees it; what it hears while it runs, and what is left of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Required, TypedDict

import torch
from torch import Tensor, nn

from vmae.core.config import to_dict
from vmae.core.numerics import make_generator
from vmae.core.train.config import TrainConfig
from vmae.core.train.optim import OptimConfig

Report = Callable[[str, dict[str, Any]], None]
"""Called with an event's name (`start`, `step`, `epoch`, `checkpoint`, `warning`) and its data."""


def silent(event: str, data: dict[str, Any]) -> None:
    """Report of the processes other than the first."""


class Where(TypedDict, total=False):
    """Where a training happens and who hears of it: keywords of `Trainer` and of every training function."""

    run_dir: Required[Path]
    device: torch.device | str
    """Default: the CPU."""
    report: Report


class Training(Where, total=False):
    """All that a training takes besides what it trains for."""

    optim: Required[OptimConfig]
    train: Required[TrainConfig]
    should_stop: Callable[[], bool] | None


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a finished (or stopped) run leaves: numbers, and where its files are."""

    metrics: dict[str, float]
    """The last epoch's metrics: `loss`, and what validation measured."""
    model_path: Path
    """The weights to share or to fine-tune from (`load_model`)."""
    best_model_path: Path | None
    """The weights of the best epoch by `train.best_by`, where there is one."""
    epochs: int
    steps: int
    clips_per_s: float
    """Clips (every repeat of a video counts) a second of this process's loop, evaluation included."""
    skipped_steps: int
    """Steps left out because a gradient was NaN or infinite."""
    bad_videos: dict[str, str]
    """Training files that could not be read by this process, left out: path -> reason."""
    duration_s: float
    """Seconds of this process in the loop (a resumed run counts only its own)."""
    stopped: bool
    """True when `should_stop` ended the run before its last epoch."""
    history: list[dict[str, float]] = field(default_factory=list)
    """One entry per epoch of the whole run, resumed parts included."""
    unsaved: str = ""
    """Why the last weights could not be written to `model_path`, which is not there then; of a stopped run
    why its state could not be. Empty: all is saved."""


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """Where in the run a micro-batch stands: all that its randomness may depend on."""

    seed: int
    epoch: int
    step: int
    """Optimiser steps since the run began."""
    rows: Tensor
    """int64 [b]: the place of each clip (repeats side by side) of this micro-batch in the step's batch."""
    first_row: int
    """The first of them."""
    total_rows: int
    device: torch.device

    def generator(self, what: str) -> torch.Generator:
        """The same on every process: draw for the total batch, then keep `rows`."""
        return make_generator(self.seed, self.epoch, self.step, what)


class Task:
    """What a run trains for: pre-training, fine-tuning, or one more."""

    name: ClassVar[str]
    """Of the job, in events and checkpoints."""
    varies: ClassVar[str] = ""
    """Where steps do not all compute the same, and so cannot be one CUDA graph: the name and why."""
    measured: tuple[str, ...]
    """Metrics of an epoch that `train.best_by` may choose, besides `loss`; `auto` is the first."""
    meta: dict[str, Any]
    """JSON values kept with the weights."""

    def ahead(self, batch: dict[str, Any], context: StepContext) -> dict[str, Any]:
        """What the host makes of a micro-batch, as more tensors of it: in the loader's thread, a batch ahead.

        They are on the device when `inputs` gets the batch.
        """
        return {}

    def inputs(self, batch: dict[str, Any], context: StepContext) -> tuple[Tensor, ...]:
        """A micro-batch -> what the loss is made of, on the device. It must not wait for the device."""
        raise NotImplementedError

    def loss(self, module: nn.Module, *inputs: Tensor) -> Tensor:
        """The micro-batch's mean loss: device work only, so that it can be captured."""
        raise NotImplementedError

    def after_epoch(self, epoch: int, history: list[dict[str, float]]) -> dict[str, float]:
        """More metrics of the epoch (counted from 1); `history` are the epochs' metrics so far, of this one
        its mean `loss`.

        The model is in eval mode, its averaged weights in place where there are any.
        """
        return {}


class LabelledTask(Task):
    """A task on labels: its settings are kept with the weights, the model is measured on a held-out list."""

    validated: ClassVar[tuple[str, ...]]
    """What `validate` measures that can say which epoch is best."""
    section: ClassVar[str] = "finetune"
    """The name of `config` beside the weights."""

    def __init__(
        self,
        *,
        model: Any,
        config: Any,
        val: Any,
        optim: OptimConfig,
        train: TrainConfig,
        device: torch.device | str = "cpu",
        labels: list[str] | None = None,
    ) -> None:
        self.measured = self.validated if val is not None else ()
        settings = {self.section: config, "optim": optim, "train": train}
        self.meta = {name: to_dict(part) for name, part in settings.items()}
        if labels:
            self.meta["labels"] = labels
        self._model, self._config, self._val = model, config, val
        self._train, self._device = train, torch.device(device)

    def after_epoch(self, epoch: int, history: list[dict[str, float]]) -> dict[str, float]:
        every = self._config.eval_every
        if self._val is None or not ((every and epoch % every == 0) or epoch == self._train.epochs):
            return {}
        return {f"val/{name}": value for name, value in self.validate(self._val).items()}

    def validate(self, val: Any) -> dict[str, float]:
        """What the model reaches on the held-out list `val`."""
        raise NotImplementedError
