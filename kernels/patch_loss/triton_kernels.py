"""Triton kernel of `masked_patch_loss`: one program makes one token's target, loss and gradient."""

from __future__ import annotations

import triton
import triton.language as tl

from vmae.kernels.patch_gather.triton_kernels import column_offsets, patch_corner, row_offsets


@triton.jit
def _sums(x_a, x_b, of_a, of_b):
    """Sum of two tiles `[rows, columns]` over the columns of one channel."""
    return tl.sum(x_a * of_a[None, :]) + tl.sum(x_b * of_b[None, :])


@triton.jit
def _normalise(
    x_a,
    x_b,
    cols_a,
    cols_b,
    rows,
    channel_ptr,  # [C, len(cols_a) + len(cols_b)] float32: 1 where a column is of a channel, else 0
    eps,
    ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
    C: tl.constexpr,
    BYTES: tl.constexpr,  # x holds integers 0..255
):
    """`(x - mean) / (sqrt(unbiased variance) + eps)` per channel of both tiles; 0 outside.

    Integers take one pass: around 128 the sums of 1024 pixels and of their squares are exact in float32, so
    the spread, made in int64, and PIXELS times the distance from the mean are too. Other values take two.
    """
    WIDTH: tl.constexpr = cols_a.shape[0] + cols_b.shape[0]
    if BYTES:
        x_a -= 128.0
        x_b -= 128.0
        if rows.shape[0] != ROWS:
            x_a = tl.where((rows < ROWS)[:, None], x_a, 0.0)
            x_b = tl.where((rows < ROWS)[:, None], x_b, 0.0)
    mean_a, mean_b = cols_a * 0.0, cols_b * 0.0
    inverse_a, inverse_b = cols_a * 0.0, cols_b * 0.0
    for c in tl.static_range(C):
        of_a = tl.load(channel_ptr + c * WIDTH + cols_a)
        of_b = tl.load(channel_ptr + c * WIDTH + cols_b)
        total = _sums(x_a, x_b, of_a, of_b)
        mean = total if BYTES else total * (1.0 / PIXELS)
        mean_a += of_a * mean
        mean_b += of_b * mean
        if BYTES:
            whole = total.to(tl.int64)
            spread = _sums(x_a * x_a, x_b * x_b, of_a, of_b).to(tl.int64) * PIXELS - whole * whole
            variance = spread.to(tl.float32) * (1.0 / (PIXELS * (PIXELS - 1)))
            inverse = (1.0 / PIXELS) / (tl.sqrt(variance) + eps)
            inverse_a += of_a * inverse
            inverse_b += of_b * inverse
    if BYTES:
        x_a *= PIXELS
        x_b *= PIXELS
    x_a -= mean_a[None, :]
    x_b -= mean_b[None, :]
    if rows.shape[0] != ROWS:
        x_a = tl.where((rows < ROWS)[:, None], x_a, 0.0)
        x_b = tl.where((rows < ROWS)[:, None], x_b, 0.0)
    if not BYTES:
        for c in tl.static_range(C):
            of_a = tl.load(channel_ptr + c * WIDTH + cols_a)
            of_b = tl.load(channel_ptr + c * WIDTH + cols_b)
            variance = _sums(x_a * x_a, x_b * x_b, of_a, of_b) * (1.0 / (PIXELS - 1))
            inverse = 1.0 / (tl.sqrt(variance) + eps)
            inverse_a += of_a * inverse
            inverse_b += of_b * inverse
    return x_a * inverse_a[None, :], x_b * inverse_b[None, :]


@triton.jit
def _size(diff, LOSS: tl.constexpr):
    """The loss of every element."""
    if LOSS == "mse":
        return diff * diff
    elif LOSS == "l1":
        return tl.abs(diff)
    else:
        return tl.where(tl.abs(diff) < 1.0, 0.5 * diff * diff, tl.abs(diff) - 0.5)


@triton.jit
def _slope(diff, LOSS: tl.constexpr):
    """Its derivative; of "mse" half of it."""
    if LOSS == "mse":
        return diff
    elif LOSS == "l1":
        return tl.where(diff > 0.0, 1.0, tl.where(diff < 0.0, -1.0, 0.0))
    else:
        return tl.maximum(tl.minimum(diff, 1.0), -1.0)


