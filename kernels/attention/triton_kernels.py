"""Triton kernels of `fused_attention`: a short-sequence pair (all keys resident) and a long-sequence trio.

Scores stay unscaled, exponents are in base 2: `p = exp2(s * scale * log2(e) - lse)`, one multiply-add and one
exp2 per score. So the largest score of a row is that of the largest product: the scale must be positive. Rows
past the end are masked on load (`other=0`) and on store. Products take the input dtype and accumulate in
float32; everything else is float32. Offsets inside a clip fit 32 bits (checked at launch); the clip's own
offset is 64-bit.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _load_rows(ptr, rows, stride_row, cols, n, D: tl.constexpr, ROWS_MASKED: tl.constexpr = True):
    """Rows `[len(rows), len(cols)]` of an `[n, D]` matrix with unit column stride; 0 outside.

    Where no mask is needed there is none: a full tile of a power-of-two head dim is copied as it lies.
    """
    at = ptr + rows[:, None] * stride_row + cols[None, :]
    if cols.shape[0] == D:
        if ROWS_MASKED:
            return tl.load(at, mask=rows[:, None] < n, other=0.0)
        else:
            return tl.load(at)
    elif ROWS_MASKED:
        return tl.load(at, mask=(rows[:, None] < n) & (cols[None, :] < D), other=0.0)
    else:
        return tl.load(at, mask=cols[None, :] < D, other=0.0)


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
def _scores(q, k, keys, length, MASKED: tl.constexpr):
    """Unscaled scores `[rows, keys]`, minus infinity at keys past the end."""
    s = tl.dot(q, tl.trans(k), input_precision="ieee")
    if MASKED:
        s = tl.where(keys[None, :] < length, s, float("-inf"))
    return s


@triton.jit
def _scores_t(q, k, keys, length, MASKED: tl.constexpr):
    """Scores `[keys, rows]`: keys are the product's rows, so p and ds feed dv and dk as they are."""
    s = tl.dot(k, tl.trans(q), input_precision="ieee")
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
        s_a = _scores(q, k_a, keys_a, length, HAS_LENGTHS or KEYS_A > N)
        top = tl.max(s_a, 1)
        if KEYS_B > 0:
            s_b = _scores(q, k_b, keys_b, length, HAS_LENGTHS or KEYS_A + KEYS_B > N)
            top = tl.maximum(top, tl.max(s_b, 1))
        top *= scale_log2
        p_a = tl.exp2(s_a * scale_log2 - top[:, None])
        total = tl.sum(p_a, 1)
        acc = tl.dot(p_a.to(v_a.dtype), v_a, input_precision="ieee")
        if KEYS_B > 0:
            p_b = tl.exp2(s_b * scale_log2 - top[:, None])
            total += tl.sum(p_b, 1)
            acc = tl.dot(p_b.to(v_b.dtype), v_b, acc, input_precision="ieee")
        _store_rows(out, acc * (1.0 / total)[:, None], rows, H * D, cols, N, D)
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
        s_a = _scores_t(q, k_a, keys_a, length, HAS_LENGTHS or KEYS_A > N)
        p_a = tl.exp2(s_a * scale_log2 - lse[None, :])
        dp_a = tl.dot(v_a, tl.trans(do), input_precision="ieee")
        delta = tl.sum(p_a * dp_a, 0)
        if KEYS_B > 0:
            s_b = _scores_t(q, k_b, keys_b, length, HAS_LENGTHS or KEYS_A + KEYS_B > N)
            p_b = tl.exp2(s_b * scale_log2 - lse[None, :])
            dp_b = tl.dot(v_b, tl.trans(do), input_precision="ieee")
            delta += tl.sum(p_b * dp_b, 0)
        dv_a = tl.dot(p_a.to(do.dtype), do, dv_a, input_precision="ieee")
        ds_a = (p_a * (dp_a - delta[None, :])).to(q.dtype)
        dk_a = tl.dot(ds_a, q, dk_a, input_precision="ieee")
        # With all keys in one tile the other way round, [D, rows], fills Hopper's matrix unit; with two tiles
        # that form spills.
        if KEYS_B == 0:
            dq = tl.trans(tl.dot(tl.trans(k_a), ds_a, input_precision="ieee"))
        else:
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
def _fwd_tile(
    q,
    acc,
    top,
    total,
    base,
    start,
    stride_part,
    stride_n,
    scale_log2,
    length,
    N,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
):
    """One key tile of the online softmax."""
    cols = tl.arange(0, BLOCK_D)
    keys = start + tl.arange(0, BLOCK_N)
    k = _load_rows(base + stride_part, keys, stride_n, cols, N, D, MASKED)
    s = _scores(q, k, keys, length, MASKED)
    new_top = tl.maximum(top, tl.max(s, 1) * scale_log2)
    p = tl.exp2(s * scale_log2 - new_top[:, None])
    shrink = tl.exp2(top - new_top)
    total = total * shrink + tl.sum(p, 1)
    v = _load_rows(base + 2 * stride_part, keys, stride_n, cols, N, D, MASKED)
    acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return acc, new_top, total


