"""`gather_patches`: checks, then the path that dispatch chooses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vmae.kernels.checks import FLOAT_DTYPES, check_indices, check_stats, check_video, require
from vmae.kernels.dispatch import choose
from vmae.kernels.layout import patch_view
from vmae.kernels.patch_gather import library
from vmae.kernels.patch_gather.reference import scale_pixels


def gather_patches(
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
    """Return the patches named by `indices`, scaled to [0, 1] and normalised: `[B, K, P]` of `dtype`.

    video: uint8 (0..255, scaled by 1/255) or float (already in [0, 1], not scaled), `[B, C, T, H, W]` for
    layout "BCTHW" or `[B, T, H, W, C]` for "BTHWC"; any strides. indices: int64 `[B, K]` in [0, N), K >= 1,
    N = t*h*w, token order `n = (t_i * h + h_i) * w + w_i`. mean, std: C numbers each, or None (no
    normalisation). P = tubelet_size * patch_size**2 * C, pixels in the order (frame, row, column, channel),
    channel fastest. Arithmetic is float32 (float64 if the video or `dtype` is), whatever `dtype`.

    The result is differentiable with respect to a float video; a pixel named twice receives both gradients.

    Raises KernelInputError (a ValueError) for a wrong shape, dtype, device, layout, K = 0, mean without std,
    and, on the CPU or with VMAE_KERNELS_DEBUG=1, an index out of range; without that check (GPU,
    torch.compile) an index out of range is undefined behaviour.

    Source: `PatchEmbed` and the mask indexing of the official `modeling_pretrain.py`; the convolution
    there is a Linear over these patches (with its weight's axes in this pixel order).
    """
    b, c, t, h, w = check_video(video, layout, patch_size, tubelet_size)
    num_tokens = (t // tubelet_size) * (h // patch_size) * (w // patch_size)
    check_indices(indices, b, num_tokens, video)
    check_stats(mean, std, c)
    require(dtype in FLOAT_DTYPES, "dtype float32, bfloat16, float16 or float64", dtype)
    float64 = torch.float64 in (video.dtype, dtype)
    unsupported = "float64 is computed by the reference only" if float64 else None
    way = choose(
        "gather_patches",
        video,
        unsupported=unsupported,
        dims=library.site_dims(video, indices, patch_size, tubelet_size, layout),
        layout=library.video_words(video, layout),
        dtype=dtype,
    )
    if way.startswith("triton"):
        stats = (None, None) if mean is None or std is None else (list(mean), list(std))
        return torch.ops.vmae.gather_patches(
            video, indices, patch_size, tubelet_size, *stats, layout, dtype, way[7:]
        )
    pixels = select_pixels(video, indices, patch_size, tubelet_size, layout)
    return scale_pixels(pixels, mean, std, dtype).flatten(2).to(dtype)


def select_pixels(video: Tensor, indices: Tensor, patch_size: int, tubelet_size: int, layout: str) -> Tensor:
    """Return the wanted patches unscaled, in the video's dtype: `[B, K, P/C, C]`; only they are read.

    A patch is rows of `patch_size` pixels. Where those rows are whole runs of memory (a contiguous clip in
    either layout), selecting rows is several times faster on a CPU than indexing pixels.
    """
    p, tt = patch_size, tubelet_size
    view = patch_view(video, p, tt, layout)  # [B, t, h, w, tt, p, p, C]
    b, nt, nh, nw, *_, c = view.shape
    t_i, h_i, w_i = indices // (nh * nw), indices // nw % nh, indices % nw  # [B, K] each
    clip = torch.arange(b, device=indices.device)[:, None]  # [B, 1]
    frames, height = nt * tt, nh * p
    plane = frames * height * nw  # rows of a whole clip (or of one channel of it)
    in_patch = (
        torch.arange(tt, device=indices.device)[:, None] * (height * nw)
        + torch.arange(p, device=indices.device) * nw
    )  # [tt, p] row offsets inside a patch
    corner = (t_i * (tt * height) + h_i * p) * nw + w_i  # [B, K]
    by_pixel = video.permute(0, 2, 3, 4, 1) if layout == "BCTHW" else video  # [B, T, H, W, C]
    by_channel = by_pixel.permute(0, 4, 1, 2, 3)  # [B, C, T, H, W]
    if by_pixel.is_contiguous():
        rows = by_pixel.reshape(b * plane, p * c)
        at = (clip * plane + corner)[..., None] + in_patch.flatten()  # [B, K, tt*p]
        return rows.index_select(0, at.flatten()).view(*indices.shape, tt * p * p, c)
    if by_channel.is_contiguous():
        rows = by_channel.reshape(b * c * plane, p)
        channel = torch.arange(c, device=indices.device)[:, None] * plane + in_patch.flatten()  # [C, tt*p]
        at = (clip * (c * plane) + corner)[..., None, None] + channel  # [B, K, C, tt*p]
        return rows.index_select(0, at.flatten()).view(*indices.shape, c, tt * p * p).transpose(2, 3)
    return view[clip, t_i, h_i, w_i].flatten(2, 4)
