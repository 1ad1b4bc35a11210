"""Triton kernels of `fused_attention`: a short-sequence pair (all keys resident) and a long-sequence trio.

Scores are kept in base 2: `s = q k^T * scale * log2(e)`, `p = exp2(s - lse)`. Rows past the end are masked on
load (`other=0`) and on store. Products take the input dtype and accumulate in float32; everything else is
float32. Offsets inside a clip fit 32 bits (checked at launch); the clip's own offset is 64-bit.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _load_rows(ptr, rows, stride_row, cols, n, D: tl.constexpr):
    """Rows `[len(rows), len(cols)]` of an `[n, D]` matrix with unit column stride; 0 outside."""
    inside = (rows[:, None] < n) & (cols[None, :] < D)
    return tl.load(ptr + rows[:, None] * stride_row + cols[None, :], mask=inside, other=0.0)


@triton.jit
def _store_rows(ptr, value, rows, stride_row, cols, n, D: tl.constexpr):
    inside = (rows[:, None] < n) & (cols[None, :] < D)
    tl.store(ptr + rows[:, None] * stride_row + cols[None, :], value.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def _num_keys(len_ptr, b, n, HAS_LENGTHS: tl.constexpr):
    """How many keys of clip b are attended to."""
    if HAS_LENGTHS:
        return tl.load(len_ptr + b).to(tl.int32)
    else:
        return n


@triton.jit
def _scores(q, k, keys, length, scale_log2, MASKED: tl.constexpr):
    """Scores `[rows, keys]`, minus infinity at keys past the end."""
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
    if MASKED:
        s = tl.where(keys[None, :] < length, s, float("-inf"))
    return s


@triton.jit
def _scores_t(q, k, keys, length, scale_log2, MASKED: tl.constexpr):
    """Scores `[keys, rows]`: keys are the product's rows, so p and ds feed dv and dk as they are."""
    s = tl.dot(k, tl.trans(q), input_precision="ieee") * scale_log2
    if MASKED:
        s = tl.where(keys[:, None] < length, s, float("-inf"))
    return s