@triton.jit
def _long_fwd_kernel(
    qkv_ptr,  # [B, N, 3, H, D], unit stride along D
    out_ptr,  # [B, N - first, H, D] contiguous
    lse_ptr,  # [B, H, N] float32, base 2; written from `first` on
    len_ptr,  # [B] int32 or int64, read where HAS_LENGTHS
    scale_log2,
    stride_b,
    stride_n,
    stride_part,
    stride_h,
    H,
    N,
    first,  # the first query row that is asked for
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    PEELED: tl.constexpr,  # whether the last tile, the only one to need masks, has code of its own
):
    """One program per (row tile, clip and head): online softmax over key tiles, only the last one masked."""
    b = (tl.program_id(1) // H).to(tl.int64)
    h = tl.program_id(1) % H
    base = qkv_ptr + b * stride_b + h * stride_h
    length = _num_keys(len_ptr, b, N, HAS_LENGTHS)
    cols = tl.arange(0, BLOCK_D)
    rows = first + tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    q = _load_rows(base, rows, stride_n, cols, N, D)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    full = length // BLOCK_N * BLOCK_N if PEELED else length
    for start in range(0, full, BLOCK_N):
        acc, top, total = _fwd_tile(
            q, acc, top, total, base, start, stride_part, stride_n, scale_log2, length, N,
            D, BLOCK_D, BLOCK_N, not PEELED,
        )  # fmt: skip
    if PEELED and full < length:
        acc, top, total = _fwd_tile(
            q, acc, top, total, base, full, stride_part, stride_n, scale_log2, length, N,
            D, BLOCK_D, BLOCK_N, True,
        )  # fmt: skip
    out = out_ptr + b * (N - first) * H * D + h * D
    _store_rows(out, acc * (1.0 / total)[:, None], rows - first, H * D, cols, N - first, D)
    tl.store(lse_ptr + (b * H + h) * N + rows, top + tl.log2(total), mask=rows < N)


@triton.jit
def _dq_tile(
    q,
    do,
    dq,
    lse,
    delta,
    base,
    start,
    stride_part,
    stride_n,
    scale_log2,
    length,
    N,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
):
    """One key tile's share of dq."""
    cols = tl.arange(0, BLOCK_D)
    keys = start + tl.arange(0, BLOCK_N)
    k = _load_rows(base + stride_part, keys, stride_n, cols, N, D, MASKED)
    v = _load_rows(base + 2 * stride_part, keys, stride_n, cols, N, D, MASKED)
    p = tl.exp2(_scores(q, k, keys, length, MASKED) * scale_log2 - lse[:, None])
    dp = tl.dot(do, tl.trans(v), input_precision="ieee")
    ds = (p * (dp - delta[:, None])).to(q.dtype)
    return tl.dot(ds, k, dq, input_precision="ieee")


@triton.jit
def _long_dq_kernel(
    qkv_ptr,  # [B, N, 3, H, D], unit stride along D
    out_ptr,  # [B, N - first, H, D] contiguous
    dout_ptr,  # [B, N - first, H, D] contiguous
    dqkv_ptr,  # [B, N, 3, H, D] contiguous; its first third is written from `first` on
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
    first,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    PEELED: tl.constexpr,  # whether the last tile, the only one to need masks, has code of its own
):
    """One program per (row tile, clip and head): delta = sum(out * dout), then dq over key tiles."""
    b = (tl.program_id(1) // H).to(tl.int64)
    h = tl.program_id(1) % H
    base = qkv_ptr + b * stride_b + h * stride_h
    row0 = b * (N - first) * H * D + h * D
    length = _num_keys(len_ptr, b, N, HAS_LENGTHS)
    cols = tl.arange(0, BLOCK_D)
    rows = first + tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    q = _load_rows(base, rows, stride_n, cols, N, D)
    do = _load_rows(dout_ptr + row0, rows - first, H * D, cols, N - first, D)
    o = _load_rows(out_ptr + row0, rows - first, H * D, cols, N - first, D)
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    at = (b * H + h) * N + rows
    tl.store(delta_ptr + at, delta, mask=rows < N)
    lse = tl.load(lse_ptr + at, mask=rows < N, other=0.0)
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    full = length // BLOCK_N * BLOCK_N if PEELED else length
    for start in range(0, full, BLOCK_N):
        dq = _dq_tile(
            q, do, dq, lse, delta, base, start, stride_part, stride_n, scale_log2, length, N,
            D, BLOCK_D, BLOCK_N, not PEELED,
        )  # fmt: skip
    if PEELED and full < length:
        dq = _dq_tile(
            q, do, dq, lse, delta, base, full, stride_part, stride_n, scale_log2, length, N,
            D, BLOCK_D, BLOCK_N, True,
        )  # fmt: skip
    _store_rows(dqkv_ptr + b * N * 3 * H * D + h * D, dq * scale, rows, 3 * H * D, cols, N, D)


@triton.jit
def _dkdv_tile(
    k,
    v,
    dk,
    dv,
    keys,
    q_base,
    dout,
    lse,
    delta,
    start,
    stride_n,
    stride_do,
    scale_log2,
    length,
    N,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    KEYS_MASKED: tl.constexpr,
    ROWS_MASKED: tl.constexpr,
):
    """One row tile's share of dk and dv. q_base, dout, lse, delta point at row 0 of the clip and head.

    A row past the end has q = do = 0, so its ds and its share of dv are 0 whatever its p (lse reads as 0
    there, and p = exp2(0) stays finite).
    """
    cols = tl.arange(0, BLOCK_D)
    rows = start + tl.arange(0, BLOCK_M)
    q = _load_rows(q_base, rows, stride_n, cols, N, D, ROWS_MASKED)
    do = _load_rows(dout, rows, stride_do, cols, N, D, ROWS_MASKED)
    if ROWS_MASKED:
        top = tl.load(lse + rows, mask=rows < N, other=0.0)
        mean = tl.load(delta + rows, mask=rows < N, other=0.0)
    else:
        top, mean = tl.load(lse + rows), tl.load(delta + rows)
    p = tl.exp2(_scores_t(q, k, keys, length, KEYS_MASKED) * scale_log2 - top[None, :])
    dv = tl.dot(p.to(do.dtype), do, dv, input_precision="ieee")
    dp = tl.dot(v, tl.trans(do), input_precision="ieee")
    ds = (p * (dp - mean[None, :])).to(q.dtype)
    dk = tl.dot(ds, q, dk, input_precision="ieee")
    return dk, dv


@triton.jit
def _long_dkdv_kernel(
    qkv_ptr,  # [B, N, 3, H, D], unit stride along D
    dout_ptr,  # [B, N - first, H, D] contiguous
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
    first,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    PEELED: tl.constexpr,  # whether the last tile, the only one to need masks, has code of its own
):
    """One program per (key tile, clip and head): dk and dv over row tiles; a key past `length` has p = 0."""
    b = (tl.program_id(1) // H).to(tl.int64)
    h = tl.program_id(1) % H
    base = qkv_ptr + b * stride_b + h * stride_h
    dout = dout_ptr + b * (N - first) * H * D + h * D - first * H * D
    at = (b * H + h) * N
    length = _num_keys(len_ptr, b, N, HAS_LENGTHS)
    cols = tl.arange(0, BLOCK_D)
    keys = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = _load_rows(base + stride_part, keys, stride_n, cols, N, D)
    v = _load_rows(base + 2 * stride_part, keys, stride_n, cols, N, D)
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    full = first + (N - first) // BLOCK_M * BLOCK_M if PEELED else N
    for start in range(first, full, BLOCK_M):
        dk, dv = _dkdv_tile(
            k, v, dk, dv, keys, base, dout, lse_ptr + at, delta_ptr + at, start, stride_n, H * D, scale_log2,
            length, N, D, BLOCK_D, BLOCK_M, HAS_LENGTHS, not PEELED,
        )  # fmt: skip
    if PEELED and full < N:
        dk, dv = _dkdv_tile(
            k, v, dk, dv, keys, base, dout, lse_ptr + at, delta_ptr + at, full, stride_n, H * D, scale_log2,
            length, N, D, BLOCK_D, BLOCK_M, HAS_LENGTHS, True,
        )  # fmt: skip
    dbase = dqkv_ptr + b * N * 3 * H * D + h * D
    _store_rows(dbase + H * D, dk * scale, keys, 3 * H * D, cols, N, D)
    _store_rows(dbase + 2 * H * D, dv, keys, 3 * H * D, cols, N, D)


@triton.jit
def _short_bwd_two_pass_kernel(
    qkv_ptr,  # [B, N, 3, H, D], unit stride along D
    out_ptr,  # [B, N, H, D] contiguous
    dout_ptr,  # [B, N, H, D] contiguous
    dqkv_ptr,  # [B, N, 3, H, D] contiguous
    lse_ptr,  # [B, H, N] float32, base 2
    delta_ptr,  # [B, H, N] float32, scratch
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
    BLOCK_N: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
):
    """One program per (clip, head), the long kernels' two passes one after the other: dq, then dk and dv.

    Seven products instead of five and operands read again, from the cache; but fewer registers, so that two
    programs share a multiprocessor and one computes while the other waits for memory.
    """
    b = (tl.program_id(0) // H).to(tl.int64)
    h = tl.program_id(0) % H
    base = qkv_ptr + b * stride_b + h * stride_h
    dbase = dqkv_ptr + b * N * 3 * H * D + h * D
    dout = dout_ptr + b * N * H * D + h * D
    lse_ptr += (b * H + h) * N
    delta_ptr += (b * H + h) * N
    length = _num_keys(len_ptr, b, N, HAS_LENGTHS)
    cols = tl.arange(0, BLOCK_D)
    for row0 in range(0, N, BLOCK_M):
        rows = row0 + tl.arange(0, BLOCK_M)
        q = _load_rows(base, rows, stride_n, cols, N, D)
        do = _load_rows(dout, rows, H * D, cols, N, D)
        o = _load_rows(out_ptr + b * N * H * D + h * D, rows, H * D, cols, N, D)
        delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
        tl.store(delta_ptr + rows, delta, mask=rows < N)
        lse = tl.load(lse_ptr + rows, mask=rows < N, other=0.0)
        dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        for start in range(0, N, BLOCK_N):
            dq = _dq_tile(
                q, do, dq, lse, delta, base, start, stride_part, stride_n, scale_log2, length, N,
                D, BLOCK_D, BLOCK_N, True,
            )  # fmt: skip
        _store_rows(dbase, dq * scale, rows, 3 * H * D, cols, N, D)
    tl.debug_barrier()  # delta is read by other threads than wrote it
    for key0 in range(0, N, BLOCK_N):
        keys = key0 + tl.arange(0, BLOCK_N)
        k = _load_rows(base + stride_part, keys, stride_n, cols, N, D)
        v = _load_rows(base + 2 * stride_part, keys, stride_n, cols, N, D)
        dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        for start in range(0, N, BLOCK_M):
            dk, dv = _dkdv_tile(
                k, v, dk, dv, keys, base, dout, lse_ptr, delta_ptr, start, stride_n, H * D, scale_log2,
                length, N, D, BLOCK_D, BLOCK_M, HAS_LENGTHS, True,
            )  # fmt: skip
        _store_rows(dbase + H * D, dk * scale, keys, 3 * H * D, cols, N, D)
        _store_rows(dbase + 2 * H * D, dv, keys, 3 * H * D, cols, N, D)


@triton.jit
def _short_fwd_persistent_kernel(
    qkv_ptr,  # [B, N, 3, H, D], unit stride along D
    out_ptr,  # [B, N, H, D] contiguous
    lse_ptr,  # [B, H, N] float32, base 2
    len_ptr,  # [B] int32 or int64, read where HAS_LENGTHS
    scale_log2,
    stride_b,
    stride_n,
    stride_part,
    stride_h,
    heads,  # B * H
    H,
    N: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    KEYS_A: tl.constexpr,
    KEYS_B: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The same by a fixed number of programs: each walks over heads and loads one while it computes another.

    The row tiles are unrolled, so that the loop over heads is the innermost, which the compiler pipelines.
    """
    cols = tl.arange(0, BLOCK_D)
    keys_a = tl.arange(0, KEYS_A)
    for item in tl.range(tl.program_id(0), heads, tl.num_programs(0), num_stages=STAGES):
        b = (item // H).to(tl.int64)
        h = item % H
        base = qkv_ptr + b * stride_b + h * stride_h
        out = out_ptr + b * N * H * D + h * D
        lse = lse_ptr + (b * H + h) * N
        length = _num_keys(len_ptr, b, N, HAS_LENGTHS)
        k_a = _load_rows(base + stride_part, keys_a, stride_n, cols, N, D)
        v_a = _load_rows(base + 2 * stride_part, keys_a, stride_n, cols, N, D)
        if KEYS_B > 0:
            keys_b = KEYS_A + tl.arange(0, KEYS_B)
            k_b = _load_rows(base + stride_part, keys_b, stride_n, cols, N, D)
            v_b = _load_rows(base + 2 * stride_part, keys_b, stride_n, cols, N, D)
        for start in tl.static_range(0, N, BLOCK_M):
            rows = start + tl.arange(0, BLOCK_M)
            q = _load_rows(base, rows, stride_n, cols, N, D)
            s_a = _scores(q, k_a, keys_a, length, HAS_LENGTHS or KEYS_A > N)
            top = tl.max(s_a, 1)
            if KEYS_B > 0:
                s_b = _scores(q, k_b, keys_b, length, HAS_LENGTHS or KEYS_A + KEYS_B > N)
                top = tl.maximum(top, tl.max(s_b, 1))
            top *= scale_log2
            p_a = tl.exp2(s_a * scale_log2 - top[:, None])
            total = tl.sum(p_a, 1)
            acc = tl.dot(p_a.to(v_a.dtype), v_a, input_precision="ieee")
            if KEYS_B > 0:
                p_b = tl.exp2(s_b * scale_log2 - top[:, None])
                total += tl.sum(p_b, 1)
                acc = tl.dot(p_b.to(v_b.dtype), v_b, acc, input_precision="ieee")
            _store_rows(out, acc * (1.0 / total)[:, None], rows, H * D, cols, N, D)
            tl.store(lse + rows, top + tl.log2(total), mask=rows < N)
