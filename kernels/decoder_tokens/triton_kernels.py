"""Triton kernels of `assemble_decoder_tokens`: one write of the decoder's input, one read of its gradient."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _assemble_fwd_kernel(
    visible_ptr,  # [B, V, D] contiguous
    token_ptr,  # [D] contiguous
    pos_ptr,  # [N, D] contiguous
    visible_index_ptr,  # [B, V] int64
    masked_index_ptr,  # [B, M] int64
    out_ptr,  # [B, V + M, D] contiguous
    V,
    M,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    b = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    cols = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    seen = rows < V
    hidden = (rows >= V) & (rows < V + M)
    at_seen = tl.load(visible_index_ptr + b * V + rows, mask=seen, other=0)
    at_hidden = tl.load(masked_index_ptr + b * M + rows - V, mask=hidden, other=0)
    place = tl.where(seen, at_seen, at_hidden)
    wide = cols[None, :] < D
    inside = (rows < V + M)[:, None] & wide
    pos = tl.load(pos_ptr + place[:, None] * D + cols[None, :], mask=inside, other=0.0).to(tl.float32)
    token = tl.load(token_ptr + cols, mask=cols < D, other=0.0).to(tl.float32)
    x = tl.load(
        visible_ptr + (b * V + rows[:, None]) * D + cols[None, :], mask=seen[:, None] & wide, other=0.0
    ).to(tl.float32)
    x = tl.where(seen[:, None], x, token[None, :]) + pos
    at = (b * (V + M) + rows[:, None]) * D + cols[None, :]
    tl.store(out_ptr + at, x.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _assemble_bwd_kernel(
    dout_ptr,  # [B, V + M, D] contiguous
    dvisible_ptr,  # [B, V, D] contiguous
    part_ptr,  # [B * SPLITS, D] float32: each program's share of the mask token's gradient
    V,
    M,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Copy the visible rows, sum the masked ones; the shares are added afterwards, in a fixed order."""
    b = tl.program_id(2).to(tl.int64)
    cols = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    wide = cols[None, :] < D
    share = tl.zeros([BLOCK_D], tl.float32)
    for start in range(tl.program_id(0) * BLOCK_R, V + M, SPLITS * BLOCK_R):
        rows = start + tl.arange(0, BLOCK_R)
        inside = (rows < V + M)[:, None] & wide
        at = (b * (V + M) + rows[:, None]) * D + cols[None, :]
        g = tl.load(dout_ptr + at, mask=inside, other=0.0).to(tl.float32)
        share += tl.sum(tl.where((rows >= V)[:, None], g, 0.0), 0)
        tl.store(
            dvisible_ptr + (b * V + rows[:, None]) * D + cols[None, :],
            g.to(dvisible_ptr.dtype.element_ty),
            mask=(rows < V)[:, None] & wide,
        )
    tl.store(part_ptr + (b * SPLITS + tl.program_id(0)) * D + cols, share, mask=cols < D)
