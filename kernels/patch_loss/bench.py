"""`masked_patch_loss` timed, loss and gradient, against the official labels-then-MSE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vmae.kernels.descriptor import BenchCase, Inputs, OpBench, Variant
from vmae.kernels.dispatch import in_mode
from vmae.kernels.patch_gather.bench import MEAN, STD, TINY, ClipShape
from vmae.kernels.patch_loss.op import masked_patch_loss
from vmae.kernels.patch_loss.reference import masked_patch_loss_reference
from vmae.kernels.timing import checked_clips


def loss_bench(shape: ClipShape, *, device: str, compiled: bool) -> OpBench:
    """Loss and gradient of the masked patches, against the official labels-then-MSE."""
    grid: dict[str, Any] = {"patch_size": shape.patch, "tubelet_size": shape.tubelet}
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1, 1) for v in (MEAN, STD))

    def make(seed: int) -> Inputs:
        x = shape.make_clip(seed, device)
        gen = torch.Generator(device).manual_seed(seed + 1000)
        size = (shape.b, shape.num_masked, shape.values)
        pred = torch.randn(size, generator=gen, device=device, dtype=torch.bfloat16)
        # The official loop receives the normalised clip and un-normalises it for the target.
        clip = (x["video"].float() / 255 - mean) / std
        return x | {"pred": pred.requires_grad_(), "clip": clip}

    def official(pred: Tensor, clip: Tensor, masked: Tensor) -> Tensor:
        p, t = shape.patch, shape.tubelet
        pixels = clip * std + mean
        b, c = pixels.shape[:2]
        cut = pixels.view(b, c, shape.frames // t, t, shape.side // p, p, shape.side // p, p)
        patches = cut.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(b, -1, t * p * p, c)
        spread = patches.var(dim=-2, unbiased=True, keepdim=True).sqrt() + 1e-6
        labels = ((patches - patches.mean(dim=-2, keepdim=True)) / spread).flatten(2)
        return F.mse_loss(pred.float(), labels.gather(1, masked[..., None].expand(-1, -1, labels.shape[2])))

    def with_gradient(
        loss: Callable[[Inputs], Tensor],
    ) -> Callable[[Inputs], tuple[Tensor, ...]]:
        def run(x: Inputs) -> tuple[Tensor, ...]:
            value = loss(x)
            return value, *torch.autograd.grad(value, x["pred"])

        return run

    def exact(x: Inputs) -> tuple[Tensor, ...]:
        # The loss is a mean over all clips: float64 for the loss in slices, the gradient of a few clips.
        total = torch.zeros((), dtype=torch.float64, device=device)
        for i in range(shape.b):
            pred, video, masked = (x[k][i : i + 1] for k in ("pred", "video", "masked"))
            total += masked_patch_loss_reference(pred.detach().double(), video, masked, **grid) / shape.b
        few = {k: checked_clips(x[k].detach()) for k in ("pred", "video", "masked")}
        pred = few["pred"].double().requires_grad_()
        value = masked_patch_loss_reference(pred, few["video"], few["masked"], **grid)
        (grad,) = torch.autograd.grad(value, pred)
        return total, grad * (pred.shape[0] / shape.b)

    def ours(mode: str) -> Callable[[Inputs], Tensor]:
        loss = in_mode(mode, masked_patch_loss)
        return lambda x: loss(x["pred"], x["video"], x["masked"], **grid)

    variants = [
        Variant(name="ours", run=with_gradient(ours("triton"))),
        Variant(name="torch path", run=with_gradient(ours("torch"))),
        Variant(
            name="official: labels, mse",
            run=with_gradient(lambda x: official(x["pred"], x["clip"], x["masked"])),
        ),
    ]
    if compiled:
        fast, fast_official = torch.compile(ours("torch")), torch.compile(official)
        variants += [
            Variant(name="compiled torch path", run=with_gradient(fast)),
            Variant(
                name="compiled official",
                run=with_gradient(lambda x: fast_official(x["pred"], x["clip"], x["masked"])),
            ),
        ]
    values = float(shape.b * shape.num_masked * shape.values)
    return OpBench(
        op="masked_patch_loss",
        shape=shape.labels | {"K": shape.num_masked},
        what="fwd+bwd",
        make=make,
        exact=exact,
        variants=variants,
        flops=12.0 * values,
        bytes=5.0 * values,  # bf16 pred in, uint8 pixels in, bf16 gradient out
    )


def benches(device: str, tiny: bool, compiled: bool) -> list[BenchCase]:
    """Tube masking 0.9 and 0.75, at a batch of 64."""
    clip = TINY if tiny else ClipShape(b=64)
    cases = [
        BenchCase(name="loss", barred=True, build=lambda: loss_bench(clip, device=device, compiled=compiled))
    ]
    if not tiny:
        fewer = ClipShape(b=64, masked=0.75)
        cases.append(
            BenchCase(name="loss at 0.75", build=lambda: loss_bench(fewer, device=device, compiled=compiled))
        )
    return cases
