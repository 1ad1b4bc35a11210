"""The specification of the masked patch loss and its targets in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vmae.kernels.layout import compute_dtype
from vmae.kernels.patch_gather.reference import gather_patches_reference

EPS = 1e-6


def normalise_target(pixels: Tensor) -> Tensor:
    """Return `(x - mean) / (sqrt(var) + 1e-6)` over axis -2 of `[..., P/C, C]`: per patch and per channel.

    The variance is the unbiased one (divided by P/C - 1), as `normalize_target` of the official
    `engine_for_pretraining.py` computes it; a patch of a single pixel has no variance and gives 0.
    """
    mean = pixels.mean(dim=-2, keepdim=True)
    if pixels.shape[-2] == 1:
        return torch.zeros_like(pixels)
    var = pixels.var(dim=-2, unbiased=True, keepdim=True)
    return (pixels - mean) / (var.sqrt() + EPS)


def patch_targets_reference(
    video: Tensor,
    indices: Tensor,
    *,
    patch_size: int,
    tubelet_size: int,
    target: str = "normalized",
    layout: str = "BCTHW",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The labels, materialised: see `vmae.kernels.patch_targets` for the contract."""
    work = compute_dtype(video.dtype, dtype)
    patches = gather_patches_reference(
        video, indices, patch_size=patch_size, tubelet_size=tubelet_size, layout=layout, dtype=work
    )
    if target == "raw":
        return patches.to(dtype)
    channels = video.shape[1] if layout == "BCTHW" else video.shape[4]
    return normalise_target(patches.unflatten(2, (-1, channels))).flatten(2).to(dtype)


def elementwise_loss(pred: Tensor, target: Tensor, loss: str) -> Tensor:
    """Return the loss of every element; smooth-L1 has its corner at 1, torch's default."""
    if loss == "mse":
        return F.mse_loss(pred, target, reduction="none")
    if loss == "l1":
        return F.l1_loss(pred, target, reduction="none")
    return F.smooth_l1_loss(pred, target, reduction="none")


def masked_patch_loss_reference(
    pred: Tensor,
    video: Tensor,
    indices: Tensor,
    *,
    patch_size: int,
    tubelet_size: int,
    weights: Tensor | None = None,
    loss: str = "mse",
    target: str = "normalized",
    layout: str = "BCTHW",
) -> Tensor:
    """Labels, difference, mean, one after another: see `vmae.kernels.masked_patch_loss` for the contract."""
    work = compute_dtype(pred.dtype)
    labels = patch_targets_reference(
        video,
        indices,
        patch_size=patch_size,
        tubelet_size=tubelet_size,
        target=target,
        layout=layout,
        dtype=work,
    )
    each = elementwise_loss(pred.to(work), labels, loss)  # [B, K, P]
    if weights is None:
        return each.mean()
    w = weights.to(work)
    return (each * w[..., None]).sum() / (w.sum() * pred.shape[2])
