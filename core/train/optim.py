"""The optimiser of the papers: learning rate by total batch, cosine with warm-up, layer-wise decay; and the
average of the weights it moves.

Formulas follow VideoMAE's `optim_factory.py` and `utils.cosine_scheduler`; tests hold them to the
official functions' values.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vmae.core.errors import InputError, nearest

OPTIMIZERS = ("adamw", "sgd")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How the weights move. Defaults are VideoMAE V1 pre-training."""

    optimizer: str = "adamw"
    """`adamw`, or `sgd` with momentum `betas[0]` (the papers' linear probe)."""
    base_lr: float = 1.5e-4
    """Learning rate for a total batch of 256 clips; the rate used is base_lr * total_batch / 256."""
    min_lr: float = 1e-5
    """Where the cosine ends, for a total batch of 256 too (scaled like base_lr)."""
    warmup_lr: float = 0.0
    """Where the linear warm-up starts, for a total batch of 256 too."""
    warmup_epochs: float = 40.0
    """Epochs of linear warm-up, part of the run's epochs. A run shorter than twice this warms up for
    half of it: the papers' numbers are for hundreds of epochs."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Of AdamW: decay of the averages of gradients and of their squares."""
    eps: float = 1e-8
    """Of AdamW, added to the root of the second."""
    weight_decay: float = 0.05
    """Not applied to biases, norms, the mask token and other one-dimensional parameters."""
    clip_grad: float | None = None
    """Largest gradient norm; None leaves gradients alone."""
    layer_decay: float | None = None
    """Learning-rate factor per layer counted from the head (fine-tuning); None: one rate for all."""

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise InputError(
                f"expected optim.optimizer to be one of {', '.join(OPTIMIZERS)}; "
                f"got '{self.optimizer}'{nearest(self.optimizer, OPTIMIZERS)}"
            )
        if not (self.base_lr > 0 and math.isfinite(self.base_lr)):
            raise InputError(f"expected optim.base_lr > 0; got {self.base_lr}")
        for name in ("min_lr", "warmup_lr", "warmup_epochs", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise InputError(f"expected optim.{name} >= 0; got {getattr(self, name)}")
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise InputError(f"expected optim.betas to be two numbers in [0, 1); got {self.betas}")
        object.__setattr__(self, "betas", tuple(self.betas))
        if self.clip_grad is not None and not self.clip_grad > 0:
            raise InputError(f"expected optim.clip_grad > 0 or none; got {self.clip_grad}")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise InputError(f"expected optim.layer_decay in (0, 1] or none; got {self.layer_decay}")


def cosine_schedule(
    base_value: float,
    final_value: float,
    *,
    total_steps: int,
    warmup_steps: int = 0,
    start_value: float = 0.0,
) -> list[float]:
    """One value per step: linear from `start_value` to `base_value`, then half a cosine to `final_value`.

    As in the official `cosine_scheduler`: the last warm-up step already has `base_value`, and the first
    cosine step has it again; the last step stands one step before `final_value`.
    """
    warmup_steps = min(warmup_steps, total_steps)
    # numpy.linspace(start, base, W): both ends included; W = 1 gives the start alone.
    warmup = [
        start_value + (base_value - start_value) * i / max(1, warmup_steps - 1) for i in range(warmup_steps)
    ]
    n = total_steps - warmup_steps
    cosine = [
        final_value + 0.5 * (base_value - final_value) * (1 + math.cos(math.pi * i / n)) for i in range(n)
    ]
    return warmup + cosine


def lr_schedule(config: OptimConfig, *, epochs: int, steps_per_epoch: int, total_batch: int) -> list[float]:
    """The learning rate of every step of a run, before layer decay.

    `total_batch` counts the clips of one optimiser step over all processes and accumulated micro-batches,
    not their repeated samples.
    """
    scale = total_batch / 256
    warmup_epochs = min(config.warmup_epochs, epochs / 2)
    return cosine_schedule(
        config.base_lr * scale,
        config.min_lr * scale,
        total_steps=epochs * steps_per_epoch,
        warmup_steps=int(warmup_epochs * steps_per_epoch),
        start_value=config.warmup_lr * scale,
    )


_BLOCK = re.compile(r"^(?:encoder\.)?blocks\.(\d+)\.")


def layer_index(name: str, depth: int) -> int:
    """The layer of a parameter for layer decay: 0 patch embedding, i + 1 block i, depth + 1 the rest."""
    bare = name.removeprefix("encoder.")
    if bare.startswith(("patch_embed.", "pos_embed", "mask_token", "cls_token")):
        return 0
    block = _BLOCK.match(name)
    return int(block[1]) + 1 if block else depth + 1


def no_weight_decay(name: str, parameter: torch.Tensor) -> bool:
    """True for biases, norm weights, the mask token and position embeddings."""
    return (
        parameter.ndim <= 1
        or name.endswith((".bias", "_bias"))
        or name.rpartition(".")[2] in ("mask_token", "pos_embed", "cls_token")
    )


def parameter_groups(
    model: nn.Module, *, weight_decay: float, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """Parameters in groups of equal (weight decay, lr scale), in the order of `model.parameters()`.

    Each group has `params`, `names`, `weight_decay` and `lr_scale`. Frozen parameters are left out.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    depth = max((int(m[1]) for n, _ in named if (m := _BLOCK.match(n))), default=-1) + 1
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in named:
        decay = 0.0 if no_weight_decay(name, parameter) else weight_decay
        scale = 1.0
        if layer_decay is not None and layer_decay < 1:
            scale = layer_decay ** (depth + 1 - layer_index(name, depth))
        group = groups.setdefault(
            (decay, scale), {"params": [], "names": [], "weight_decay": decay, "lr_scale": scale}
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser over `model`'s trainable parameters; the learning rate is set by `set_lr` each step."""
    groups = parameter_groups(model, weight_decay=config.weight_decay, layer_decay=config.layer_decay)
    for group in groups:
        del group["names"]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=config.betas[0])
    return _AdamW(groups, lr=0.0, betas=config.betas, eps=config.eps, fused=True)


class _AdamW(torch.optim.AdamW):
    """torch's AdamW without the import of TorchDynamo, which its methods are wrapped in.

    The wrappers matter to a compiled optimiser alone, and this one is not compiled. The import costs every
    process that trains a second before its first step.
    """

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.AdamW.load_state_dict)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the rate `lr` times its own `lr_scale`."""
    for group in optimizer.param_groups:
        value = lr * group["lr_scale"]
        # A tensor learning rate (CUDA graphs) is filled in place: the captured step reads its memory.
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(value)
        else:
            group["lr"] = value


def grad_norm(model: nn.Module, clip: float | None) -> torch.Tensor:
    """The gradient's L2 norm before clipping, a scalar on the device; clips in place when `clip` is given."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm(grads)
    if clip is not None:
        nn.utils.clip_grads_with_norm_(model.parameters(), clip, norm)
    if hasattr(norm, "full_tensor"):
        norm = norm.full_tensor()
    return norm


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
