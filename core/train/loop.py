"""The training loop: pre-training and fine-tuning, exact to the bit when resumed.

Nothing random comes from global state: clip order and augmentation belong to the loader, masks and drop path
are drawn from generators seeded by (seed, epoch, step, ...). A checkpoint therefore needs no generator's
state, only its place in the run, and a run killed anywhere repeats the unbroken run's numbers.

The same loop runs alone and under `torch.distributed` (Ray Train, torchrun): the clips and masks of a step
depend on the total batch, not on how many processes share it.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vmae.core.errors import InputError, VmaeError
from vmae.core.model.encoder import VideoModel
from vmae.core.numerics import autocast, derive_seed, resolve_precision
from vmae.core.train.config import TrainConfig, check_capturable, metric_of_best
from vmae.core.train.graph import CapturedBackward
from vmae.core.train.optim import Ema, OptimConfig, build_optimizer, grad_norm, lr_schedule, set_lr
from vmae.core.train.parallel import World, like, load_model_state, load_optimizer_state, no_sync, whole, wrap
from vmae.core.train.state import list_states, load_newest_state, save_state
from vmae.core.train.task import Report, StepContext, Task, TrainResult, silent
from vmae.core.video.clips import ClipDataset
from vmae.core.video.loader import build_loader
from vmae.core.weights.checkpoint import save_model
from vmae.core.weights.models import build_model, describe_model


class TrainingDiverged(VmaeError):
    """Too many steps in a row gave NaN or infinite gradients."""


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
            raise InputError(
                f"expected at least one batch of train.batch_size = {train.batch_size} clips; "
                f"the training list has {len(dataset)}"
            )
        self.best_by = metric_of_best(train.best_by, task.measured)
        self.device = torch.device(device)
        self.draws = _draws_in_forward(model)
        if train.cuda_graph:
            check_capturable(task.name, train, self.device, draws=self.draws, processes=world.size)
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
        """Train to the last epoch, or until `should_stop` (asked after every step) says so.

        With `resume` the newest whole checkpoint in `run_dir` is continued; without it checkpoints and best
        weights of an earlier run there are deleted.
        """
        self.begin(resume)
        stopped = False
        while not stopped and self.at.step < len(self.schedule):
            stopped = self.epoch(should_stop)
        return self.finish()

    def begin(self, resume: bool) -> None:
        """Model, optimiser and loader on the device, at the newest checkpoint's place or at the start."""
        train, world = self.train, self.world
        self.run_dir.mkdir(parents=True, exist_ok=True)
        if self.lead and not resume:
            # Their step numbers may be higher than this run's: it would be continued from them.
            for old in (*list_states(self.states_dir), self.best_dir):
                shutil.rmtree(old, ignore_errors=True)
        self.model.to(self.device)
        self.module = wrap(self.model, shard=train.shard == "fsdp", compile=train.compile, device=self.device)
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
            # While a step is captured no other thread may use the device.
            device=None if train.cuda_graph else self.device,
        )
        self.backward: Callable[..., Tensor] = self._forward_backward
        if train.cuda_graph:
            rows = self.micro_batch * self.dataset.clips_per_video
            self.backward = CapturedBackward(self._forward_backward, self.model, rows=rows)
        self.model.train()
        self.window = _Window()
        self.first_step = self.saved_step = self.at.step
        self.bad_in_a_row = 0
        self.clips_done, self.started = 0, time.perf_counter()

    def epoch(self, should_stop: Callable[[], bool] | None = None) -> bool:
        """The steps that are left of the epoch under way, then what an epoch ends with; True when stopped."""
        at, train = self.at, self.train
        epoch, done = divmod(at.step, self.steps_per_epoch)
        self.loader.set_epoch(epoch, skip_batches=done * train.accumulate)
        batches = iter(self.loader)
        self.window = _Window()
        stopped = False
        while not stopped and at.step < (epoch + 1) * self.steps_per_epoch:
            self.step(batches)
            if should_stop is not None and self.world.any(should_stop(), self.device):
                stopped = True
            elif train.checkpoint_every_steps and at.step % train.checkpoint_every_steps == 0:
                self.checkpoint()
        if at.step % self.steps_per_epoch == 0:
            self._end_epoch(epoch + 1, stopped)
        return stopped

    def step(self, batches: Iterator[dict[str, Any]]) -> None:
        """One optimiser step: gradients of `accumulate` micro-batches, an update where all is finite."""
        at, train = self.at, self.train
        lr = self.schedule[at.step]
        set_lr(self.optimizer, lr)
        if not train.cuda_graph:  # a captured step owns its gradients
            self.optimizer.zero_grad(set_to_none=True)
        total, counted = torch.zeros((), device=self.device), 0
        paths: list[str] = []
        for micro in range(train.accumulate):
            waited = time.perf_counter()
            batch = next(batches)
            self.window.wait_s += time.perf_counter() - waited
            paths += batch["path"]
            self.window.clips += len(batch["path"]) * self.world.size
            loss = self._micro_batch(micro, batch)
            if loss is not None:
                total += loss
                counted += 1
        total, all_counted = self.world.mean_over(total, counted)
        loss_value, norm = math.nan, math.nan
        if all_counted:
            loss_value = float(total)
            self.scaler.unscale_(self.optimizer)
            norm = grad_norm(self.model, self.optim.clip_grad)
            if math.isfinite(loss_value) and math.isfinite(norm):
                self.scaler.step(self.optimizer)
                self.bad_in_a_row = 0
                if self.ema is not None:
                    self.ema.update(self.model)
            else:
                self._skip(loss_value, paths)
                loss_value = math.nan
            self.scaler.update()
        at.step += 1
        if math.isfinite(loss_value):
            at.epoch_loss += loss_value
            at.epoch_steps += 1
        if at.step % train.log_every == 0 or at.step % self.steps_per_epoch == 0:
            self._report_step(loss_value, lr, norm)

    def _micro_batch(self, micro: int, batch: dict[str, Any]) -> Tensor | None:
        """Leave the gradients of one micro-batch in the model; its loss, or None where it has no clips."""
        blank = not batch["path"]
        if blank:
            # Every file of it was bad: the loader has counted and reported them.
            if self.world.size == 1:
                return None
            # The other processes wait for this one's gradients: it gives zeros.
            batch = _blank_batch(self.dataset)
        train, world, views = self.train, self.world, self.dataset.clips_per_video
        step, epoch = self.at.step, self.at.step // self.steps_per_epoch
        videos = torch.arange(len(batch["label"]) // views)
        place = (micro * self.micro_batch + videos) * world.size + world.rank
        context = StepContext(
            seed=train.seed,
            epoch=epoch,
            step=step,
            rows=(place[:, None] * views + torch.arange(views)).flatten(),
            total_rows=train.batch_size * views,
            device=self.device,
        )
        inputs = self.task.inputs(batch, context)
        seed = derive_seed(train.seed, epoch, step, micro, world.rank, "drop")
        with (
            no_sync(self.module, micro < train.accumulate - 1),
            _seeded(seed, self.device, self.draws),
        ):
            if blank:
                self._forward_backward(*inputs, weight=0.0)
                return None
            return self.backward(*inputs)

    def _forward_backward(self, *inputs: Tensor, weight: float = 1.0) -> Tensor:
        with autocast(self.precision, self.device):
            loss = self.task.loss(self.module, *inputs)
            share = weight / self.train.accumulate
            self.scaler.scale(loss if share == 1.0 else loss * share).backward()
        return loss.detach().float()

    def _skip(self, loss: float, paths: list[str]) -> None:
        """Count and name a step whose gradient is not finite; TrainingDiverged after too many in a row.

        All processes call it together; `paths` are this one's clips, the file gets those of all.
        """
        step, file = self.at.step, self.run_dir / "bad_batches.json"
        self.at.skipped_steps += 1
        self.bad_in_a_row += 1
        paths = self.world.gather(paths)
        self._warn(f"step {step}: loss {loss}, gradient not finite; step skipped")
        if self.lead:
            previous = json.loads(file.read_text()) if file.exists() else []
            file.write_text(
                json.dumps([*previous, {"step": step, "loss": str(loss), "paths": paths}], indent=1)
            )
        if self.bad_in_a_row >= self.train.max_bad_steps:
            raise TrainingDiverged(
                f"expected finite gradients; {self.bad_in_a_row} steps in a row up to step {step} had none "
                f"(loss {loss}); the clips of those steps are in {file}"
            )

    def _report_step(self, loss: float, lr: float, norm: float) -> None:
        epochs, views = self.at.step / self.steps_per_epoch, self.dataset.clips_per_video
        window, self.window = self.window, _Window()
        seconds = self.window.start - window.start
        self.clips_done += window.clips
        self.report(
            "step",
            {
                "step": self.at.step,
                "epoch": epochs,
                "loss": loss,
                "lr": lr,
                "grad_norm": norm,
                # Clips that came: every repeat of a video, none of a bad one.
                "clips_per_s": window.clips / seconds,
                **({"effective_epoch": epochs * views} if views > 1 else {}),
                "data_wait": window.wait_s / seconds,
                "skipped": len(set(self.world.gather(list(self.loader.skipped)))),
                **_memory(self.device),
            },
        )

    def _end_epoch(self, epoch: int, stopped: bool) -> None:
        """Measure, keep the best weights, and save; `epoch` counts from 1."""
        at, train = self.at, self.train
        mean_loss = at.epoch_loss / at.epoch_steps if at.epoch_steps else math.nan
        metrics = {"epoch": float(epoch), "loss": mean_loss}
        at.epoch_loss, at.epoch_steps = 0.0, 0
        due = epoch % train.checkpoint_every == 0 or epoch == train.epochs
        with self._averaged():
            self.model.eval()
            metrics |= self.task.after_epoch(epoch, [h["loss"] for h in at.history] + [mean_loss])
            self.model.train()
            # An epoch has a training loss for nothing; its weights are written where a checkpoint is.
            if self.best_by in metrics and (self.best_by != "loss" or due):
                value = metrics[self.best_by]
                score = -value if self.best_by.endswith("loss") else value
                better = self.world.any(self.lead and score > at.best, self.device)
                facts = {"epochs": epoch, "metrics": metrics}
                if better and self._save_weights(self.best_dir, facts):
                    at.best, at.best_step = score, at.step
        at.history.append(metrics)
        self.report("epoch", {"step": at.step, **metrics})
        if not stopped and due:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Write the run's whole state; where that fails, training goes on with a warning."""
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
        step, kept = self.at.step, (self.at.best_step,)
        try:
            path = save_state(self.states_dir, step, state, keep_last=self.train.keep_last, keep=kept)
        except OSError as e:
            text = f"step {step}: checkpoint NOT saved ({e}); training goes on, the last good one stays"
            warnings.warn(text, stacklevel=2)
            self._warn(text)
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
        if self.saved_step != at.step:
            self.checkpoint()
        duration = time.perf_counter() - self.started
        model_path = self.run_dir / "model"
        if at.step != self.first_step or not model_path.exists():
            with self._averaged():
                self._save_weights(model_path, {"epochs": at.step / self.steps_per_epoch})
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
        )

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        return self.ema.swapped_in(self.model) if self.ema is not None else contextlib.nullcontext()

    def _save_weights(self, path: Path, facts: dict[str, Any]) -> bool:
        """False where it could not be written (as far as this process knows)."""
        plain = self.model
        if self.train.shard == "fsdp" and self.world.size > 1:
            state = whole(self.model.state_dict())
            plain = build_model(describe_model(self.model, {}))
            plain.load_state_dict(state)
        if not self.lead:
            return True
        from safetensors import SafetensorError

        sampling = {k: getattr(self.dataset.config, k) for k in ("sampling", "sampling_rate")}
        try:
            save_model(path, plain, {**self.task.meta, "job": self.task.name, "sampling": sampling, **facts})
        except (OSError, SafetensorError) as e:
            text = f"step {self.at.step}: {path.name} NOT saved ({e}); training goes on"
            warnings.warn(text, stacklevel=2)
            self._warn(text)
            return False
        return True

    def _warn(self, text: str) -> None:
        self.report("warning", {"step": self.at.step, "text": text})


