"""Triton kernels of `gather_patches`: one program copies one tubelet, scaling and normalising on the way."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def patch_corner(token, stride_t, stride_h, stride_w, nh, nw, TUBELET: tl.constexpr, PATCH: tl.constexpr):
    """Offset of a token's first pixel inside its clip; token order (t_i, h_i, w_i)."""
    t_i = token // (nh * nw)
    h_i = (token // nw) % nh
    w_i = token % nw
    return t_i * TUBELET * stride_t + h_i * PATCH * stride_h + w_i * PATCH * stride_w


@triton.jit
def row_offsets(rows, stride_t, stride_h, PATCH: tl.constexpr):
    """Offsets of a patch's rows from its corner, order (frame, row)."""
    return rows // PATCH * stride_t + rows % PATCH * stride_h


@triton.jit
def column_offsets(cols, stride_c, stride_w, C: tl.constexpr, RUNS: tl.constexpr):
    """Offsets of the values of a row from its first, order (column, channel).

    RUNS: a row of a patch is one run of PATCH * C values in memory (channels last), which lets the compiler
    load it in vectors.
    """
    if RUNS:
        return cols
    else:
        return (cols // C) * stride_w + (cols % C) * stride_c


@triton.jit
def _gather_fwd_kernel(
    video_ptr,  # [B, T, H, W, C] by strides, uint8 or float
    index_ptr,  # [B, K] int64
    table_ptr,  # [2, C] float32: factor and offset per channel
    out_ptr,  # [B, K, P] contiguous
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
):
    """A patch is TUBELET * PATCH rows of PATCH * C values: what depends on the channel is made per column."""
    ROWS: tl.constexpr = TUBELET * PATCH
    RUN: tl.constexpr = PATCH * C
    pid = tl.program_id(0).to(tl.int64)  # b * K + k
    token = tl.load(index_ptr + pid).to(tl.int32)
    corner = patch_corner(token, stride_t, stride_h, stride_w, nh, nw, TUBELET, PATCH)
    cols = tl.arange(0, BLOCK_W)
    factor = tl.load(table_ptr + cols % C)
    offset = tl.load(table_ptr + C + cols % C)
    patch = video_ptr + (pid // K) * stride_b + corner
    patch += column_offsets(cols, stride_c, stride_w, C, RUNS)[None, :]
    for start in tl.static_range(0, ROWS, BLOCK_R):
        rows = start + tl.arange(0, BLOCK_R)
        inside = (rows[:, None] < ROWS) & (cols[None, :] < RUN)
        at = patch + row_offsets(rows, stride_t, stride_h, PATCH)[:, None]
        x = tl.load(at, mask=inside, other=0).to(tl.float32)
        x = x * factor[None, :] + offset[None, :]
        to = out_ptr + pid * P + rows[:, None] * RUN + cols[None, :]
        tl.store(to, x.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _gather_bwd_kernel(
    dout_ptr,  # [B, K, P] contiguous
    index_ptr,  # [B, K] int64
    table_ptr,  # [2, C] float32: factor and offset per channel
    dvideo_ptr,  # [B, T, H, W, C] by strides, float32, zeros on entry
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
):
    """Adds, because a token may be named twice; where none is, nothing is contended and the sum is exact."""
    ROWS: tl.constexpr = TUBELET * PATCH
    RUN: tl.constexpr = PATCH * C
    pid = tl.program_id(0).to(tl.int64)
    token = tl.load(index_ptr + pid).to(tl.int32)
    corner = patch_corner(token, stride_t, stride_h, stride_w, nh, nw, TUBELET, PATCH)
    cols = tl.arange(0, BLOCK_W)
    factor = tl.load(table_ptr + cols % C)
    patch = dvideo_ptr + (pid // K) * stride_b + corner
    patch += column_offsets(cols, stride_c, stride_w, C, False)[None, :]
    for start in tl.static_range(0, ROWS, BLOCK_R):
        rows = start + tl.arange(0, BLOCK_R)
        inside = (rows[:, None] < ROWS) & (cols[None, :] < RUN)
        g = tl.load(dout_ptr + pid * P + rows[:, None] * RUN + cols[None, :], mask=inside, other=0.0)
        at = patch + row_offsets(rows, stride_t, stride_h, PATCH)[:, None]
        tl.atomic_add(at, g.to(tl.float32) * factor[None, :], mask=inside)
