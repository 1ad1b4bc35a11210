"""The training loop: pre-training and fine-tuning, exact to the bit when resumed.

Nothing random comes from global state: clip order and augmentation belong to the loader, masks and drop path
are drawn from generators seeded by (seed, epoch, step, ...). A checkpoint therefore needs no generator's
state, only its place in the run, and a run killed anywhere repeats the unbroken run's numbers.

The same loop runs alone and under `torch.distributed` (Ray Train, torchrun): the clips and masks of a step
depend on the total batch, not on how many processes share it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
import struct
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from vmae.core.config import to_dict
from vmae.core.errors import InputError, VmaeError, nearest
from vmae.core.model.classifier import VideoClassifier
from vmae.core.model.masking import MaskConfig, TokenMask, sample_masks
from vmae.core.model.videomae import VideoMAE
from vmae.core.train.graph import CapturedBackward
from vmae.core.train.optim import OptimConfig, build_optimizer, lr_schedule, set_lr
from vmae.core.train.parallel import World, like, load_model_state, load_optimizer_state, no_sync, whole, wrap
from vmae.core.train.state import list_states, load_newest_state, save_state
from vmae.core.train.watch import collapse_warning, flat_loss_warning, prediction_variance
from vmae.core.video.dataset import ClipDataset, build_loader
from vmae.core.weights.checkpoint import save_model

Report = Callable[[str, dict[str, Any]], None]
"""Called with an event's name (`start`, `step`, `epoch`, `checkpoint`, `warning`) and its data."""


class TrainingDiverged(VmaeError):
    """Too many steps in a row gave NaN or infinite gradients."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, how much at once, how precisely, and what is kept."""

    epochs: int = 800
    batch_size: int = 256
    """Clips of one optimiser step, over all processes and micro-batches (repeated samples not counted)."""
    accumulate: int = 1
    """Micro-batches whose gradients make one step; divides batch_size / processes."""
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 on GPUs that have it, fp32 elsewhere. fp16 scales the loss."""
    ema_decay: float | None = None
    """Keep an exponential moving average of the weights with this decay; it is what is validated."""
    compile: bool = False
    """torch.compile the model."""
    cuda_graph: bool = False
    """Pre-training on one GPU: forward and backward as one captured CUDA graph, which saves the launches. Off
    because no GPU was there to measure it: `python -m vmae.experiments.bench.gpu_suite` times steps both
    ways."""
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
    """Epochs between reconstruction pictures; 0: none."""
    max_bad_steps: int = 20
    """Steps in a row with NaN or infinite gradients after which the run stops."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "checkpoint_every", "keep_last", "log_every"):
            if getattr(self, name) < 1:
                raise InputError(f"expected train.{name} >= 1; got {getattr(self, name)}")
        for name in ("picture_every", "seed"):
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


PretrainResult = TrainResult


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from integers and words; the same parts give the same seed on every machine."""
    packed = b"".join(struct.pack("<q", p) if isinstance(p, int) else p.encode() + b"\0" for p in parts)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1


def make_generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by `derive_seed(*parts)`."""
    generator = torch.Generator()
    generator.manual_seed(derive_seed(*parts))
    return generator


def resolve_precision(precision: str, device: torch.device) -> str:
    """`auto` becomes bf16 on a GPU that has it and fp32 elsewhere; anything else stays."""
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(False) else "fp32"


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The autocast region of a resolved precision (nothing for fp32)."""
    if precision == "fp32":
        return contextlib.nullcontext()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return torch.autocast(device.type, dtype=dtype)


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """Where in the run a micro-batch stands: all that its randomness may depend on."""

    seed: int
    epoch: int
    step: int
    """Optimiser steps since the run began."""
    rows: Tensor
    """int64 [b]: the place of each clip (repeats side by side) of this micro-batch in the step's batch."""
    total_rows: int
    device: torch.device

    def generator(self, what: str) -> torch.Generator:
        """The same on every process: draw for the total batch, then keep `rows`."""
        return make_generator(self.seed, self.epoch, self.step, what)


class Prepare(Protocol):
    """A micro-batch as the loader gives it -> the tensors that the loss is made of, on the device."""

    def __call__(self, batch: dict[str, Any], context: StepContext) -> tuple[Tensor, ...]: ...


