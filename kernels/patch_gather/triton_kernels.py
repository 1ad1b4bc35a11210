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
def patch_offsets(
    offs,
    stride_c,
    stride_t,
    stride_h,
    stride_w,
    PATCH: tl.constexpr,
    C: tl.constexpr,
    RUNS: tl.constexpr,
):
    """Offsets of a patch's pixels from its corner, order (frame, row, column, channel).

    RUNS: a row of a patch is one run of PATCH * C values in memory (channels last), which lets the compiler
    load it in vectors.
    """
    row = offs // (PATCH * C)
    p0 = row // PATCH
    p1 = row % PATCH
    in_row = offs % (PATCH * C)
    if RUNS:
        return p0 * stride_t + p1 * stride_h + in_row
    else:
        return p0 * stride_t + p1 * stride_h + (in_row // C) * stride_w + (in_row % C) * stride_c


@triton.jit
def per_channel(table_ptr, channel, C: tl.constexpr):
    """Pick `table[channel]`; for few channels from registers, else from memory."""
    if C <= 4:
        value = tl.load(table_ptr) + channel * 0.0
        for c in tl.static_range(1, C):
            value = tl.where(channel == c, tl.load(table_ptr + c), value)
        return value
    else:
        return tl.load(table_ptr + channel)


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
    BLOCK_P: tl.constexpr,
    RUNS: tl.constexpr,
):
    pid = tl.program_id(0).to(tl.int64)  # b * K + k
    token = tl.load(index_ptr + pid).to(tl.int32)
    corner = patch_corner(token, stride_t, stride_h, stride_w, nh, nw, TUBELET, PATCH)
    patch = video_ptr + (pid // K) * stride_b + corner
    for start in tl.static_range(0, P, BLOCK_P):
        offs = start + tl.arange(0, BLOCK_P)
        at = patch_offsets(offs, stride_c, stride_t, stride_h, stride_w, PATCH, C, RUNS)
        x = tl.load(patch + at, mask=offs < P, other=0).to(tl.float32)
        channel = offs % C
        x = x * per_channel(table_ptr, channel, C) + per_channel(table_ptr + C, channel, C)
        tl.store(out_ptr + pid * P + offs, x.to(out_ptr.dtype.element_ty), mask=offs < P)


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
    BLOCK_P: tl.constexpr,
):
    """Adds, because a token may be named twice; where none is, nothing is contended and the sum is exact."""
    pid = tl.program_id(0).to(tl.int64)
    token = tl.load(index_ptr + pid).to(tl.int32)
    corner = patch_corner(token, stride_t, stride_h, stride_w, nh, nw, TUBELET, PATCH)
    patch = dvideo_ptr + (pid // K) * stride_b + corner
    for start in tl.static_range(0, P, BLOCK_P):
        offs = start + tl.arange(0, BLOCK_P)
        at = patch_offsets(offs, stride_c, stride_t, stride_h, stride_w, PATCH, C, False)
        g = tl.load(dout_ptr + pid * P + offs, mask=offs < P, other=0.0).to(tl.float32)
        g = g * per_channel(table_ptr, offs % C, C)
        tl.atomic_add(patch + at, g, mask=offs < P)
