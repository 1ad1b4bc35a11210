"""Triton kernels of `add_layer_norm`: a row is read once, its statistics never leave the chip."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _add_norm_fwd_kernel(
    x_ptr,  # [R, D] contiguous
    residual_ptr,  # [R, D] contiguous
    weight_ptr,  # [D]
    bias_ptr,  # [D]
    y_ptr,  # [R, D] contiguous
    total_ptr,  # [R, D] contiguous, x + residual
    R,
    eps,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    cols = tl.arange(0, BLOCK_D)
    inside = (rows < R)[:, None] & (cols < D)[None, :]
    at = rows[:, None] * D + cols[None, :]
    s = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    s += tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(s, 1) / D
    off = tl.where(inside, s - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(off * off, 1) / D + eps)
    weight = tl.load(weight_ptr + cols, mask=cols < D, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + cols, mask=cols < D, other=0.0).to(tl.float32)
    y = off * rstd[:, None] * weight[None, :] + bias[None, :]
    tl.store(total_ptr + at, s.to(total_ptr.dtype.element_ty), mask=inside)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _add_norm_bwd_kernel(
    dy_ptr,  # [R, D] contiguous
    dtotal_ptr,  # [R, D] contiguous, the gradient of the sum's other uses
    total_ptr,  # [R, D] contiguous
    weight_ptr,  # [D]
    dx_ptr,  # [R, D] contiguous
    dresidual_ptr,  # [R, D] contiguous
    part_ptr,  # [2, PROGRAMS, D] float32: shares of the weight's and the bias's gradient
    R,
    eps,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    """Each program strides over row blocks; the shares are added afterwards in a fixed order, no atomics."""
    cols = tl.arange(0, BLOCK_D)
    weight = tl.load(weight_ptr + cols, mask=cols < D, other=0.0).to(tl.float32)
    dweight = tl.zeros([BLOCK_D], tl.float32)
    dbias = tl.zeros([BLOCK_D], tl.float32)
    for start in range(tl.program_id(0) * BLOCK_R, R, PROGRAMS * BLOCK_R):
        rows = start + tl.arange(0, BLOCK_R)
        inside = (rows < R)[:, None] & (cols < D)[None, :]
        at = rows[:, None].to(tl.int64) * D + cols[None, :]
        s = tl.load(total_ptr + at, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
        mean = tl.sum(s, 1) / D
        off = tl.where(inside, s - mean[:, None], 0.0)
        rstd = tl.rsqrt(tl.sum(off * off, 1) / D + eps)
        xhat = off * rstd[:, None]
        dweight += tl.sum(dy * xhat, 0)
        dbias += tl.sum(dy, 0)
        g = dy * weight[None, :]
        g = rstd[:, None] * (g - tl.sum(g, 1)[:, None] / D - xhat * (tl.sum(g * xhat, 1) / D)[:, None])
        g += tl.load(dtotal_ptr + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx_ptr + at, g.to(dx_ptr.dtype.element_ty), mask=inside)
        tl.store(dresidual_ptr + at, g.to(dresidual_ptr.dtype.element_ty), mask=inside)
    out = tl.program_id(0) * D + cols
    tl.store(part_ptr + out, dweight, mask=cols < D)
    tl.store(part_ptr + PROGRAMS * D + out, dbias, mask=cols < D)