class LossFunction(Protocol):
    """The micro-batch's mean loss from what `Prepare` gave: device work only, so that it can be captured."""

    def __call__(self, module: nn.Module, *inputs: Tensor) -> Tensor: ...


class Ema:
    """Exponential moving average of a model's parameters and buffers, in float32."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.average = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        current = model.state_dict()
        floating = [k for k, v in self.average.items() if v.is_floating_point()]
        torch._foreach_lerp_(
            [self.average[k] for k in floating], [current[k].detach() for k in floating], 1 - self.decay
        )
        for key in self.average.keys() - set(floating):
            self.average[key].copy_(current[key])

    @contextlib.contextmanager
    def swapped_in(self, model: nn.Module) -> Iterator[None]:
        """Run with the averaged weights in `model`; its own come back afterwards."""
        own = {k: v.detach().clone() for k, v in model.state_dict().items()}
        model.load_state_dict(self.average)
        try:
            yield
        finally:
            model.load_state_dict(own)


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


class _Finite:
    """Gradient norm, clipping, and what happens when it is not finite."""

    def __init__(self, run_dir: Path, limit: int) -> None:
        self.total, self._row, self._limit = 0, 0, limit
        self._path = run_dir / "bad_batches.json"

    def good(self) -> None:
        self._row = 0

    def bad(self, step: int, loss: float, paths: list[str], report: Report) -> None:
        """Count one skipped step; raises TrainingDiverged after too many in a row.

        All processes call it together; `paths` are this one's clips, the file gets those of all.
        """
        self.total += 1
        self._row += 1
        world = World.current()
        paths = world.gather(paths)
        report(
            "warning",
            {"step": step, "text": f"step {step}: loss {loss}, gradient not finite; step skipped"},
        )
        if world.rank == 0:
            previous = json.loads(self._path.read_text()) if self._path.exists() else []
            self._path.write_text(
                json.dumps([*previous, {"step": step, "loss": str(loss), "paths": paths}], indent=1)
            )
        if self._row >= self._limit:
            raise TrainingDiverged(
                f"expected finite gradients; {self._row} steps in a row up to step {step} had none "
                f"(loss {loss}); the clips of those steps are in {self._path}"
            )


def fit(
    *,
    job: str,
    model: nn.Module,
    prepare: Prepare,
    loss_fn: LossFunction,
    dataset: ClipDataset,
    optim: OptimConfig,
    train: TrainConfig,
    run_dir: Path,
    device: torch.device,
    report: Report,
    resume: bool,
    should_stop: Callable[[], bool] | None,
    after_epoch: Callable[[int, nn.Module, list[float]], dict[str, float]] | None = None,
    measured: tuple[str, ...] = (),
    meta: dict[str, Any] | None = None,
) -> TrainResult:
    """Train `model` in place: the loop under `pretrain` and `finetune`.

    One optimiser step = `accumulate` micro-batches on every process. `loss_fn(module, *prepare(batch,
    context))` is a micro-batch's mean loss; `after_epoch(epoch, model, losses)` gives more metrics of the
    epoch (the model in eval mode, its averaged weights in place where there are any). `measured` are the
    names among them that `train.best_by` may choose, besides `loss`; `auto` is the first. Without `resume`
    checkpoints and best weights of an earlier run in `run_dir` are deleted.
    """
    world = World.current()
    micro_batch, rest = divmod(train.batch_size, world.size * train.accumulate)
    if rest or micro_batch == 0:
        raise InputError(
            f"expected train.batch_size to be a multiple of processes x train.accumulate "
            f"({world.size} x {train.accumulate}); got {train.batch_size}"
        )
    steps_per_epoch = len(dataset) // train.batch_size
    if steps_per_epoch == 0:
        raise InputError(
            f"expected at least one batch of train.batch_size = {train.batch_size} clips; "
            f"the training list has {len(dataset)}"
        )
    best_by = metric_of_best(train.best_by, measured)
    if train.cuda_graph:
        check_capturable(job, train, device, draws=_draws_in_forward(model), processes=world.size)
    run_dir.mkdir(parents=True, exist_ok=True)
    states_dir, best_dir = run_dir / "checkpoints", run_dir / "best"
    lead = world.rank == 0
    if lead and not resume:
        # Their step numbers may be higher than this run's: it would be continued from them.
        for old in (*list_states(states_dir), best_dir):
            shutil.rmtree(old, ignore_errors=True)
    if not lead:
        report = silent
    precision = resolve_precision(train.precision, device)

    model.to(device)
    module = wrap(model, shard=train.shard == "fsdp", compile=train.compile, device=device)
    optimizer = build_optimizer(model, optim)
    ema = Ema(model, train.ema_decay) if train.ema_decay is not None else None
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    schedule = lr_schedule(
        optim, epochs=train.epochs, steps_per_epoch=steps_per_epoch, total_batch=train.batch_size
    )
    draws = _draws_in_forward(model)
    finite = _Finite(run_dir, train.max_bad_steps)

    step, best, best_step = 0, -math.inf, -1
    epoch_loss, epoch_steps = 0.0, 0
    history: list[dict[str, float]] = []
    loaded = load_newest_state(states_dir) if resume else None
    if loaded is not None:
        path, state = loaded
        _check_same_run(state, job, steps_per_epoch, train, path)
        load_model_state(model, state["model"])
        load_optimizer_state(optimizer, state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        if ema is not None and state["ema"] is not None:
            ema.average = {k: like(v.to(device), ema.average[k]) for k, v in state["ema"].items()}
        step = state["step"]
        if state.get("best_by") == best_by:
            best, best_step = state["best"], state["best_step"]
        epoch_loss, epoch_steps = state["epoch_loss"], state["epoch_steps"]
        history = state["history"]
        finite.total = state["skipped_steps"]
    first_step = step
    total_steps = train.epochs * steps_per_epoch
    report(
        "start",
        {
            "job": job,
            "step": step,
            "total_steps": total_steps,
            "steps_per_epoch": steps_per_epoch,
            "epochs": train.epochs,
            "resumed": loaded is not None,
            "precision": precision,
            "device": str(device),
            "processes": world.size,
        },
    )

    def checkpoint() -> None:
        # Gathering sharded weights takes all processes; writing takes one.
        state = {
            "job": job,
            "step": step,
            "steps_per_epoch": steps_per_epoch,
            "batch_size": train.batch_size,
            "seed": train.seed,
            "epoch_loss": epoch_loss,
            "epoch_steps": epoch_steps,
            "best_by": best_by,
            "best": best,
            "best_step": best_step,
            "history": history,
            "skipped_steps": finite.total,
            "model": whole(model.state_dict()),
            "ema": None if ema is None else whole(ema.average),
            "optimizer": whole(optimizer.state_dict()),
            "scaler": scaler.state_dict(),
        }
        if not lead:
            return
        try:
            path = save_state(states_dir, step, state, keep_last=train.keep_last, keep=(best_step,))
        except OSError as e:
            text = f"step {step}: checkpoint NOT saved ({e}); training goes on, the last good one stays"
            warnings.warn(text, stacklevel=2)
            report("warning", {"step": step, "text": text})
        else:
            report("checkpoint", {"step": step, "path": str(path)})

    def save_weights(path: Path, facts: dict[str, Any]) -> bool:
        """False where it could not be written (as far as this process knows)."""
        plain = model
        if train.shard == "fsdp" and world.size > 1:
            state = whole(model.state_dict())
            plain = _fresh_copy(model)
            plain.load_state_dict(state)
        if not lead:
            return True
        from safetensors import SafetensorError

        try:
            sampling = {k: getattr(dataset.config, k) for k in ("sampling", "sampling_rate")}
            save_model(path, plain, {**(meta or {}), "job": job, "sampling": sampling, **facts})
        except (OSError, SafetensorError) as e:
            text = f"step {step}: {path.name} NOT saved ({e}); training goes on"
            warnings.warn(text, stacklevel=2)
            report("warning", {"step": step, "text": text})
            return False
        return True

    def averaged() -> contextlib.AbstractContextManager[None]:
        return ema.swapped_in(model) if ema is not None else contextlib.nullcontext()

    def forward_backward(*inputs: Tensor, weight: float = 1.0) -> Tensor:
        with autocast(precision, device):
            loss = loss_fn(module, *inputs)
            share = weight / train.accumulate
            scaler.scale(loss if share == 1.0 else loss * share).backward()
        return loss.detach().float()

    started = time.perf_counter()
    clips_done, stopped = 0, False
    last_checkpoint = step
    model.train()
    # One loader for the run: its worker processes live from epoch to epoch.
    loader = build_loader(
        dataset,
        micro_batch,
        shuffle=True,
        seed=train.seed,
        rank=world.rank,
        world_size=world.size,
        drop_last=True,
        # While a step is captured no other thread may use the device.
        device=None if train.cuda_graph else device,
    )
    loader.yield_empty = True
    views = dataset.clips_per_video
    work: Callable[..., Tensor] = forward_backward
    if train.cuda_graph:
        work = CapturedBackward(forward_backward, model, rows=micro_batch * views)
    for epoch in range(step // steps_per_epoch, train.epochs):
        skip = step - epoch * steps_per_epoch
        loader.set_epoch(epoch, skip_batches=skip * train.accumulate)
        batches = iter(loader)
        window_start, window_wait, window_clips = time.perf_counter(), 0.0, 0
        for _ in range(skip, steps_per_epoch):
            lr = schedule[step]
            set_lr(optimizer, lr)
            if not train.cuda_graph:  # a captured step owns its gradients
                optimizer.zero_grad(set_to_none=True)
            step_loss, counted = torch.zeros((), device=device), 0
            paths: list[str] = []
            for micro in range(train.accumulate):
                waited = time.perf_counter()
                batch = next(batches)
                window_wait += time.perf_counter() - waited
                paths += batch["path"]
                clips = len(batch["path"]) * world.size
                window_clips += clips
                clips_done += clips
                blank = not batch["path"]
                if blank:
                    # Every file of it was bad: the loader has counted and reported them.
                    if world.size == 1:
                        continue
                    # The other processes wait for this one's gradients: it gives zeros.
                    batch = _blank_batch(dataset)
                videos = torch.arange(len(batch["label"]) // views)
                place = (micro * micro_batch + videos) * world.size + world.rank
                context = StepContext(
                    seed=train.seed,
                    epoch=epoch,
                    step=step,
                    rows=(place[:, None] * views + torch.arange(views)).flatten(),
                    total_rows=train.batch_size * views,
                    device=device,
                )
                last = micro == train.accumulate - 1
                inputs = prepare(batch, context)
                with (
                    no_sync(module, not last),
                    _seeded(derive_seed(train.seed, epoch, step, micro, world.rank, "drop"), device, draws),
                ):
                    if blank:
                        forward_backward(*inputs, weight=0.0)
                    else:
                        step_loss += work(*inputs)
                        counted += 1
            step_loss, all_counted = world.mean_over(step_loss, counted)
            loss_value, grad_norm = math.nan, math.nan
            if all_counted:
                loss_value = float(step_loss)
                scaler.unscale_(optimizer)
                grad_norm = _grad_norm(model, optim.clip_grad)
                if math.isfinite(loss_value) and math.isfinite(grad_norm):
                    scaler.step(optimizer)
                    finite.good()
                    if ema is not None:
                        ema.update(model)
                else:
                    finite.bad(step, loss_value, paths, report)
                    loss_value = math.nan
                scaler.update()
            step += 1
            if math.isfinite(loss_value):
                epoch_loss += loss_value
                epoch_steps += 1
            if step % train.log_every == 0 or step % steps_per_epoch == 0:
                now = time.perf_counter()
                seconds = now - window_start
                report(
                    "step",
                    {
                        "step": step,
                        "epoch": step / steps_per_epoch,
                        "loss": loss_value,
                        "lr": lr,
                        "grad_norm": grad_norm,
                        # Clips that came: every repeat of a video, none of a bad one.
                        "clips_per_s": window_clips / seconds,
                        **({"effective_epoch": step / steps_per_epoch * views} if views > 1 else {}),
                        "data_wait": window_wait / seconds,
                        "skipped": len(set(world.gather(list(loader.skipped)))),
                        **_memory(device),
                    },
                )
                window_start, window_wait, window_clips = now, 0.0, 0
            if should_stop is not None and world.any(should_stop(), device):
                stopped = True
                break
            if train.checkpoint_every_steps and step % train.checkpoint_every_steps == 0:
                checkpoint()
                last_checkpoint = step
        if step % steps_per_epoch == 0:
            mean_loss = epoch_loss / epoch_steps if epoch_steps else math.nan
            metrics = {"epoch": float(epoch + 1), "loss": mean_loss}
            epoch_loss, epoch_steps = 0.0, 0
            due = (epoch + 1) % train.checkpoint_every == 0 or epoch + 1 == train.epochs
            with averaged():
                if after_epoch is not None:
                    model.eval()
                    metrics |= after_epoch(epoch + 1, model, [h["loss"] for h in history] + [mean_loss])
                    model.train()
                # An epoch has a training loss for nothing; its weights are written where a checkpoint is.
                if best_by in metrics and (best_by != "loss" or due):
                    score = -metrics[best_by] if best_by.endswith("loss") else metrics[best_by]
                    facts = {"epochs": epoch + 1, "metrics": metrics}
                    if world.any(lead and score > best, device) and save_weights(best_dir, facts):
                        best, best_step = score, step
            history.append(metrics)
            report("epoch", {"step": step, **metrics})
            if not stopped and due:
                checkpoint()
                last_checkpoint = step
        if stopped:
            break
    stopped = stopped and step < total_steps
    if last_checkpoint != step:
        checkpoint()
    duration = time.perf_counter() - started
    model_path = run_dir / "model"
    if step != first_step or not model_path.exists():
        with averaged():
            save_weights(model_path, {"epochs": step / steps_per_epoch})
    return TrainResult(
        metrics=dict(history[-1]) if history else {},
        model_path=model_path,
        best_model_path=best_dir if best_step >= 0 and best_dir.exists() else None,
        epochs=step // steps_per_epoch,
        steps=step,
        clips_per_s=clips_done / duration if clips_done else 0.0,
        skipped_steps=finite.total,
        bad_videos=dict(loader.skipped),
        duration_s=duration,
        stopped=stopped,
        history=history,
    )


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
    job: str, train: TrainConfig, device: torch.device, *, draws: bool = False, processes: int = 1
) -> None:
    """Raise InputError where a step of this run cannot be one CUDA graph, with the first reason."""
    reasons = {
        f"a CUDA device, got {device.type}": device.type != "cuda",
        f"pre-training, got {job} (mixing changes what a step computes)": job != "pretrain",
        f"one process, got {processes} (gradients are exchanged during the step)": processes > 1,
        f"train.accumulate = 1, got {train.accumulate}": train.accumulate > 1,
        "no drop path (it draws in every step), got some": draws,
    }
    for reason, given in reasons.items():
        if given:
            raise InputError(f"train.cuda_graph: expected {reason}")


def _blank_batch(dataset: ClipDataset) -> dict[str, Any]:
    """One video's worth of black clips, as the loader would give them."""
    views, config = dataset.clips_per_video, dataset.config
    return {
        "clip": torch.zeros((views, config.frames, *config.size, 3), dtype=torch.uint8),
        "label": torch.zeros(views, dtype=torch.int64),
        "path": [],
    }