class _Window:
    """What came since the last `step` event."""

    def __init__(self) -> None:
        self.start, self.wait_s, self.clips = time.perf_counter(), 0.0, 0


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device, needed: bool) -> Iterator[None]:
    """Drop path and dropout draw from torch's global generator: seed it inside, put it back after."""
    if not needed:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _draws_in_forward(model: nn.Module) -> bool:
    """True when some module has a dropout or drop-path probability above zero."""
    return any(
        isinstance(value := getattr(module, name, 0.0), float) and value > 0
        for module in model.modules()
        for name in ("p", "drop_prob", "drop_path", "dropout")
    )


def _blank_batch(dataset: ClipDataset) -> dict[str, Any]:
    """One video's worth of black clips, as the loader would give them."""
    views, config = dataset.clips_per_video, dataset.config
    return {
        "clip": torch.zeros((views, config.frames, *config.size, 3), dtype=torch.uint8),
        "label": torch.zeros(views, dtype=torch.int64),
        "path": [],
    }


def _memory(device: torch.device) -> dict[str, float]:
    """Peak memory so far in GiB: the device's, or the process's on a CPU."""
    if device.type == "cuda":
        return {"peak_mem_gib": torch.cuda.max_memory_allocated(device) / 2**30}
    import resource

    return {"peak_mem_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
