"""The training loop: pre-training and fine-tuning, exact to the bit when resumed.

Nothing random comes from global state: clip order and augmentation belong to the loader, masks and drop path
are drawn from generators seeded by (seed, epoch, step, ...). A checkpoint therefore needs no generator's
state, only its place in the run, and a run killed anywhere repeats the unbroken run's numbers.

The same loop runs alone and under `torch.distributed` (Ray Train, torchrun): the clips and masks of a step
depend on the total batch, not on how many processes share it.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vmae.core.errors import InputError
from vmae.core.model.encoder import VideoModel
from vmae.core.numerics import derive_seed, peak_memory, resolve_precision
from vmae.core.train.calibration import prepare_kernels
from vmae.core.train.config import TrainConfig, check_capturable, few_clips, metric_of_best
from vmae.core.train.modes import ModeTrial, open_modes
from vmae.core.train.optim import Ema, OptimConfig, build_optimizer, grad_norm, lr_schedule, set_lr
from vmae.core.train.parallel import World, like, load_model_state, load_optimizer_state, no_sync, whole, wrap
from vmae.core.train.state import list_states, load_newest_state, save_state
from vmae.core.train.step import Gradients, Late, Window, draws_in_forward, seeded, update
from vmae.core.train.task import Report, StepContext, Task, TrainResult, silent
from vmae.core.train.watch import BadSteps
from vmae.core.video.clips import ClipDataset
from vmae.core.video.loader import blank_batch, build_loader
from vmae.core.weights.checkpoint import WEIGHTS_NAME, save_model
from vmae.core.weights.files import read_header
from vmae.core.weights.models import build_model, describe_model


@dataclass
class Place:
    """Where a run stands: a checkpoint's numbers."""

    step: int = 0
    """Optimiser steps done."""
    epoch_loss: float = 0.0
    """Sum of the losses of `epoch_steps` finite steps of the epoch under way."""
    epoch_steps: int = 0
    best: float = -math.inf
    """Score of the best epoch, which ended at `best_step`; higher is better."""
    best_step: int = -1
    history: list[dict[str, float]] = field(default_factory=list)
    """Metrics of the finished epochs."""
    skipped_steps: int = 0


@dataclass
class _Pending:
    """A step that the device may still be computing."""

    number: int
    """Steps done with it."""
    lr: float
    paths: list[str]
    numbers: Late
    """Loss, gradient norm; micro-batches with clips, processes that want to stop, files left out so far."""