@triton.jit
def _patch_loss_kernel(
    pred_ptr,  # [B, K, P] contiguous
    video_ptr,  # [B, T, H, W, C] by strides, uint8 or float
    index_ptr,  # [B, K] int64
    weight_ptr,  # [B, K] float32, read where HAS_WEIGHTS
    norm_ptr,  # [] float32: 1 / (sum of weights * P), read where HAS_WEIGHTS
    dloss_ptr,  # [] float32, the gradient from above, read where HAS_DLOSS
    channel_ptr,  # [C, COLS_A + COLS_B] float32, which column is of which channel; read where NORMALISED
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
    COLS_A: tl.constexpr,
    COLS_B: tl.constexpr,
    RUNS: tl.constexpr,
    LOSS: tl.constexpr,  # "mse", "l1", "smooth_l1"
    NORMALISED: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    HAS_DLOSS: tl.constexpr,
    WRITE_LOSS: tl.constexpr,
    WRITE_GRAD: tl.constexpr,
):
    """The values of a row are two tiles, 48 being 32 + 16, because a tile's side is a power of two."""
    ROWS: tl.constexpr = TUBELET * PATCH
    RUN: tl.constexpr = PATCH * C
    pid = tl.program_id(0).to(tl.int64)  # b * K + k
    token = tl.load(index_ptr + pid).to(tl.int32)
    corner = patch_corner(token, stride_t, stride_h, stride_w, nh, nw, TUBELET, PATCH)
    rows, cols_a, cols_b = tl.arange(0, BLOCK_R), tl.arange(0, COLS_A), COLS_A + tl.arange(0, COLS_B)
    inside_a = (rows[:, None] < ROWS) & (cols_a[None, :] < RUN)
    inside_b = (rows[:, None] < ROWS) & (cols_b[None, :] < RUN)
    offs_a = pid * P + rows[:, None] * RUN + cols_a[None, :]
    offs_b = pid * P + rows[:, None] * RUN + cols_b[None, :]
    pred_a = tl.load(pred_ptr + offs_a, mask=inside_a, other=0.0).to(tl.float32)
    pred_b = tl.load(pred_ptr + offs_b, mask=inside_b, other=0.0).to(tl.float32)
    patch = video_ptr + (pid // K) * stride_b + corner + row_offsets(rows, stride_t, stride_h, PATCH)[:, None]
    at_a = patch + column_offsets(cols_a, stride_c, stride_w, C, RUNS)[None, :]
    at_b = patch + column_offsets(cols_b, stride_c, stride_w, C, RUNS)[None, :]
    x_a = tl.load(at_a, mask=inside_a, other=0).to(tl.float32)
    x_b = tl.load(at_b, mask=inside_b, other=0).to(tl.float32)
    if not NORMALISED:
        diff_a, diff_b = pred_a - x_a * unit, pred_b - x_b * unit
    elif P == C:  # a patch of one pixel has no variance: its target is 0
        diff_a, diff_b = pred_a, pred_b
    else:
        x_a, x_b = _normalise(
            x_a, x_b, cols_a, cols_b, rows, channel_ptr, eps,
            ROWS, P // C, C, video_ptr.dtype.element_ty == tl.uint8,
        )  # fmt: skip
        diff_a, diff_b = pred_a - x_a, pred_b - x_b  # 0 outside
    factor = norm
    if HAS_WEIGHTS:
        factor = tl.load(weight_ptr + pid) * tl.load(norm_ptr)
    if WRITE_LOSS:
        tl.store(part_ptr + pid, (tl.sum(_size(diff_a, LOSS)) + tl.sum(_size(diff_b, LOSS))) * factor)
    if WRITE_GRAD:
        if LOSS == "mse":
            factor *= 2.0
        if HAS_DLOSS:
            factor *= tl.load(dloss_ptr)
        grad_a, grad_b = _slope(diff_a, LOSS) * factor, _slope(diff_b, LOSS) * factor
        tl.store(dpred_ptr + offs_a, grad_a.to(dpred_ptr.dtype.element_ty), mask=inside_a)
        tl.store(dpred_ptr + offs_b, grad_b.to(dpred_ptr.dtype.element_ty), mask=inside_b)


@triton.jit
def _scale_unless_one_kernel(x_ptr, factor_ptr, total, BLOCK: tl.constexpr):
    """`x *= factor` in place; a factor of 1 (`loss.backward()`) moves no data, without a host sync."""
    factor = tl.load(factor_ptr)
    if factor != 1.0:
        offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + offs, mask=offs < total, other=0.0).to(tl.float32) * factor
        tl.store(x_ptr + offs, x.to(x_ptr.dtype.element_ty), mask=offs < total)
