"""Where a patch lies in a clip: the token and pixel order that every op shares."""

from __future__ import annotations

import torch
from torch import Tensor


def channels_last(video: Tensor, layout: str) -> Tensor:
    """Return a view `[B, T, H, W, C]` of a clip batch in either layout."""
    return video.permute(0, 2, 3, 4, 1) if layout == "BCTHW" else video


def patch_view(video: Tensor, patch_size: int, tubelet_size: int, layout: str) -> Tensor:
    """Return a view `[B, t, h, w, tubelet, patch, patch, C]` of a clip batch; no data is copied.

    Flattening axes 1 to 3 gives the token order `n = (t_i * h + h_i) * w + w_i`; flattening the last four
    gives the patch's pixel order, channel fastest (the labels' order of the official
    `engine_for_pretraining.py`).
    """
    x = channels_last(video, layout)
    x = x.unflatten(1, (-1, tubelet_size)).unflatten(3, (-1, patch_size)).unflatten(5, (-1, patch_size))
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7)


def compute_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """float64 where any argument is float64, else float32: statistics are never kept in half precision."""
    return torch.float64 if torch.float64 in dtypes else torch.float32
