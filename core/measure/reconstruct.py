"""From predictions back to pixels, in two honest forms, and how near they are to the truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vmae.core.errors import InputError
from vmae.core.model.encoder import check_finite, model_input
from vmae.core.model.grid import TokenGrid, patchify, unpatchify
from vmae.core.model.masking import TokenMask
from vmae.core.model.videomae import VideoMAE
from vmae.kernels import patch_targets

FORMS = ("as_trained", "model_only")
_EPS = 1e-6  # of the target's normalisation
_GREY = 0.5


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Pictures of a batch, uint8 [B, T, H, W, C] each, visible patches always the clip's own."""

    original: np.ndarray
    """The clip."""
    masked_input: np.ndarray
    """What the encoder sees; masked patches are grey."""
    as_trained: np.ndarray
    """Predictions coloured by the ground truth's mean and variance of each patch: the usual picture, which
    looks better than the model is. For raw-pixel models the predictions themselves."""
    model_only: np.ndarray
    """Nothing of the hidden pixels is used: raw predictions directly; normalised ones coloured by means and
    variances estimated from visible neighbours."""
    pixel_mask: np.ndarray
    """bool [B, T, H, W], True where a pixel is hidden from the encoder."""
    token_mask: np.ndarray
    """bool [B, t, h, w], the same by token."""
    token_error: np.ndarray
    """float32 [B, t, h, w]: mean squared error of masked tokens in the target's units; NaN where visible."""
    target: str
    """The model's target, "normalized" or "raw"."""

    @property
    def labels(self) -> dict[str, str]:
        """One line under each picture, saying what it uses."""
        if self.target == "raw":
            trained = alone = "model only: predicted pixels"
        else:
            trained = "as trained: coloured by the ground truth's patch mean and variance"
            alone = "model only: mean and variance estimated from visible neighbours"
        return {
            "original": "original",
            "masked_input": "what the encoder sees",
            "as_trained": trained,
            "model_only": alone,
        }


@dataclass(frozen=True, kw_only=True)
class ReconstructionMetrics:
    """Errors over the masked pixels only, pixels scaled to [0, 1]. Per clip [B] and per frame [B, T].

    A frame without masked pixels is NaN. PSNR in dB (inf where equal). SSIM (7x7 windows, scikit-image) is
    the mean of its map over masked pixels; windows at a patch's border also see visible, pasted pixels.
    """

    mse: np.ndarray
    psnr: np.ndarray
    ssim: np.ndarray
    frame_mse: np.ndarray
    frame_psnr: np.ndarray
    frame_ssim: np.ndarray

    def means(self) -> dict[str, float]:
        """Means over the batch's clips: mse, psnr, ssim."""
        return {k: float(np.mean(getattr(self, k))) for k in ("mse", "psnr", "ssim")}


@torch.no_grad()
def reconstruct(model: VideoMAE, video: Tensor, mask: TokenMask) -> Reconstruction:
    """Predict the masked patches of `video` [B, C, T, H, W] (uint8, or floating point in [0, 1]).

    The model is put in evaluation mode meanwhile. Raises InputError for a video or mask of another size, for
    NaN or infinite pixels, and for a model with a target of one's own.
    """
    if not model.config.predicts_pixels:
        raise InputError(f"expected a model that predicts pixels to show them; got {model.config.target}")
    check_finite(video)
    was_training = model.training
    model.eval()
    try:
        pred = model.predict(video, mask).float()  # [B, N_mask, P]
    finally:
        model.train(was_training)
    grid = model.grid
    video = model_input(video, model.config)
    pixels = video.float() / 255 if video.dtype == torch.uint8 else video.float()
    patches = patchify(pixels, grid)  # [B, N, P]
    true = _take(patches, mask.masked)
    if model.config.target == "raw":
        trained = alone = pred
    else:
        mean, std = patch_statistics(true, grid.channels)
        trained = _colour(pred, mean, std)
        seen = patch_statistics(_take(patches, mask.visible), grid.channels)
        alone = _colour(pred, *estimate_statistics(*seen, mask, grid))
    token_mask = mask.to_bool()
    error = torch.full(token_mask.shape, float("nan"), device=pred.device)
    wanted = patch_targets(
        video,
        mask.masked,
        patch_size=grid.patch_size,
        tubelet_size=grid.tubelet_size,
        target=model.config.target,
    )
    error.scatter_(1, mask.masked, (pred - wanted).square().mean(-1))

    def picture(values: Tensor) -> np.ndarray:
        index = mask.masked[..., None].expand(-1, -1, grid.patch_dim)
        return _to_uint8(unpatchify(patches.scatter(1, index, values), grid))

    b = video.shape[0]
    by_token = token_mask.view(b, grid.t, grid.h, grid.w)
    by_pixel = by_token.repeat_interleave(grid.tubelet_size, 1)
    by_pixel = by_pixel.repeat_interleave(grid.patch_size, 2).repeat_interleave(grid.patch_size, 3)
    return Reconstruction(
        original=_to_uint8(pixels),
        masked_input=picture(torch.full_like(true, _GREY)),
        as_trained=picture(trained),
        model_only=picture(alone),
        pixel_mask=by_pixel.cpu().numpy(),
        token_mask=by_token.cpu().numpy(),
        token_error=error.view(b, grid.t, grid.h, grid.w).cpu().numpy(),
        target=model.config.target,
    )


