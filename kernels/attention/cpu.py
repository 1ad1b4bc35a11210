"""Attention in bfloat16 on a CPU, written out: there it is faster than SDPA at every length measured."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Scores handled at a time, by whole clips: 2 MB in bfloat16 stay in the cache between the two products.
CHUNK_SCORES = 1 << 20


class WrittenOutAttention(torch.autograd.Function):
    """Softmax(q k^T * scale) v from packed qkv [B, N, 3, H, Dh], with a packed gradient.

    Against autograd over the same products: a few clips at a time, and dq, dk, dv go straight into one
    tensor. The probabilities are kept for the backward pass (2 bytes x B x H x N^2 in bfloat16).
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, scale: float, first_query: int) -> Tensor:
        """[B, N - first_query, H * Dh]: the rows of the queries from `first_query` on."""
        b, n, _, h, dh = qkv.shape
        out = qkv.new_empty(b, n - first_query, h, dh)
        kept = []
        for clips in _chunks(b, h * n * n):
            q, k, v = _heads(qkv[clips], first_query)
            p = ((q * scale) @ k.transpose(-2, -1)).softmax(dim=-1)  # [b, H, M, N]
            out[clips] = (p @ v).transpose(1, 2)
            kept.append(p)
        ctx.save_for_backward(qkv, *kept)
        ctx.scale, ctx.first_query = scale, first_query
        return out.flatten(2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        qkv, *kept = ctx.saved_tensors
        first, scale = ctx.first_query, ctx.scale
        b, n, _, h, dh = qkv.shape
        d_out = grads[0].unflatten(2, (h, dh)).transpose(1, 2)  # [B, H, M, Dh]
        d_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
        d_qkv[:, :first, 0] = 0
        for clips, p in zip(_chunks(b, h * n * n), kept, strict=True):
            q, k, v = _heads(qkv[clips], first)
            d_o = d_out[clips]
            d_qkv[clips, :, 2] = (p.transpose(-2, -1) @ d_o).transpose(1, 2)
            d_s = torch._softmax_backward_data(d_o @ v.transpose(-2, -1), p, -1, p.dtype)  # [b, H, M, N]
            d_qkv[clips, first:, 0] = (d_s @ k).mul_(scale).transpose(1, 2)
            d_qkv[clips, :, 1] = (d_s.transpose(-2, -1) @ q).mul_(scale).transpose(1, 2)
        return d_qkv, None, None


def _chunks(batch: int, scores: int) -> list[slice]:
    """Slices of the batch of at most CHUNK_SCORES scores, at least one clip each."""
    step = max(1, CHUNK_SCORES // scores)
    return [slice(i, i + step) for i in range(0, batch, step)]


def _heads(qkv: Tensor, first_query: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views q [B, H, M, Dh], k and v [B, H, N, Dh]."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return q[:, :, first_query:], k, v
