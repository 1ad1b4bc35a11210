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
import struct
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from vmae.core.checkpoint import save_model
from vmae.core.classifier import VideoClassifier
from vmae.core.config import to_dict
from vmae.core.errors import InputError, VmaeError
from vmae.core.masking import MaskConfig, TokenMask, sample_masks
from vmae.core.optim import OptimConfig, build_optimizer, lr_schedule, set_lr
from vmae.core.parallel import World, like, load_model_state, load_optimizer_state, no_sync, whole, wrap
from vmae.core.train_state import load_newest_state, save_state
from vmae.core.video.dataset import ClipDataset, build_loader
from vmae.core.videomae import VideoMAE
from vmae.core.watch import collapse_warning, flat_loss_warning, prediction_variance

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
    shard: Literal["none", "fsdp"] = "none"
    """fsdp: shard weights, gradients and optimiser over the processes (FSDP2); for L, H, g."""
    checkpoint_every: int = 1
    """Epochs between training checkpoints; the last epoch always has one."""
    checkpoint_every_steps: int | None = None
    """Also a checkpoint every so many steps (long epochs)."""
    keep_last: int = 2
    """How many training checkpoints are kept."""
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
    """The weights of the best epoch by the validation metric, where there is one."""
    epochs: int
    steps: int
    clips_per_s: float
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


