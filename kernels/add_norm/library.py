"""`torch.ops.vmae.add_norm*`: opaque ops around the kernels, with fake and autograd registrations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vmae.kernels.add_norm.configs import PROGRAMS, norm_block
from vmae.kernels.add_norm.reference import add_layer_norm_reference
from vmae.kernels.launch import on_device, runs_kernel

torch.library.define(
    "vmae::add_norm",
    "(Tensor x, Tensor residual, Tensor weight, Tensor bias, float eps, ScalarType dtype)"
    " -> (Tensor, Tensor)",
)
torch.library.define(
    "vmae::add_norm_bwd",
    "(Tensor dy, Tensor dtotal, Tensor total, Tensor weight, float eps, ScalarType x_dtype)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)


@torch.library.impl("vmae::add_norm", ("cpu", "cuda"))
def _add_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    if not all(runs_kernel(v) for v in (x, residual, weight)) or dtype == torch.float64:
        y, total = add_layer_norm_reference(x, residual, weight, bias, eps=eps, dtype=dtype)
        return y.contiguous(), total.contiguous()
    from vmae.kernels.add_norm import triton_kernels as kernels

    d = x.shape[-1]
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    total = torch.empty(x.shape, dtype=residual.dtype, device=x.device)
    rows, block, warps = norm_block(d)
    count = x.numel() // d
    with on_device(x):
        kernels._add_norm_fwd_kernel[(-(-count // rows),)](
            x.contiguous(),
            residual.contiguous(),
            weight.contiguous(),
            bias.contiguous(),
            y,
            total,
            count,
            eps,
            D=d,
            BLOCK_R=rows,
            BLOCK_D=block,
            num_warps=warps,
        )
    return y, total


@torch.library.impl("vmae::add_norm_bwd", ("cpu", "cuda"))
def _add_norm_bwd(
    dy: Tensor, dtotal: Tensor, total: Tensor, weight: Tensor, eps: float, x_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return dx, dresidual and, in float32 or float64, the gradients of weight and bias."""
    d = total.shape[-1]
    if not all(runs_kernel(v) for v in (dy, total, weight)):
        work = torch.float64 if torch.float64 in (dy.dtype, total.dtype) else torch.float32
        s, g = total.to(work), dy.to(work)
        off = s - s.mean(dim=-1, keepdim=True)
        rstd = (off.square().mean(dim=-1, keepdim=True) + eps).rsqrt()
        xhat = off * rstd
        dxhat = g * weight.to(work)
        mean, slope = dxhat.mean(dim=-1, keepdim=True), (dxhat * xhat).mean(dim=-1, keepdim=True)
        ds = rstd * (dxhat - mean - xhat * slope) + dtotal.to(work)
        flat = tuple(range(ds.ndim - 1))
        parts = ((g * xhat).sum(dim=flat), g.sum(dim=flat))
        return ds.to(x_dtype, copy=True), ds.to(total.dtype, copy=True), *parts
    from vmae.kernels.add_norm import triton_kernels as kernels

    dx = torch.empty(total.shape, dtype=x_dtype, device=total.device)
    dresidual = torch.empty_like(total)
    rows, block, warps = norm_block(d)
    programs = min(PROGRAMS, -(-total.numel() // (d * rows)))
    part = torch.empty(2, programs, d, dtype=torch.float32, device=total.device)
    with on_device(dy):
        kernels._add_norm_bwd_kernel[(programs,)](
            dy.contiguous(),
            dtotal.contiguous(),
            total,
            weight.contiguous(),
            dx,
            dresidual,
            part,
            total.numel() // d,
            eps,
            D=d,
            BLOCK_R=rows,
            BLOCK_D=block,
            PROGRAMS=programs,
            num_warps=warps,
        )
    dweight, dbias = part.sum(dim=1).unbind(0)
    return dx, dresidual, dweight.clone(), dbias.clone()


@torch.library.register_fake("vmae::add_norm")
def _add_norm_fake(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=dtype), residual.new_empty(x.shape)


@torch.library.register_fake("vmae::add_norm_bwd")
def _add_norm_bwd_fake(
    dy: Tensor, dtotal: Tensor, total: Tensor, weight: Tensor, eps: float, x_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    work = torch.float64 if torch.float64 in (dy.dtype, total.dtype) else torch.float32
    share = total.new_empty(total.shape[-1], dtype=work)
    return (
        total.new_empty(total.shape, dtype=x_dtype),
        total.new_empty(total.shape),
        share,
        torch.empty_like(share),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, _, weight, bias, ctx.eps, _ = inputs
    ctx.x_dtype, ctx.bias_dtype = x.dtype, bias.dtype
    ctx.save_for_backward(output[1], weight)


def _backward(ctx: Any, dy: Tensor, dtotal: Tensor) -> tuple[Tensor | None, ...]:
    total, weight = ctx.saved_tensors
    dx, dresidual, dweight, dbias = torch.ops.vmae.add_norm_bwd(
        dy, dtotal, total, weight, ctx.eps, ctx.x_dtype
    )
    return dx, dresidual, dweight.to(weight.dtype), dbias.to(ctx.bias_dtype), None, None


torch.library.register_autograd("vmae::add_norm", _backward, setup_context=_setup)
