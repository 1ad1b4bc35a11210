"""`torch.ops.vmae.patch_loss*`: opaque ops around the kernel, and the one-pass form for eager use.

Two forms, because `loss.backward()` multiplies by a gradient that lives on the device:
- eager: the forward pass writes the loss *and* the gradient for a factor of 1; the backward pass hands that
  gradient on, after a kernel that leaves at once where the factor is 1 (no host sync, no bytes moved).
- under `torch.compile`: the forward op writes the loss, the backward op recomputes the difference and writes
  the gradient: one more read of pred and of the pixels, but nothing is mutated, which the compiler needs.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from vmae.kernels.dispatch import call_name
from vmae.kernels.launch import on_device, or_plain, row_is_run, runs_kernel
from vmae.kernels.patch_gather.configs import loss_block
from vmae.kernels.patch_gather.library import grid_args, site_dims
from vmae.kernels.patch_loss.reference import EPS, masked_patch_loss_reference

_FORM = "int patch_size, int tubelet_size, str loss, str target, str layout, str tiles"
torch.library.define(
    "vmae::patch_loss", f"(Tensor pred, Tensor video, Tensor indices, Tensor? weights, {_FORM}) -> Tensor"
)
torch.library.define(
    "vmae::patch_loss_bwd",
    f"(Tensor dloss, Tensor pred, Tensor video, Tensor indices, Tensor? weights, {_FORM}) -> Tensor",
)


@functools.lru_cache(maxsize=32)
def channel_table(channels: int, run: int, width: int, device: str) -> Tensor:
    """Return `[C, width]` float32: 1 where one of the `run` values of a row is of the channel, else 0.

    Made once, so that a captured step copies nothing from the host.
    """
    rows = [[float(i < run and i % channels == c) for i in range(width)] for c in range(channels)]
    return torch.tensor(rows, dtype=torch.float32, device=device)


def launch(
    pred: Tensor,
    video: Tensor,
    indices: Tensor,
    weights: Tensor | None,
    form: tuple[int, int, str, str, str, str],
    *,
    dloss: Tensor | None = None,
    want_loss: bool = True,
    want_grad: bool = False,
) -> tuple[Tensor | None, Tensor | None]:
    """Run the kernel; return (loss float32 scalar or None, dpred or None)."""
    from vmae.kernels.patch_loss import triton_kernels as kernels

    patch_size, tubelet_size, loss, target, layout, tiles = form
    args = grid_args(video, indices, patch_size, tubelet_size, layout)
    pred = pred.contiguous()
    part = torch.empty(indices.shape, dtype=torch.float32, device=pred.device) if want_loss else None
    dpred = torch.empty_like(pred) if want_grad else None
    weight = norm = None
    if weights is not None:
        weight = weights.detach().to(torch.float32).contiguous()
        norm = 1.0 / (weight.sum() * args["P"])
    run, pixels = patch_size * args["C"], args["P"] // args["C"]
    block_r, cols_a, cols_b, warps = loss_block(tubelet_size * patch_size, run, tiles)
    normalised = target == "normalized" and pixels > 1
    levels = 255.0 if video.dtype == torch.uint8 else 1.0
    with on_device(pred):
        kernels._patch_loss_kernel[(indices.numel(),)](
            pred_ptr=pred,
            video_ptr=video,
            weight_ptr=pred if weight is None else weight,  # any pointer where it is not read
            norm_ptr=pred if norm is None else norm,
            dloss_ptr=pred if dloss is None else dloss,
            channel_ptr=channel_table(args["C"], run, cols_a + cols_b, str(pred.device))
            if normalised
            else pred,
            part_ptr=pred if part is None else part,
            dpred_ptr=pred if dpred is None else dpred,
            norm=1.0 / pred.numel(),
            eps=EPS * levels,
            unit=1.0 / levels,
            **args | {"index_ptr": indices.contiguous()},
            BLOCK_R=block_r,
            COLS_A=cols_a,
            COLS_B=cols_b,
            RUNS=row_is_run(video, layout),
            LOSS=loss,
            NORMALISED=target == "normalized",
            HAS_WEIGHTS=weights is not None,
            HAS_DLOSS=dloss is not None,
            WRITE_LOSS=want_loss,
            WRITE_GRAD=want_grad,
            num_warps=warps,
        )
    return (None if part is None else part.sum()), dpred


def _reference(
    pred: Tensor, video: Tensor, indices: Tensor, weights: Tensor | None, form: tuple[Any, ...]
) -> Tensor:
    patch_size, tubelet_size, loss, target, layout, _ = form
    return masked_patch_loss_reference(
        pred,
        video,
        indices,
        weights=weights,
        patch_size=patch_size,
        tubelet_size=tubelet_size,
        loss=loss,
        target=target,
        layout=layout,
    )


def _name(pred: Tensor, video: Tensor, indices: Tensor, form: tuple[Any, ...]) -> str:
    patch_size, tubelet_size, _, _, layout, _ = form
    dims = site_dims(video, indices, patch_size, tubelet_size, layout)
    return call_name("masked_patch_loss", pred.dtype, dims)


@torch.library.impl("vmae::patch_loss", ("cpu", "cuda"))
def _patch_loss(pred: Tensor, video: Tensor, indices: Tensor, weights: Tensor | None, *form: Any) -> Tensor:
    def plain() -> Tensor:
        return _reference(pred, video, indices, weights, form)

    def kernel() -> Tensor:
        loss, _ = launch(pred, video, indices, weights, form)  # type: ignore[arg-type]
        assert loss is not None
        return loss

    if not (runs_kernel(pred) and runs_kernel(video)):
        return plain()
    return or_plain(lambda: _name(pred, video, indices, form), kernel, plain)


@torch.library.impl("vmae::patch_loss_bwd", ("cpu", "cuda"))
def _patch_loss_bwd(
    dloss: Tensor, pred: Tensor, video: Tensor, indices: Tensor, weights: Tensor | None, *form: Any
) -> Tensor:
    def plain() -> Tensor:
        with torch.enable_grad():
            leaf = pred.detach().requires_grad_()
            return torch.autograd.grad(_reference(leaf, video, indices, weights, form), leaf, dloss)[0]

    def kernel() -> Tensor:
        how: dict[str, Any] = {"dloss": dloss, "want_loss": False, "want_grad": True}
        _, dpred = launch(pred, video, indices, weights, form, **how)  # type: ignore[arg-type]
        assert dpred is not None
        return dpred

    if not (runs_kernel(pred) and runs_kernel(video)):
        return plain()
    return or_plain(lambda: _name(pred, video, indices, form), kernel, plain)


@torch.library.register_fake("vmae::patch_loss")
def _patch_loss_fake(
    pred: Tensor, video: Tensor, indices: Tensor, weights: Tensor | None, *form: Any
) -> Tensor:
    return pred.new_empty((), dtype=torch.float64 if pred.dtype == torch.float64 else torch.float32)


@torch.library.register_fake("vmae::patch_loss_bwd")
def _patch_loss_bwd_fake(
    dloss: Tensor, pred: Tensor, video: Tensor, indices: Tensor, weights: Tensor | None, *form: Any
) -> Tensor:
    return torch.empty_like(pred, memory_format=torch.contiguous_format)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    pred, video, indices, weights, *ctx.form = inputs
    ctx.save_for_backward(pred, video, indices, weights)


def _backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
    return (torch.ops.vmae.patch_loss_bwd(dloss, *ctx.saved_tensors, *ctx.form), *[None] * 9)


torch.library.register_autograd("vmae::patch_loss", _backward, setup_context=_setup)


class OnePassLoss(torch.autograd.Function):
    """Loss and gradient in one launch; see the module's docstring. Only pred receives a gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        pred: Tensor,
        video: Tensor,
        indices: Tensor,
        weights: Tensor | None,
        form: tuple[int, int, str, str, str, str],
    ) -> Tensor:
        def kernel() -> tuple[Tensor | None, Tensor | None]:
            return launch(pred, video, indices, weights, form, want_grad=True)

        def plain() -> tuple[Tensor, None]:
            return _reference(pred, video, indices, weights, form), None

        loss, dpred = or_plain(lambda: _name(pred, video, indices, form), kernel, plain)
        ctx.dpred, ctx.form = dpred, form
        ctx.save_for_backward(pred, video, indices, weights)
        assert loss is not None
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dloss,) = grads
        dpred, ctx.dpred = ctx.dpred, None
        if dpred is None:  # a second backward pass: the first one scaled and gave away the stored gradient
            dpred = torch.ops.vmae.patch_loss_bwd(dloss, *ctx.saved_tensors, *ctx.form)
            return dpred, None, None, None, None
        from vmae.kernels.patch_loss import triton_kernels as kernels

        grid = (-(-dpred.numel() // 4096),)
        with on_device(dpred):
            kernels._scale_unless_one_kernel[grid](dpred, dloss, dpred.numel(), BLOCK=4096)
        return dpred, None, None, None, None
