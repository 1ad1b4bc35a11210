"""Triton kernels of `mlp`: bias and GELU in the first product's epilogue, and the gradient of that."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _gelu(h):
    """Exact GELU, `h * Phi(h)`."""
    return 0.5 * h * (1.0 + tl.erf(h * 0.7071067811865476))


@triton.jit
def _gelu_slope(h):
    """`Phi(h) + h * phi(h)`."""
    phi = 0.3989422804014327 * tl.exp(-0.5 * h * h)
    return 0.5 * (1.0 + tl.erf(h * 0.7071067811865476)) + h * phi


@triton.jit
def _tile_of(pid, rows, cols, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """Row and column tile of a program; GROUP row tiles go over the columns together, for the cache."""
    tiles_m = tl.cdiv(rows, BLOCK_M)
    tiles_n = tl.cdiv(cols, BLOCK_N)
    group = pid // (GROUP * tiles_n)
    first = group * GROUP
    height = tl.minimum(tiles_m - first, GROUP)
    inner = pid % (GROUP * tiles_n)
    return first + inner % height, inner // height


@triton.jit
def _linear_gelu_kernel(
    x_ptr,  # [M, K] contiguous
    w_ptr,  # [N, K] contiguous
    bias_ptr,  # [N]
    h_ptr,  # [M, N] contiguous, before the GELU, kept for the backward pass
    a_ptr,  # [M, N] contiguous, after it
    M,
    N,
    K,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    tile_m, tile_n = _tile_of(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    x_rows = x_ptr + rows[:, None].to(tl.int64) * K
    w_rows = w_ptr + cols[:, None].to(tl.int64) * K
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, K, BLOCK_K):
        ks = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_rows + ks[None, :], mask=(rows < M)[:, None] & (ks < K)[None, :], other=0.0)
        w = tl.load(w_rows + ks[None, :], mask=(cols < N)[:, None] & (ks < K)[None, :], other=0.0)
        acc = tl.dot(x, tl.trans(w), acc, input_precision="ieee")
    h = acc + tl.load(bias_ptr + cols, mask=cols < N, other=0.0).to(tl.float32)[None, :]
    inside = (rows < M)[:, None] & (cols < N)[None, :]
    at = rows[:, None].to(tl.int64) * N + cols[None, :]
    tl.store(h_ptr + at, h.to(h_ptr.dtype.element_ty), mask=inside)
    tl.store(a_ptr + at, _gelu(h).to(a_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _linear_dgelu_kernel(
    dy_ptr,  # [M, K] contiguous
    w_ptr,  # [K, N] contiguous: the second layer's weight
    h_ptr,  # [M, N] contiguous
    dh_ptr,  # [M, N] contiguous, written
    part_ptr,  # [tiles of M, N] float32: shares of the first bias's gradient
    M,
    N,
    K,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """dh = (dy W2) * gelu'(h), and its column sums per row tile, added afterwards in a fixed order."""
    tile_m, tile_n = _tile_of(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    dy_rows = dy_ptr + rows[:, None].to(tl.int64) * K
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, K, BLOCK_K):
        ks = start + tl.arange(0, BLOCK_K)
        dy = tl.load(dy_rows + ks[None, :], mask=(rows < M)[:, None] & (ks < K)[None, :], other=0.0)
        w = tl.load(
            w_ptr + ks[:, None].to(tl.int64) * N + cols[None, :],
            mask=(ks < K)[:, None] & (cols < N)[None, :],
            other=0.0,
        )
        acc = tl.dot(dy, w, acc, input_precision="ieee")
    inside = (rows < M)[:, None] & (cols < N)[None, :]
    at = rows[:, None].to(tl.int64) * N + cols[None, :]
    h = tl.load(h_ptr + at, mask=inside, other=0.0).to(tl.float32)
    dh = acc * _gelu_slope(h)
    tl.store(dh_ptr + at, dh.to(dh_ptr.dtype.element_ty), mask=inside)
    tl.store(part_ptr + tile_m * N + cols, tl.sum(tl.where(inside, dh, 0.0), 0), mask=cols < N)