def patch_statistics(patches: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Mean and (unbiased) standard deviation per patch and channel of [B, K, P]: two of [B, K, 1, C]."""
    values = patches.unflatten(-1, (-1, channels))  # [B, K, P/C, C]
    if values.shape[2] == 1:
        return values, torch.zeros_like(values)
    var, mean = torch.var_mean(values, dim=2, correction=1, keepdim=True)
    return mean, var.sqrt()


def estimate_statistics(mean: Tensor, std: Tensor, mask: TokenMask, grid: TokenGrid) -> tuple[Tensor, Tensor]:
    """Statistics of masked patches, two of [B, N_mask, 1, C], from those of visible ones [B, N_vis, 1, C].

    Inverse-distance weighting with power 4 over all visible tokens, distance in tokens along t, h and w: near
    neighbours decide, and a place without near ones gets a blend. Our own design; the labels say so.
    """
    seen = _coordinates(mask.visible, grid)  # [B, N_vis, 3]
    hidden = _coordinates(mask.masked, grid)  # [B, N_mask, 3]
    weight = torch.cdist(hidden, seen).pow(-4)  # [B, N_mask, N_vis]
    weight = weight / weight.sum(-1, keepdim=True)
    both = torch.cat((mean, std), dim=2).flatten(2)  # [B, N_vis, 2C]
    new_mean, new_std = (weight @ both).unflatten(2, (2, -1)).split(1, dim=2)
    return new_mean, new_std


def reconstruction_metrics(reconstruction: Reconstruction, form: str = "as_trained") -> ReconstructionMetrics:
    """MSE, PSNR and SSIM of one form (one of FORMS) against the original, over masked pixels only.

    Computed on the 8-bit pictures by scikit-image. Raises InputError for an unknown form.
    """
    from skimage.metrics import mean_squared_error, structural_similarity

    if form not in FORMS:
        raise InputError(f"expected a form among {', '.join(FORMS)}; got {form!r}")
    true = reconstruction.original.astype(np.float64) / 255
    made = getattr(reconstruction, form).astype(np.float64) / 255
    mask = reconstruction.pixel_mask
    b, t, h, w, _ = true.shape
    window = min(7, h if h % 2 else h - 1, w if w % 2 else w - 1)
    frame_mse = np.full((b, t), np.nan)
    frame_ssim = np.full((b, t), np.nan)
    clip_mse, clip_ssim = np.empty(b), np.empty(b)
    for i in range(b):
        maps = np.zeros((t, h, w))
        for j in range(t):
            if not mask[i, j].any():
                continue
            _, full = structural_similarity(
                true[i, j], made[i, j], win_size=window, data_range=1.0, channel_axis=-1, full=True
            )
            maps[j] = full.mean(-1)
            frame_ssim[i, j] = maps[j][mask[i, j]].mean()
            frame_mse[i, j] = mean_squared_error(true[i, j][mask[i, j]], made[i, j][mask[i, j]])
        clip_ssim[i] = maps[mask[i]].mean()
        clip_mse[i] = mean_squared_error(true[i][mask[i]], made[i][mask[i]])
    return ReconstructionMetrics(
        mse=clip_mse,
        psnr=_psnr(clip_mse),
        ssim=clip_ssim,
        frame_mse=frame_mse,
        frame_psnr=_psnr(frame_mse),
        frame_ssim=frame_ssim,
    )


def to_rgb(frames: np.ndarray) -> np.ndarray:
    """uint8 [..., C] as [..., 3] for showing: 1 channel as grey, 2 with an empty third, else the first 3."""
    c = frames.shape[-1]
    if c == 1:
        return np.repeat(frames, 3, axis=-1)
    if c == 2:
        return np.concatenate((frames, np.zeros_like(frames[..., :1])), axis=-1)
    return frames[..., :3]


def _psnr(mse: np.ndarray) -> np.ndarray:
    # scikit-image's peak_signal_noise_ratio with data_range 1; here on the errors it has measured already.
    with np.errstate(divide="ignore"):
        return -10 * np.log10(mse)


def _take(patches: Tensor, indices: Tensor) -> Tensor:
    return patches.gather(1, indices[..., None].expand(-1, -1, patches.shape[2]))


def _colour(patches: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Undo the target's normalisation: [B, K, P] with statistics [B, K, 1, C]."""
    channels = mean.shape[-1]
    return (patches.unflatten(-1, (-1, channels)) * (std + _EPS) + mean).flatten(2)


def _coordinates(indices: Tensor, grid: TokenGrid) -> Tensor:
    """The (t, h, w) place of token indices [B, K]: float32 [B, K, 3]."""
    frame, rest = indices // grid.tokens_per_frame, indices % grid.tokens_per_frame
    return torch.stack((frame, rest // grid.w, rest % grid.w), dim=-1).float()


def _to_uint8(video: Tensor) -> np.ndarray:
    """[B, C, T, H, W] in [0, 1] to uint8 [B, T, H, W, C]."""
    out = (video.clamp(0, 1) * 255).round().to(torch.uint8)
    return out.permute(0, 2, 3, 4, 1).contiguous().cpu().numpy()