@triton.jit
def _short_fwd_kernel(
    qkv_ptr,  # [B, N, 3, H, D], unit stride along D
    out_ptr,  # [B, N, H, D] contiguous
    lse_ptr,  # [B, H, N] float32, base 2
    len_ptr,  # [B] int32 or int64, read where HAS_LENGTHS
    scale_log2,
    stride_b,
    stride_n,
    stride_part,
    stride_h,
    H,
    N: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    KEYS_A: tl.constexpr,
    KEYS_B: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
):
    """One program per (clip, head): K and V stay resident, the softmax needs no rescaling.

    The keys are one tile or two (160 = 128 + 32), because a tile's side is a power of two.
    """
    b = (tl.program_id(0) // H).to(tl.int64)
    h = tl.program_id(0) % H
    base = qkv_ptr + b * stride_b + h * stride_h
    out = out_ptr + b * N * H * D + h * D
    lse = lse_ptr + (b * H + h) * N
    length = _num_keys(len_ptr, b, N, HAS_LENGTHS)
    cols = tl.arange(0, BLOCK_D)
    keys_a = tl.arange(0, KEYS_A)
    k_a = _load_rows(base + stride_part, keys_a, stride_n, cols, N, D)
    v_a = _load_rows(base + 2 * stride_part, keys_a, stride_n, cols, N, D)
    if KEYS_B > 0:
        keys_b = KEYS_A + tl.arange(0, KEYS_B)
        k_b = _load_rows(base + stride_part, keys_b, stride_n, cols, N, D)
        v_b = _load_rows(base + 2 * stride_part, keys_b, stride_n, cols, N, D)
    for start in range(0, N, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        q = _load_rows(base, rows, stride_n, cols, N, D)
        s_a = _scores(q, k_a, keys_a, length, scale_log2, HAS_LENGTHS or KEYS_A > N)
        top = tl.max(s_a, 1)
        if KEYS_B > 0:
            s_b = _scores(q, k_b, keys_b, length, scale_log2, HAS_LENGTHS or KEYS_A + KEYS_B > N)
            top = tl.maximum(top, tl.max(s_b, 1))
        p_a = tl.exp2(s_a - top[:, None])
        total = tl.sum(p_a, 1)
        acc = tl.dot(p_a.to(v_a.dtype), v_a, input_precision="ieee")
        if KEYS_B > 0:
            p_b = tl.exp2(s_b - top[:, None])
            total += tl.sum(p_b, 1)
            acc = tl.dot(p_b.to(v_b.dtype), v_b, acc, input_precision="ieee")
        _store_rows(out, acc / total[:, None], rows, H * D, cols, N, D)
        tl.store(lse + rows, top + tl.log2(total), mask=rows < N)


@triton.jit
def _short_bwd_kernel(
    qkv_ptr,  # [B, N, 3, H, D], unit stride along D
    dout_ptr,  # [B, N, H, D] contiguous
    dqkv_ptr,  # [B, N, 3, H, D] contiguous
    lse_ptr,  # [B, H, N] float32, base 2
    len_ptr,  # [B] int32 or int64, read where HAS_LENGTHS
    scale,
    scale_log2,
    stride_b,
    stride_n,
    stride_part,
    stride_h,
    H,
    N: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    KEYS_A: tl.constexpr,
    KEYS_B: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
):
    """One program per (clip, head): dq, dk, dv in one pass, every operand read once, 5 products per tile.

    Because all keys are resident, delta = sum over keys of p * dp needs no saved output, and dq of a row tile
    is complete when the tile is left; dk and dv accumulate in registers. No atomics, no scratch memory.
    """
    b = (tl.program_id(0) // H).to(tl.int64)
    h = tl.program_id(0) % H
    base = qkv_ptr + b * stride_b + h * stride_h
    dbase = dqkv_ptr + b * N * 3 * H * D + h * D
    dout = dout_ptr + b * N * H * D + h * D
    length = _num_keys(len_ptr, b, N, HAS_LENGTHS)
    cols = tl.arange(0, BLOCK_D)
    keys_a = tl.arange(0, KEYS_A)
    k_a = _load_rows(base + stride_part, keys_a, stride_n, cols, N, D)
    v_a = _load_rows(base + 2 * stride_part, keys_a, stride_n, cols, N, D)
    dk_a = tl.zeros([KEYS_A, BLOCK_D], tl.float32)
    dv_a = tl.zeros([KEYS_A, BLOCK_D], tl.float32)
    if KEYS_B > 0:
        keys_b = KEYS_A + tl.arange(0, KEYS_B)
        k_b = _load_rows(base + stride_part, keys_b, stride_n, cols, N, D)
        v_b = _load_rows(base + 2 * stride_part, keys_b, stride_n, cols, N, D)
        dk_b = tl.zeros([KEYS_B, BLOCK_D], tl.float32)
        dv_b = tl.zeros([KEYS_B, BLOCK_D], tl.float32)
    for start in range(0, N, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        q = _load_rows(base, rows, stride_n, cols, N, D)
        do = _load_rows(dout, rows, H * D, cols, N, D)
        lse = tl.load(lse_ptr + (b * H + h) * N + rows, mask=rows < N, other=0.0)
        s_a = _scores_t(q, k_a, keys_a, length, scale_log2, HAS_LENGTHS or KEYS_A > N)
        p_a = tl.exp2(s_a - lse[None, :])
        dp_a = tl.dot(v_a, tl.trans(do), input_precision="ieee")
        delta = tl.sum(p_a * dp_a, 0)
        if KEYS_B > 0:
            s_b = _scores_t(q, k_b, keys_b, length, scale_log2, HAS_LENGTHS or KEYS_A + KEYS_B > N)
            p_b = tl.exp2(s_b - lse[None, :])
            dp_b = tl.dot(v_b, tl.trans(do), input_precision="ieee")
            delta += tl.sum(p_b * dp_b, 0)
        dv_a = tl.dot(p_a.to(do.dtype), do, dv_a, input_precision="ieee")
        ds_a = (p_a * (dp_a - delta[None, :])).to(q.dtype)
        dk_a = tl.dot(ds_a, q, dk_a, input_precision="ieee")
        dq = tl.dot(tl.trans(ds_a), k_a, input_precision="ieee")
        if KEYS_B > 0:
            dv_b = tl.dot(p_b.to(do.dtype), do, dv_b, input_precision="ieee")
            ds_b = (p_b * (dp_b - delta[None, :])).to(q.dtype)
            dk_b = tl.dot(ds_b, q, dk_b, input_precision="ieee")
            dq = tl.dot(tl.trans(ds_b), k_b, dq, input_precision="ieee")
        _store_rows(dbase, dq * scale, rows, 3 * H * D, cols, N, D)
    _store_rows(dbase + H * D, dk_a * scale, keys_a, 3 * H * D, cols, N, D)
    _store_rows(dbase + 2 * H * D, dv_a, keys_a, 3 * H * D, cols, N, D)
    if KEYS_B > 0:
        _store_rows(dbase + H * D, dk_b * scale, keys_b, 3 * H * D, cols, N, D)
        _store_rows(dbase + 2 * H * D, dv_b, keys_b, 3 * H * D, cols, N, D)


@triton.jit
def _long_fwd_kernel(
    qkv_ptr,  # [B, N, 3, H, D], unit stride along D
    out_ptr,  # [B, N, H, D] contiguous
    lse_ptr,  # [B, H, N] float32, base 2
    len_ptr,  # [B] int32 or int64, read where HAS_LENGTHS
    scale_log2,
    stride_b,
    stride_n,
    stride_part,
    stride_h,
    H,
    N,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
):
    """One program per (row tile, clip and head): online softmax over key tiles, only the last one masked."""
    b = (tl.program_id(1) // H).to(tl.int64)
    h = tl.program_id(1) % H
    base = qkv_ptr + b * stride_b + h * stride_h
    length = _num_keys(len_ptr, b, N, HAS_LENGTHS)
    cols = tl.arange(0, BLOCK_D)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    q = _load_rows(base, rows, stride_n, cols, N, D)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(0, length, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        k = _load_rows(base + stride_part, keys, stride_n, cols, N, D)
        s = _scores(q, k, keys, length, scale_log2, True)
        new_top = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(p, 1)
        v = _load_rows(base + 2 * stride_part, keys, stride_n, cols, N, D)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
        top = new_top
    out = out_ptr + b * N * H * D + h * D
    _store_rows(out, acc / total[:, None], rows, H * D, cols, N, D)
    tl.store(lse_ptr + (b * H + h) * N + rows, top + tl.log2(total), mask=rows < N)


@triton.jit
def _long_dq_kernel(
    qkv_ptr,  # [B, N, 3, H, D], unit stride along D
    out_ptr,  # [B, N, H, D] contiguous
    dout_ptr,  # [B, N, H, D] contiguous
    dqkv_ptr,  # [B, N, 3, H, D] contiguous; its first third is written
    lse_ptr,  # [B, H, N] float32, base 2
    delta_ptr,  # [B, H, N] float32, written for the dk, dv kernel
    len_ptr,  # [B] int32 or int64, read where HAS_LENGTHS
    scale,
    scale_log2,
    stride_b,
    stride_n,
    stride_part,
    stride_h,
    H,
    N,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
):
    """One program per (row tile, clip and head): delta = sum(out * dout), then dq over key tiles."""
    b = (tl.program_id(1) // H).to(tl.int64)
    h = tl.program_id(1) % H
    base = qkv_ptr + b * stride_b + h * stride_h
    row0 = b * N * H * D + h * D
    length = _num_keys(len_ptr, b, N, HAS_LENGTHS)
    cols = tl.arange(0, BLOCK_D)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    q = _load_rows(base, rows, stride_n, cols, N, D)
    do = _load_rows(dout_ptr + row0, rows, H * D, cols, N, D)
    o = _load_rows(out_ptr + row0, rows, H * D, cols, N, D)
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    at = (b * H + h) * N + rows
    tl.store(delta_ptr + at, delta, mask=rows < N)
    lse = tl.load(lse_ptr + at, mask=rows < N, other=0.0)
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(0, length, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        k = _load_rows(base + stride_part, keys, stride_n, cols, N, D)
        v = _load_rows(base + 2 * stride_part, keys, stride_n, cols, N, D)
        p = tl.exp2(_scores(q, k, keys, length, scale_log2, True) - lse[:, None])
        dp = tl.dot(do, tl.trans(v), input_precision="ieee")
        ds = (p * (dp - delta[:, None])).to(q.dtype)
        dq = tl.dot(ds, k, dq, input_precision="ieee")
    _store_rows(dqkv_ptr + b * N * 3 * H * D + h * D, dq * scale, rows, 3 * H * D, cols, N, D)


@triton.jit
def _long_dkdv_kernel(
    qkv_ptr,  # [B, N, 3, H, D], unit stride along D
    dout_ptr,  # [B, N, H, D] contiguous
    dqkv_ptr,  # [B, N, 3, H, D] contiguous; its last two thirds are written
    lse_ptr,  # [B, H, N] float32, base 2
    delta_ptr,  # [B, H, N] float32
    len_ptr,  # [B] int32 or int64, read where HAS_LENGTHS
    scale,
    scale_log2,
    stride_b,
    stride_n,
    stride_part,
    stride_h,
    H,
    N,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
):
    """One program per (key tile, clip and head): dk and dv over row tiles; rows past the end add nothing.

    A row past the end has q = do = 0, so its ds and its share of dv are 0 whatever its p (lse reads as 0
    there, and p = exp2(0) stays finite). A key past `length` has p = 0.
    """
    b = (tl.program_id(1) // H).to(tl.int64)
    h = tl.program_id(1) % H
    base = qkv_ptr + b * stride_b + h * stride_h
    dout = dout_ptr + b * N * H * D + h * D
    length = _num_keys(len_ptr, b, N, HAS_LENGTHS)
    cols = tl.arange(0, BLOCK_D)
    keys = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = _load_rows(base + stride_part, keys, stride_n, cols, N, D)
    v = _load_rows(base + 2 * stride_part, keys, stride_n, cols, N, D)
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for start in range(0, N, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        q = _load_rows(base, rows, stride_n, cols, N, D)
        do = _load_rows(dout, rows, H * D, cols, N, D)
        at = (b * H + h) * N + rows
        lse = tl.load(lse_ptr + at, mask=rows < N, other=0.0)
        delta = tl.load(delta_ptr + at, mask=rows < N, other=0.0)
        p = tl.exp2(_scores_t(q, k, keys, length, scale_log2, HAS_LENGTHS) - lse[None, :])
        dv = tl.dot(p.to(do.dtype), do, dv, input_precision="ieee")
        dp = tl.dot(v, tl.trans(do), input_precision="ieee")
        ds = (p * (dp - delta[None, :])).to(q.dtype)
        dk = tl.dot(ds, q, dk, input_precision="ieee")
    dbase = dqkv_ptr + b * N * 3 * H * D + h * D
    _store_rows(dbase + H * D, dk * scale, keys, 3 * H * D, cols, N, D)
    _store_rows(dbase + 2 * H * D, dv, keys, 3 * H * D, cols, N, D)
