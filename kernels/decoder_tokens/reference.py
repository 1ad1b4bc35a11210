"""The specification of `assemble_decoder_tokens` in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from vmae.kernels.layout import compute_dtype


def assemble_decoder_tokens_reference(
    visible: Tensor,
    mask_token: Tensor,
    pos: Tensor,
    visible_indices: Tensor,
    masked_indices: Tensor,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Concatenate [visible + pos, mask_token + pos]: see `vmae.kernels.assemble_decoder_tokens`."""
    work = compute_dtype(visible.dtype, mask_token.dtype, pos.dtype)
    table = pos.to(work)
    seen = visible.to(work) + table[visible_indices]  # [B, N_vis, D]
    hidden = mask_token.reshape(-1).to(work) + table[masked_indices]  # [B, N_mask, D]
    return torch.cat([seen, hidden], dim=1).to(visible.dtype if dtype is None else dtype)
