"""The specification of `gather_patches` in plain torch."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from vmae.kernels.layout import compute_dtype, patch_view


def scale_pixels(
    patches: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None, dtype: torch.dtype
) -> Tensor:
    """Return pixels `[..., C]` as float: uint8 times 1/255, then `(x - mean) / std` where given.

    Computed in float32 (float64 if the pixels or `dtype` are) and returned in that dtype.
    """
    work = compute_dtype(patches.dtype, dtype)
    x = patches.to(work)
    if patches.dtype == torch.uint8:
        x = x / 255
    if mean is not None and std is not None:
        # Fake tensors must not be kept, and a compiler keeps constants itself.
        plain = type(patches) is Tensor and not torch.compiler.is_compiling()
        constant = _constant if plain else _constant.__wrapped__
        place = str(x.device)
        x = (x - constant(tuple(mean), work, place)) / constant(tuple(std), work, place)
    return x


@functools.lru_cache(maxsize=32)
def _constant(values: tuple[float, ...], dtype: torch.dtype, device: str) -> Tensor:
    """A tensor of statistics, made once: a step copies nothing from the host."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


def gather_patches_reference(
    video: Tensor,
    indices: Tensor,
    *,
    patch_size: int,
    tubelet_size: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    layout: str = "BCTHW",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Patchify all, keep the wanted: see `vmae.kernels.gather_patches` for the contract."""
    patches = patch_view(video, patch_size, tubelet_size, layout).flatten(1, 3).flatten(2)  # [B, N, P]
    patches = patches.gather(1, indices[..., None].expand(-1, -1, patches.shape[2]))  # [B, K, P]
    channels = video.shape[1] if layout == "BCTHW" else video.shape[4]
    pixels = patches.unflatten(2, (-1, channels))  # [B, K, P/C, C]
    return scale_pixels(pixels, mean, std, dtype).flatten(2).to(dtype)
