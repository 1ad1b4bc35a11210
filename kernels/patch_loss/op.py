"""`masked_patch_loss` and `patch_targets`: checks, then the path that dispatch chooses."""

from __future__ import annotations

import torch
from torch import Tensor

from vmae.kernels.checks import FLOAT_DTYPES, check_indices, check_video, describe, require
from vmae.kernels.dispatch import choose
from vmae.kernels.launch import runs_kernel
from vmae.kernels.layout import compute_dtype
from vmae.kernels.patch_gather.configs import MAX_PATCH_VALUES
from vmae.kernels.patch_gather.library import site_dims, video_words
from vmae.kernels.patch_gather.op import select_pixels
from vmae.kernels.patch_gather.reference import scale_pixels
from vmae.kernels.patch_loss import library
from vmae.kernels.patch_loss.cpu import SquaredErrorLoss
from vmae.kernels.patch_loss.reference import elementwise_loss, normalise_target
from vmae.kernels.sites import recorder

LOSSES = ("mse", "l1", "smooth_l1")
TARGETS = ("normalized", "raw")


def patch_targets(
    video: Tensor,
    indices: Tensor,
    *,
    patch_size: int,
    tubelet_size: int,
    target: str = "normalized",
    layout: str = "BCTHW",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return the regression targets of the named patches, `[B, K, P]` of `dtype`, without gradient.

    Pixels in [0, 1] (uint8 is scaled by 1/255; a float video is taken as it is). target "raw": the pixels;
    "normalized": per patch and per channel `(x - mean) / (sqrt(unbiased variance) + 1e-6)`. Computed in
    float32 (float64 if the video or `dtype` is). Arguments and errors as in `gather_patches`.

    Source: `train_one_epoch` of the official `engine_for_pretraining.py`. Departure: it takes statistics of
    ImageNet-normalised pixels it has un-normalised again; here the pixels never were normalised.
    """
    b, _, t, h, w = check_video(video, layout, patch_size, tubelet_size)
    check_indices(indices, b, (t // tubelet_size) * (h // patch_size) * (w // patch_size), video)
    require(target in TARGETS, f"target one of {', '.join(TARGETS)}", repr(target))
    require(dtype in FLOAT_DTYPES, "dtype float32, bfloat16, float16 or float64", dtype)
    return _targets(
        video,
        indices,
        patch_size=patch_size,
        tubelet_size=tubelet_size,
        target=target,
        layout=layout,
        dtype=dtype,
    )


def _targets(
    video: Tensor,
    indices: Tensor,
    *,
    patch_size: int,
    tubelet_size: int,
    target: str,
    layout: str,
    dtype: torch.dtype,
) -> Tensor:
    with torch.no_grad():
        pixels = select_pixels(video, indices, patch_size, tubelet_size, layout)
        pixels = scale_pixels(pixels, None, None, dtype)  # [B, K, P/C, C]
        if target == "normalized":
            pixels = normalise_target(pixels)
        return pixels.flatten(2).to(dtype)


def masked_patch_loss(
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
    """Return the mean reconstruction loss over the named patches: a float32 scalar (float64 if pred is).

    pred: `[B, K, P]` float, the prediction for the tokens `indices` int64 `[B, K]` of `video` (see
    `gather_patches` for layouts, ranges and orders). weights: float or bool `[B, K]`, >= 0, with a positive
    sum: `sum(w * l) / (sum(w) * P)`; None means 1 everywhere. loss: "mse", "l1" or "smooth_l1" (corner at 1).
    target: see `patch_targets`. Targets and the sum are float32 whatever pred's dtype. Only pred receives a
    gradient (in its own dtype).

    Raises KernelInputError (a ValueError) as `gather_patches` does, and for pred or weights of another shape.

    Source: the official V1 loss (`nn.MSELoss` over all masked pixels); with weights, V2's
    `(loss * cal_loss_mask).sum() / cal_loss_mask.sum()` of its `engine_for_pretraining.py`.
    """
    b, c, t, h, w = check_video(video, layout, patch_size, tubelet_size)
    check_indices(indices, b, (t // tubelet_size) * (h // patch_size) * (w // patch_size), video)
    k, p = indices.shape[1], tubelet_size * patch_size**2 * c
    require(
        isinstance(pred, Tensor) and pred.shape == (b, k, p) and pred.dtype in FLOAT_DTYPES,
        f"pred float [{b}, {k}, {p}]",
        describe(pred),
    )
    require(pred.device == video.device, f"pred on {video.device}", describe(pred))
    require(loss in LOSSES, f"loss one of {', '.join(LOSSES)}", repr(loss))
    require(target in TARGETS, f"target one of {', '.join(TARGETS)}", repr(target))
    if weights is not None:
        require(
            isinstance(weights, Tensor) and weights.shape == (b, k) and not weights.is_complex(),
            f"weights [{b}, {k}]",
            describe(weights),
        )
        require(weights.device == video.device, f"weights on {video.device}", describe(weights))
    unsupported = None
    if torch.float64 in (pred.dtype, video.dtype):
        unsupported = "float64 is computed by the reference only"
    elif p > MAX_PATCH_VALUES:
        unsupported = f"a patch of {p} values is above {MAX_PATCH_VALUES}"
    words = [video_words(video, layout), loss, target] + ([] if weights is None else ["weights"])
    way = choose(
        "masked_patch_loss",
        pred,
        unsupported=unsupported,
        dims=site_dims(video, indices, patch_size, tubelet_size, layout),
        layout="+".join(words),
        dtype=pred.dtype,
    )
    if way.startswith("triton"):
        form = (patch_size, tubelet_size, loss, target, layout, way[7:])
        # In one pass the gradient is written before the factor from above (a loss scaler's) is known: in fp16
        # most of it would be 0.
        in_one = pred.requires_grad and torch.is_grad_enabled() and recorder() is None
        in_one = in_one and pred.dtype != torch.float16
        if in_one and not torch.compiler.is_compiling() and runs_kernel(pred) and runs_kernel(video):
            return library.OnePassLoss.apply(pred, video, indices, weights, form)
        return torch.ops.vmae.patch_loss(pred, video, indices, weights, *form)
    if loss == "mse" and pred.device.type == "cpu" and not torch.compiler.is_compiling():
        pixels = select_pixels(video.detach(), indices, patch_size, tubelet_size, layout)
        return SquaredErrorLoss.apply(pred, pixels, weights, target == "normalized")
    work = compute_dtype(pred.dtype)
    labels = _targets(
        video,
        indices,
        patch_size=patch_size,
        tubelet_size=tubelet_size,
        target=target,
        layout=layout,
        dtype=work,
    )
    each = elementwise_loss(pred.to(work), labels, loss)
    if weights is None:
        return each.mean()
    weight = weights.detach().to(work)
    return (each.sum(dim=2) * weight).sum() / (weight.sum() * p)