class LossFunction(Protocol):
    def __call__(self, module: nn.Module, batch: dict[str, Any], context: StepContext) -> Tensor: ...


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
        """Count one skipped step; raises TrainingDiverged after too many in a row."""
        self.total += 1
        self._row += 1
        report(
            "warning",
            {"step": step, "text": f"step {step}: loss {loss}, gradient not finite; step skipped"},
        )
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
    best_metric: str | None = None,
    meta: dict[str, Any] | None = None,
) -> TrainResult:
    """Train `model` in place: the loop under `pretrain` and `finetune`.

    One optimiser step = `accumulate` micro-batches on every process. `loss_fn(module, batch, context)` gives
    a micro-batch's mean loss; `after_epoch(epoch, model, losses)` gives more metrics of the epoch (the model
    in eval mode, its averaged weights in place where there are any); `best_metric` names the one of them
    whose best epoch is kept in `run_dir/best`.
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
    run_dir.mkdir(parents=True, exist_ok=True)
    states_dir = run_dir / "checkpoints"
    lead = world.rank == 0
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

    step, best = 0, -math.inf
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
        step, best = state["step"], state["best"]
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
            "best": best,
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
            path = save_state(states_dir, step, state, keep_last=train.keep_last)
        except OSError as e:
            text = f"step {step}: checkpoint NOT saved ({e}); training goes on, the last good one stays"
            warnings.warn(text, stacklevel=2)
            report("warning", {"step": step, "text": text})
        else:
            report("checkpoint", {"step": step, "path": str(path)})

    def save_weights(path: Path, facts: dict[str, Any]) -> None:
        plain = model
        if train.shard == "fsdp" and world.size > 1:
            state = whole(model.state_dict())
            plain = _fresh_copy(model)
            plain.load_state_dict(state)
        if not lead:
            return
        from safetensors import SafetensorError

        try:
            sampling = {k: getattr(dataset.config, k) for k in ("sampling", "sampling_rate")}
            save_model(path, plain, {**(meta or {}), "job": job, "sampling": sampling, **facts})
        except (OSError, SafetensorError) as e:
            text = f"step {step}: {path.name} NOT saved ({e}); training goes on"
            warnings.warn(text, stacklevel=2)
            report("warning", {"step": step, "text": text})

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
    )
    loader.yield_empty = True
    views = dataset.clips_per_video
    for epoch in range(step // steps_per_epoch, train.epochs):
        skip = step - epoch * steps_per_epoch
        loader.set_epoch(epoch, skip_batches=skip * train.accumulate)
        batches = iter(loader)
        window_start, window_wait, window_steps = time.perf_counter(), 0.0, 0
        for _ in range(skip, steps_per_epoch):
            lr = schedule[step]
            set_lr(optimizer, lr)
            optimizer.zero_grad(set_to_none=True)
            step_loss = torch.zeros((), device=device)
            paths: list[str] = []
            for micro in range(train.accumulate):
                waited = time.perf_counter()
                batch = next(batches)
                window_wait += time.perf_counter() - waited
                paths += batch["path"]
                if not batch["path"]:
                    # Every file of it was bad: the loader has counted and reported them.
                    continue
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
                with (
                    no_sync(module, not last),
                    _seeded(derive_seed(train.seed, epoch, step, micro, world.rank, "drop"), device, draws),
                    autocast(precision, device),
                ):
                    loss = loss_fn(module, batch, context)
                    scaler.scale(loss / train.accumulate if train.accumulate > 1 else loss).backward()
                step_loss += loss.detach().float()
            step_loss /= train.accumulate
            scaler.unscale_(optimizer)
            grad_norm = _grad_norm(model, optim.clip_grad)
            loss_value = float(world.mean(step_loss))
            if not paths:
                loss_value = math.nan
            elif math.isfinite(loss_value) and math.isfinite(grad_norm):
                scaler.step(optimizer)
                finite.good()
                if ema is not None:
                    ema.update(model)
            else:
                finite.bad(step, loss_value, paths, report)
                loss_value = float("nan")
            scaler.update()
            step += 1
            window_steps += 1
            clips_done += train.batch_size
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
                        "clips_per_s": window_steps * train.batch_size / seconds,
                        "data_wait": window_wait / seconds,
                        "skipped": len(loader.skipped),
                        **_memory(device),
                    },
                )
                window_start, window_wait, window_steps = now, 0.0, 0
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
            if after_epoch is not None:
                model.eval()
                with ema.swapped_in(model) if ema is not None else contextlib.nullcontext():
                    losses = [h["loss"] for h in history] + [mean_loss]
                    metrics |= after_epoch(epoch + 1, model, losses)
                    if best_metric is not None and metrics.get(best_metric, -math.inf) > best:
                        best = metrics[best_metric]
                        save_weights(run_dir / "best", {"epochs": epoch + 1, "metrics": metrics})
                model.train()
            history.append(metrics)
            report("epoch", {"step": step, **metrics})
            if not stopped and ((epoch + 1) % train.checkpoint_every == 0 or epoch + 1 == train.epochs):
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
        with ema.swapped_in(model) if ema is not None else contextlib.nullcontext():
            save_weights(model_path, {"epochs": step / steps_per_epoch})
    return TrainResult(
        metrics=dict(history[-1]) if history else {},
        model_path=model_path,
        best_model_path=run_dir / "best" if best_metric is not None and math.isfinite(best) else None,
        epochs=step // steps_per_epoch,
        steps=step,
        clips_per_s=clips_done / duration if clips_done else 0.0,
        skipped_steps=finite.total,
        bad_videos=dict(loader.skipped),
        duration_s=duration,
        stopped=stopped,
        history=history,
    )


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
) -> TrainResult:
    """Masked pre-training of `model` on `dataset` (P1 section 3; V2's dual masking with `mask.decoder_type`).

    Each step draws one mask per clip (and repeat). `run_dir` receives `checkpoints/` (training state),
    `model` (weights to share) and, after a NaN, `bad_batches.json`. With `resume` the newest whole
    checkpoint in `run_dir` is continued, to the same bits as an unbroken run (CPU, fp32).
    `should_stop` is asked after every step; on True the state is saved and the result has `stopped`.
    `after_epoch(epoch, model)` may return more metrics for the epoch's event.

    Raises InputError when batch size, data and processes do not fit, or the checkpoint is of another run;
    TrainingDiverged after `train.max_bad_steps` NaN steps in a row.
    """
    grid = model.config.grid
    seen: dict[str, Any] = {}
    warned: set[str] = set()

    def loss_fn(module: nn.Module, batch: dict[str, Any], context: StepContext) -> Tensor:
        rows = context.rows
        masks, decode = sample_masks(mask, grid, context.total_rows, generator=context.generator("mask"))
        mine = TokenMask(masks.visible[rows], masks.masked[rows]).to(context.device)
        if decode is not None:
            decode = decode[rows].to(context.device, non_blocking=True)
        video = clip_to_video(batch["clip"], context.device)
        seen["video"], seen["mask"] = video[:2], TokenMask(mine.visible[:2], mine.masked[:2])
        loss: Tensor = module(video, mine, decode)
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
        meta={"mask": to_dict(mask), "optim": to_dict(optim), "train": to_dict(train)},
    )