class Trainer:
    """One run: `begin`, an `epoch` after the other, each of `step`s with a `checkpoint` where one is due.

    What a checkpoint holds is what the object is: the numbers in `at`, and the state of `model`, `optimizer`,
    `scaler` and `ema`. All else follows from the configuration.

    Raises InputError when batch size, data and processes do not fit, or `best_by` or a CUDA graph cannot be;
    until `begin` nothing is written.
    """

    def __init__(
        self,
        task: Task,
        model: VideoModel,
        dataset: ClipDataset,
        *,
        optim: OptimConfig,
        train: TrainConfig,
        run_dir: Path,
        device: torch.device | str = "cpu",
        report: Report = silent,
    ) -> None:
        world = World.current()
        self.micro_batch, rest = divmod(train.batch_size, world.size * train.accumulate)
        if rest or self.micro_batch == 0:
            raise InputError(
                f"expected train.batch_size to be a multiple of processes x train.accumulate "
                f"({world.size} x {train.accumulate}); got {train.batch_size}"
            )
        self.steps_per_epoch = len(dataset) // train.batch_size
        if self.steps_per_epoch == 0:
            raise InputError(few_clips(train.batch_size, len(dataset)))
        self.best_by = metric_of_best(train.best_by, task.measured)
        self.device = torch.device(device)
        self.draws = draws_in_forward(model)
        if train.cuda_graph is True:
            check_capturable(train, self.device, varies=task.varies, draws=self.draws, processes=world.size)
        self.task, self.model, self.dataset = task, model, dataset
        self.optim, self.train, self.world = optim, train, world
        self.lead = world.rank == 0
        self.report = report if self.lead else silent
        self.run_dir, self.states_dir, self.best_dir = run_dir, run_dir / "checkpoints", run_dir / "best"
        self.precision = resolve_precision(train.precision, self.device)
        self.schedule = lr_schedule(
            optim,
            epochs=train.epochs,
            steps_per_epoch=self.steps_per_epoch,
            total_batch=train.batch_size,
        )
        self.at = Place()

    def run(self, *, resume: bool = True, should_stop: Callable[[], bool] | None = None) -> TrainResult:
        """Train to the last epoch, or until `should_stop` (asked once a step) says so on some process.

        With `resume` the newest whole checkpoint in `run_dir` is continued; without it checkpoints and best
        weights of an earlier run there are deleted.
        """
        self.begin(resume)
        if self.at.step and len(self.at.history) < self.at.step // self.steps_per_epoch:
            # Saved at an epoch's last step by a version that did so before the epoch had ended.
            self._end_epoch(self.at.step // self.steps_per_epoch)
        while not self.stopped and self.at.step < len(self.schedule):
            self.epoch(should_stop)
        return self.finish()

    def begin(self, resume: bool) -> None:
        """Model, optimiser and loader on the device, at the newest checkpoint's place or at the start."""
        train, world = self.train, self.world
        if train.threads:
            torch.set_num_threads(train.threads)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        if self.lead and not resume:
            # Their step numbers may be higher than this run's: it would be continued from them.
            for old in (*list_states(self.states_dir), self.best_dir):
                shutil.rmtree(old, ignore_errors=True)
        where: dict[str, Any] = {"device": self.device, "run_dir": self.run_dir, "report": self.report}
        what = self.task, self.model, self.dataset
        given = prepare_kernels(*what, train=train, steps=len(self.schedule), resume=resume, **where)
        self.model.to(self.device)
        self.module = wrap(self.model, shard=train.shard == "fsdp", device=self.device)
        self.optimizer = build_optimizer(self.model, self.optim)
        self.ema = Ema(self.model, train.ema_decay) if train.ema_decay is not None else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        loaded = load_newest_state(self.states_dir) if resume else None
        if loaded is not None:
            self._continue_from(*loaded)
        self.report(
            "start",
            {
                "job": self.task.name,
                "step": self.at.step,
                "total_steps": len(self.schedule),
                "steps_per_epoch": self.steps_per_epoch,
                "epochs": train.epochs,
                "resumed": loaded is not None,
                "history": list(self.at.history),
                "precision": self.precision,
                "device": str(self.device),
                "processes": world.size,
            },
        )
        # One loader for the run: its worker processes live from epoch to epoch.
        self.loader = build_loader(
            self.dataset,
            self.micro_batch,
            shuffle=True,
            seed=train.seed,
            rank=world.rank,
            world_size=world.size,
            drop_last=True,
            device=self.device,
            prepare=self._ahead,
        )
        self.gradients = Gradients(
            self.task.loss,
            self.module,
            self.model,
            rows=self.micro_batch * self.dataset.clips_per_video,
            share=1 / train.accumulate,
            precision=self.precision,
            device=self.device,
            scaler=self.scaler,
            quiet=self.loader.quiet,
        )
        modes = open_modes(train, self.device, self.task.varies, draws=self.draws, processes=world.size)
        self.mode_trial = ModeTrial(self.gradients, self.model, self.run_dir, given, modes, self.report)
        self.model.train()
        self.window = Window()
        self.saved_step, self.unkept = self.at.step, ""
        self.bad_steps = BadSteps(self.run_dir, train.max_bad_steps, self.report)
        self.known_skipped, self.skipped_files = 0.0, 0
        self.pending: _Pending | None = None
        self.stopped = False
        self.clips_done, self.started = 0, time.perf_counter()

    def epoch(self, should_stop: Callable[[], bool] | None = None) -> None:
        """The steps that are left of the epoch under way, then what an epoch ends with."""
        at, train = self.at, self.train
        epoch, done = divmod(at.step, self.steps_per_epoch)
        self.loader.set_epoch(epoch, skip_batches=done * train.accumulate)
        batches = iter(self.loader)
        self.window = Window()
        while not self.stopped and at.step < (epoch + 1) * self.steps_per_epoch:
            self.step(batches, should_stop)
            # The epoch's last step is saved when the epoch has ended, validation and all, or not at all.
            if self._due(at.step) and at.step % self.steps_per_epoch and not self.stopped:
                self.checkpoint()
        self._settle()
        if at.step % self.steps_per_epoch == 0:
            self._end_epoch(epoch + 1)

    def step(self, batches: Iterator[dict[str, Any]], should_stop: Callable[[], bool] | None = None) -> None:
        """One optimiser step: gradients of `accumulate` micro-batches, an update where all is finite.

        It leaves its numbers `pending`; those of the step before are read while this one's gradients are
        under way. Where another process asked for the end then, this step does not count.
        """
        at, optimizer = self.at, self.optimizer
        self.gradients.clear()
        total, counted, paths = self._backward(batches)
        self._settle()
        if self.stopped:
            return
        asked = should_stop is not None and should_stop()
        lr = self.schedule[at.step]
        set_lr(optimizer, lr)
        known = (float(counted), float(asked), float(len(self.loader.skipped)))
        sums = self.world.sum(torch.stack((total, *(torch.full_like(total, v) for v in known))))
        loss = sums[0] / sums[1].clamp(min=1.0)
        norm = torch.full_like(total, math.nan)
        if counted or self.world.size > 1:
            self.scaler.unscale_(optimizer)
            norm = grad_norm(self.model, self.optim.clip_grad)
            fine = loss.isfinite() & norm.isfinite() & (sums[1] > 0)
            update(optimizer, self.scaler, bad=1.0 - fine.float(), skips=self.optim.optimizer == "adamw")
        at.step += 1
        numbers = Late(torch.stack((loss, norm.to(loss), *sums[1:])))
        self.pending = _Pending(number=at.step, lr=lr, paths=paths, numbers=numbers)
        self.stopped = asked and self.world.size == 1

    def _backward(self, batches: Iterator[dict[str, Any]]) -> tuple[Tensor, int, list[str]]:
        """Leave a step's gradients in the model: the sum of the losses of its micro-batches that have clips
        (on the device), their count, the clips' paths."""
        total, counted = torch.zeros((), device=self.device), 0
        paths: list[str] = []
        for micro in range(self.train.accumulate):
            waited = time.perf_counter()
            try:
                batch = next(batches)
            except Exception:
                # The weights are those of the last step: what ends the run here costs no step of it.
                if self.world.size == 1 and self.at.step != self.saved_step:
                    self.checkpoint()
                raise
            self.window.wait_s += time.perf_counter() - waited
            self.window.clips += len(batch["path"]) * self.world.size
            paths += batch["path"]
            blank = not batch["path"]
            if blank and self.world.size == 1:
                # Every file of it was bad: the loader has counted and reported them.
                continue
            context: StepContext = batch["context"]
            inputs = self.task.inputs(batch, context)
            place = (context.seed, context.epoch, context.step, micro, self.world.rank)
            drawing = partial(seeded, derive_seed(*place, "drop"), self.device, self.draws)
            self.mode_trial(inputs, drawing, self.device)
            with no_sync(self.module, micro < self.train.accumulate - 1), drawing():
                # The other processes wait for the gradients of one without clips: it gives zeros.
                loss = self.gradients(*inputs, weight=0.0 if blank else 1.0)
            if not blank:
                total += loss
                counted += 1
        return total, counted, paths

    def _ahead(self, batch: dict[str, Any], epoch: int, number: int) -> dict[str, Any]:
        """In the loader's thread: a batch, number `number` of its epoch, with what the task makes of it."""
        train, world, views = self.train, self.world, self.dataset.clips_per_video
        if not batch["path"]:
            if world.size == 1:
                return batch
            batch = {**batch, **blank_batch(self.dataset)}
        step, micro = divmod(number, train.accumulate)
        videos = torch.arange(len(batch["label"]) // views)
        place = (micro * self.micro_batch + videos) * world.size + world.rank
        context = StepContext(
            seed=train.seed,
            epoch=epoch,
            step=epoch * self.steps_per_epoch + step,
            rows=(place[:, None] * views + torch.arange(views)).flatten(),
            first_row=(micro * self.micro_batch * world.size + world.rank) * views,
            total_rows=train.batch_size * views,
            device=self.device,
        )
        return {**batch, **self.task.ahead(batch, context), "context": context}

    def _settle(self) -> None:
        """Read the numbers of the step that is pending, and take note of them."""
        done, self.pending = self.pending, None
        if done is None:
            return
        loss, norm, counted, asked, skipped = done.numbers.read()
        self.stopped = self.stopped or asked > 0
        if skipped != self.known_skipped:
            # Only names tell which of two processes' files are the same.
            self.skipped_files = len(set(self.world.gather(list(self.loader.skipped))))
            self.known_skipped = skipped
        if not counted:
            loss = math.nan
        elif math.isfinite(loss) and math.isfinite(norm):
            self.bad_steps.in_a_row = 0
            self.at.epoch_loss += loss
            self.at.epoch_steps += 1
            if self.ema is not None:
                self.ema.update(self.model)
        else:
            self.at.skipped_steps += 1
            self.bad_steps.add(done.number - 1, loss, done.paths)
            loss = math.nan
        if done.number % self.train.log_every == 0 or done.number % self.steps_per_epoch == 0:
            self._report_step(done, loss, norm)

    def _report_step(self, done: _Pending, loss: float, norm: float) -> None:
        epochs, views = done.number / self.steps_per_epoch, self.dataset.clips_per_video
        window, self.window = self.window, Window()
        seconds = self.window.start - window.start
        self.clips_done += window.clips
        self.report(
            "step",
            {
                "step": done.number,
                "epoch": epochs,
                "loss": loss,
                "lr": done.lr,
                "grad_norm": norm,
                # Clips that came: every repeat of a video, none of a bad one.
                "clips_per_s": window.clips / seconds,
                **({"effective_epoch": epochs * views} if views > 1 else {}),
                "data_wait": window.wait_s / seconds,
                "skipped": self.skipped_files,
                **peak_memory(self.device),
            },
        )

    def _end_epoch(self, epoch: int) -> None:
        """Measure, keep the best weights, and save; `epoch` counts from 1."""
        at, train = self.at, self.train
        mean_loss = at.epoch_loss / at.epoch_steps if at.epoch_steps else math.nan
        metrics = {"epoch": float(epoch), "loss": mean_loss}
        at.epoch_loss, at.epoch_steps = 0.0, 0
        due = epoch % train.checkpoint_every == 0 or epoch == train.epochs
        with self._averaged(), self.gradients.eager():
            self.model.eval()
            metrics |= self.task.after_epoch(epoch, [*at.history, metrics])
            self.model.train()
            # An epoch has a training loss for nothing; its weights are written where a checkpoint is.
            if self.best_by in metrics and (self.best_by != "loss" or due):
                value = metrics[self.best_by]
                score = -value if self.best_by.endswith("loss") else value
                better = self.world.any(self.lead and score > at.best, self.device)
                facts = {"epochs": epoch, "metrics": metrics}
                if better and not self._save_weights(self.best_dir, facts):
                    at.best, at.best_step = score, at.step
        at.history.append(metrics)
        self.report("epoch", {"step": at.step, **metrics})
        if (due or self._due(at.step)) and not self.stopped:
            self.checkpoint()

    def _due(self, step: int) -> bool:
        every = self.train.checkpoint_every_steps
        return every is not None and step % every == 0

    def checkpoint(self) -> None:
        """Write the run's whole state; where that fails, training goes on with a warning."""
        self._settle()
        # Gathering sharded weights takes all processes; writing takes one.
        state = {
            "job": self.task.name,
            "steps_per_epoch": self.steps_per_epoch,
            "batch_size": self.train.batch_size,
            "seed": self.train.seed,
            "best_by": self.best_by,
            **asdict(self.at),
            "model": whole(self.model.state_dict()),
            "ema": None if self.ema is None else whole(self.ema.average),
            "optimizer": whole(self.optimizer.state_dict()),
            "scaler": self.scaler.state_dict(),
        }
        self.saved_step = self.at.step
        if not self.lead:
            return
        step, kept, self.unkept = self.at.step, (self.at.best_step,), ""
        try:
            path = save_state(self.states_dir, step, state, keep_last=self.train.keep_last, keep=kept)
        except OSError as e:
            self.unkept = str(e)
            text = f"step {step}: checkpoint NOT saved ({e}); training goes on, the last good one stays"
            warnings.warn(text, stacklevel=2)
            self._warn(text, step)
        else:
            self.report("checkpoint", {"step": step, "path": str(path)})

    def _continue_from(self, path: Path, state: dict[str, Any]) -> None:
        """Take over a checkpoint; InputError when it cannot continue this run exactly."""
        now = {
            "job": self.task.name,
            "steps_per_epoch": self.steps_per_epoch,
            "batch_size": self.train.batch_size,
            "seed": self.train.seed,
        }
        for key, expected in now.items():
            if state[key] != expected:
                raise InputError(
                    f"{path}: expected a checkpoint of a run with {key} = {expected}, got {state[key]}; "
                    "use another run folder, or start over without resuming"
                )
        load_model_state(self.model, state["model"])
        load_optimizer_state(self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None and state["ema"] is not None:
            own = self.ema.average
            self.ema.average = {k: like(v.to(self.device), own[k]) for k, v in state["ema"].items()}
        # The best epoch by another metric says nothing about this one.
        fresh = () if state.get("best_by") == self.best_by else ("best", "best_step")
        self.at = Place(**{f.name: state[f.name] for f in fields(Place) if f.name not in fresh})

    def finish(self) -> TrainResult:
        """Save what is not saved yet, and the weights to share."""
        at = self.at
        if self.saved_step != at.step or (self.unkept and self.world.size == 1):
            self.checkpoint()
        duration = time.perf_counter() - self.started
        model_path, unsaved, epochs = self.run_dir / "model", "", at.step / self.steps_per_epoch
        known = (read_header(model_path / WEIGHTS_NAME) or {}).get("meta", {})
        if self.world.any(self.lead and known.get("epochs") != epochs, self.device):
            with self._averaged():
                unsaved = self._save_weights(model_path, {"epochs": epochs})
        if unsaved and model_path.is_dir():
            # Those of an interruption before: nobody shall take them for what the run ended with.
            older = self.run_dir / "model-older"
            shutil.rmtree(older, ignore_errors=True)
            model_path.rename(older)
        return TrainResult(
            metrics=dict(at.history[-1]) if at.history else {},
            model_path=model_path,
            best_model_path=self.best_dir if at.best_step >= 0 and self.best_dir.exists() else None,
            epochs=at.step // self.steps_per_epoch,
            steps=at.step,
            clips_per_s=(self.clips_done + self.window.clips) / duration,
            skipped_steps=at.skipped_steps,
            bad_videos=dict(self.loader.skipped),
            duration_s=duration,
            stopped=at.step < len(self.schedule),
            history=at.history,
            unsaved=self.unkept if at.step < len(self.schedule) else unsaved,
        )

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        return self.ema.swapped_in(self.model) if self.ema is not None else contextlib.nullcontext()

    def _save_weights(self, path: Path, facts: dict[str, Any]) -> str:
        """Why they could not be written, as far as this process knows; empty where they were."""
        plain = self.model
        if self.train.shard == "fsdp" and self.world.size > 1:
            state = whole(self.model.state_dict())
            plain = build_model(describe_model(self.model, {}))
            plain.load_state_dict(state)
        if not self.lead:
            return ""
        from safetensors import SafetensorError

        sampling = {k: getattr(self.dataset.config, k) for k in ("sampling", "sampling_rate", "fps")}
        try:
            save_model(path, plain, {**self.task.meta, "job": self.task.name, "sampling": sampling, **facts})
        except (OSError, SafetensorError) as e:
            text = f"step {self.at.step}: {path.name} NOT saved ({e}); training goes on"
            warnings.warn(text, stacklevel=2)
            self._warn(text, self.at.step)
            return str(e)
        return ""

    def _warn(self, text: str, step: int) -> None:
        self.report("warning", {"step": step, "text": text})
