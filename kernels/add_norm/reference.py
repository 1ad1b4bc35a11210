"""The specification of `add_layer_norm` in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vmae.kernels.layout import compute_dtype


def add_layer_norm_reference(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, *, eps: float, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Add, then normalise: see `vmae.kernels.add_layer_norm` for the contract."""
    work = compute_dtype(x.dtype, residual.dtype)
    total = x.to(work) + residual.to(work)
    y = F.layer_norm(total, (total.shape[-1],), weight.to(work), bias.to(work), eps)
    return y.to(x.dtype if dtype is None else dtype), total.to(residual.dtype)