def _fresh_copy(model: nn.Module) -> VideoMAE | VideoClassifier:
    """A model of the same configuration with weights of its own, on the CPU and not sharded."""
    if isinstance(model, VideoClassifier):
        return VideoClassifier(model.config, model.num_classes)
    assert isinstance(model, VideoMAE)
    return VideoMAE(model.config)


def silent(event: str, data: dict[str, Any]) -> None:
    """Report of the processes other than the first."""


def _check_same_run(
    state: dict[str, Any], job: str, steps_per_epoch: int, train: TrainConfig, path: Path
) -> None:
    """Raise InputError when a checkpoint cannot continue this run exactly."""
    now = {
        "job": job,
        "steps_per_epoch": steps_per_epoch,
        "batch_size": train.batch_size,
        "seed": train.seed,
    }
    for key, expected in now.items():
        if state[key] != expected:
            raise InputError(
                f"{path}: expected a checkpoint of a run with {key} = {expected}, got {state[key]}; "
                "use another run folder, or start over without resuming"
            )


def _grad_norm(model: nn.Module, clip: float | None) -> float:
    """The gradient's L2 norm before clipping; clips in place when `clip` is given."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm(grads)
    if clip is not None:
        nn.utils.clip_grads_with_norm_(model.parameters(), clip, norm)
    if hasattr(norm, "full_tensor"):
        norm = norm.full_tensor()
    return float(norm)


def _memory(device: torch.device) -> dict[str, float]:
    """Peak memory so far in GiB: the device's, or the process's on a CPU."""
    if device.type == "cuda":
        return {"peak_mem_gib": torch.cuda.max_memory_allocated(device) / 2**30}
    import resource

    return {"peak_mem_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def clip_to_video(clip: Tensor, device: torch.device) -> Tensor:
    """A loader's uint8 `[B, T, H, W, C]` as `[B, C, T, H, W]` on the device.

    A permuted view: bytes move once, and pixels stay uint8.
    """
    return clip.to(device, non_blocking=True).permute(0, 4, 1, 2, 3)


def pretrain(
    *,
    model: VideoMAE,
    mask: MaskConfig,
    dataset: ClipDataset,
    optim: OptimConfig,
    train: TrainConfig,
    run_dir: Path,
    device: torch.device | str = "cpu",
    report: Report = silent,
    resume: bool = True,
    should_stop: Callable[[], bool] | None = None,
    after_epoch: Callable[[int, nn.Module], dict[str, float]] | None = None,
    measured: tuple[str, ...] = (),
) -> TrainResult:
    """Masked pre-training of `model` on `dataset` (P1 section 3; V2's dual masking with `mask.decoder_type`).

    Each step draws one mask per clip (and repeat). `run_dir` receives `checkpoints/` (training state),
    `model` (weights to share), `best` (those of the best epoch by `train.best_by`) and, after a NaN,
    `bad_batches.json`. With `resume` the newest whole
    checkpoint in `run_dir` is continued, to the same bits as an unbroken run (CPU, fp32).
    `should_stop` is asked after every step; on True the state is saved and the result has `stopped`.
    `after_epoch(epoch, model)` may return more metrics for the epoch's event; `measured` are the names of
    those among them that can say which epoch is best.

    Raises InputError when batch size, data and processes do not fit, or the checkpoint is of another run;
    TrainingDiverged after `train.max_bad_steps` NaN steps in a row.
    """
    grid = model.config.grid
    seen: dict[str, Any] = {}
    warned: set[str] = set()

    def prepare(batch: dict[str, Any], context: StepContext) -> tuple[Tensor, ...]:
        rows = context.rows
        masks, decode = sample_masks(mask, grid, context.total_rows, generator=context.generator("mask"))
        mine = TokenMask(masks.visible[rows], masks.masked[rows]).to(context.device)
        video = clip_to_video(batch["clip"], context.device)
        if batch["path"]:
            seen["video"], seen["mask"] = video[:2], TokenMask(mine.visible[:2], mine.masked[:2])
        if decode is None:
            return video, mine.visible, mine.masked
        decoded = decode[rows].to(context.device, non_blocking=True)
        return video, mine.visible, mine.masked, decoded

    def loss_fn(module: nn.Module, *inputs: Tensor) -> Tensor:
        video, visible, masked, *decode = inputs
        loss: Tensor = module(video, TokenMask(visible, masked), *decode)
        return loss

    def watch(epoch: int, module: nn.Module, losses: list[float]) -> dict[str, float]:
        variance = prediction_variance(model, seen["video"], seen["mask"])
        texts = {"collapse": collapse_warning(variance, epoch)}
        if (model.config.target, model.config.loss) == ("normalized", "mse"):
            texts["flat"] = flat_loss_warning(losses, train.epochs)
        for kind, text in texts.items():
            if text is not None and kind not in warned and World.current().rank == 0:
                warned.add(kind)
                report("warning", {"epoch": epoch, "text": text})
        extra = {} if after_epoch is None else after_epoch(epoch, module)
        return {"pred_variance": variance, **extra}

    return fit(
        job="pretrain",
        model=model,
        prepare=prepare,
        loss_fn=loss_fn,
        dataset=dataset,
        optim=optim,
        train=train,
        run_dir=run_dir,
        device=torch.device(device),
        report=report,
        resume=resume,
        should_stop=should_stop,
        after_epoch=watch,
        measured=measured,
        meta={"mask": to_dict(mask), "optim": to_dict(optim), "train": to_dict(train)},
    )
