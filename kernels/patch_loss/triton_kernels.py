"""Triton kernel of `masked_patch_loss`: one program makes one token's target, loss and gradient."""

from __future__ import annotations

import triton
import triton.language as tl

from vmae.kernels.patch_gather.triton_kernels import column_offsets, patch_corner, row_offsets


@triton.jit
def _normalise(x, cols, rows, eps, ROWS: tl.constexpr, RUN: tl.constexpr, C: tl.constexpr):
    """`(x - mean) / (sqrt(unbiased variance) + eps)` per channel of x `[rows, columns]`; 0 outside.

    Two passes over registers. Columns are summed first, so that only their sums meet other channels; which
    channel a column has is a weight of 0 or 1, for multiply-adds are cheaper than selections.
    """
    PIXELS: tl.constexpr = ROWS * RUN // C
    columns = tl.sum(x, 0)
    mean = columns * 0.0
    for c in tl.static_range(C):
        mine = ((cols % C == c) & (cols < RUN)).to(tl.float32)
        mean += mine * (tl.sum(columns * mine) * (1.0 / PIXELS))
    off = x - mean[None, :]
    if rows.shape[0] != ROWS:
        off = tl.where((rows < ROWS)[:, None], off, 0.0)
    columns = tl.sum(off * off, 0)
    inverse = columns * 0.0
    for c in tl.static_range(C):
        mine = ((cols % C == c) & (cols < RUN)).to(tl.float32)
        variance = tl.sum(columns * mine) * (1.0 / (PIXELS - 1))
        inverse += mine * (1.0 / (tl.sqrt_rn(variance) + eps))
    return off * inverse[None, :]


@triton.jit
def _patch_loss_kernel(
    pred_ptr,  # [B, K, P] contiguous
    video_ptr,  # [B, T, H, W, C] by strides, uint8 or float
    index_ptr,  # [B, K] int64
    weight_ptr,  # [B, K] float32, read where HAS_WEIGHTS
    norm_ptr,  # [] float32: 1 / (sum of weights * P), read where HAS_WEIGHTS
    dloss_ptr,  # [] float32, the gradient from above, read where HAS_DLOSS
    part_ptr,  # [B, K] float32, each token's share of the loss, written where WRITE_LOSS
    dpred_ptr,  # [B, K, P] contiguous, written where WRITE_GRAD
    norm,  # 1 / (B * K * P), used where not HAS_WEIGHTS
    eps,  # 1e-6 in the video's units
    unit,  # the video's unit in [0, 1] terms: 1/255 or 1
    stride_b,
    stride_c,
    stride_t,
    stride_h,
    stride_w,
    K,
    nh,
    nw,
    P: tl.constexpr,
    C: tl.constexpr,
    PATCH: tl.constexpr,
    TUBELET: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_W: tl.constexpr,
    RUNS: tl.constexpr,
    LOSS: tl.constexpr,  # "mse", "l1", "smooth_l1"
    NORMALISED: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    HAS_DLOSS: tl.constexpr,
    WRITE_LOSS: tl.constexpr,
    WRITE_GRAD: tl.constexpr,
):
    ROWS: tl.constexpr = TUBELET * PATCH
    RUN: tl.constexpr = PATCH * C
    pid = tl.program_id(0).to(tl.int64)  # b * K + k
    token = tl.load(index_ptr + pid).to(tl.int32)
    corner = patch_corner(token, stride_t, stride_h, stride_w, nh, nw, TUBELET, PATCH)
    rows, cols = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_W)
    inside = (rows[:, None] < ROWS) & (cols[None, :] < RUN)
    offs = rows[:, None] * RUN + cols[None, :]
    pred = tl.load(pred_ptr + pid * P + offs, mask=inside, other=0.0).to(tl.float32)
    at = row_offsets(rows, stride_t, stride_h, PATCH)[:, None]
    at += column_offsets(cols, stride_c, stride_w, C, RUNS)[None, :]
    x = tl.load(video_ptr + (pid // K) * stride_b + corner + at, mask=inside, other=0).to(tl.float32)
    if not NORMALISED:
        target = x * unit
    elif P == C:
        target = x * 0.0  # a patch of one pixel has no variance
    else:
        target = _normalise(x, cols, rows, eps, ROWS, RUN, C)
    diff = pred - target  # 0 outside
    factor = norm
    if HAS_WEIGHTS:
        factor = tl.load(weight_ptr + pid) * tl.load(norm_ptr)
    size = tl.abs(diff)
    if WRITE_LOSS:
        if LOSS == "mse":
            each = diff * diff
        elif LOSS == "l1":
            each = size
        else:
            each = tl.where(size < 1.0, 0.5 * diff * diff, size - 0.5)
        tl.store(part_ptr + pid, tl.sum(each) * factor)
    if WRITE_GRAD:
        if LOSS == "mse":
            slope = diff
            factor *= 2.0
        elif LOSS == "l1":
            slope = tl.where(diff > 0.0, 1.0, tl.where(diff < 0.0, -1.0, 0.0))
        else:
            slope = tl.maximum(tl.minimum(diff, 1.0), -1.0)
        if HAS_DLOSS:
            factor *= tl.load(dloss_ptr)
        grad = slope * factor
        tl.store(dpred_ptr + pid * P + offs, grad.to(dpred_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _scale_unless_one_kernel(x_ptr, factor_ptr, total, BLOCK: tl.constexpr):
    """`x *= factor` in place; a factor of 1 (`loss.backward()`) moves no data, without a host sync."""
    factor = tl.load(factor_ptr)
    if factor != 1.0:
        offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + offs, mask=offs < total, other=0.0).to(tl.float32) * factor
        tl.store(x_ptr + offs, x.to(x_ptr.dtype.element_ty), mask=offs < total)
