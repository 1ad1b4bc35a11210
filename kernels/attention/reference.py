"""The specification of `fused_attention` in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def fused_attention_reference(
    qkv: Tensor, *, scale: float | None = None, lengths: Tensor | None = None
) -> Tensor:
    """Softmax(q k^T * scale) v, written out: see `vmae.kernels.fused_attention` for the contract."""
    b, n, _, h, dh = qkv.shape
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, H, N, Dh] each
    scores = (q * (dh**-0.5 if scale is None else scale)) @ k.transpose(-2, -1)  # [B, H, N, N]
    if lengths is not None:
        padded = torch.arange(n, device=qkv.device) >= lengths[:, None]  # [B, N]
        scores = scores.masked_fill(padded[:, None, None, :], float("-inf"))
    out = scores.softmax(dim=-1) @ v  # [B, H, N, Dh]
    return out.transpose(1, 2).reshape(b, n, h * dh)
