"""What frozen tokens have in common: their principal components as colours, and two encoders compared."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vmae.core.errors import InputError
from vmae.core.model.encoder import VideoModel, all_indices

_TAILS = 0.01


@torch.no_grad()
def token_colours(model: VideoModel, video: Tensor) -> np.ndarray:
    """The first three principal components of a clip's tokens as red, green and blue: uint8 [B, T, H, W, 3].

    `video` [B, C, T, H, W] as the model takes it; every token is visible. The components are those of each
    clip's own N tokens of the encoder's output [N, D], centred over the clip, as in DINOv2 (arXiv 2304.07193,
    figure 1, without its threshold of a foreground); each is stretched between its 1st and 99th percentile.
    A component's sign is the one that makes its largest loading positive: equal tokens, equal colours. A
    token is a flat box of its tubelet's frames and its patch. Directions beyond the rank are grey.
    """
    was_training = model.training
    model.eval()
    try:
        tokens = model.encoder(video, all_indices(video, model.grid)).double()  # [B, N, D]
    finally:
        model.train(was_training)
    centred = tokens - tokens.mean(1, keepdim=True)
    _, size, directions = torch.linalg.svd(centred, full_matrices=False)
    shares = torch.full((*tokens.shape[:2], 3), 0.5, dtype=tokens.dtype, device=tokens.device)
    for b in range(len(tokens)):
        rank = int((size[b] > 1e-9 * size[b, :1].clamp_min(1e-12)).sum())
        for k in range(min(3, rank)):
            direction = directions[b, k]
            along = centred[b] @ (direction * direction[direction.abs().argmax()].sign())
            low, high = along.quantile(_TAILS), along.quantile(1 - _TAILS)
            shares[b, :, k] = ((along - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    grid = model.grid
    colours = (shares * 255).round().byte().unflatten(1, (grid.t, grid.h, grid.w))
    colours = colours.repeat_interleave(grid.tubelet_size, 1)
    colours = colours.repeat_interleave(grid.patch_size, 2).repeat_interleave(grid.patch_size, 3)
    return colours.cpu().numpy()


def linear_cka(x: Tensor, y: Tensor) -> float:
    """How alike two sets of features of the same M clips are, whatever their rotation and scale: at most 1.

    Linear centred kernel alignment (Kornblith et al., arXiv 1905.00414, equation 4) of `x` [M, D] and `y`
    [M, E] in float64, with the unbiased estimator of each HSIC (Song et al., JMLR 2012, equation 5; used so
    by Nguyen et al., arXiv 2010.15327): the plain form is near 1 for unrelated features too where M is not
    far above D. Unrelated features give about 0, a little below it as often as above.

    Raises InputError for other numbers of clips, fewer than 4, and features that do not vary.
    """
    if len(x) != len(y) or len(x) < 4:
        raise InputError(f"expected features of the same clips, at least 4, got {len(x)} and {len(y)}")
    a, b = (v.double() - v.double().mean(0) for v in (x, y))
    if not (bool(a.any()) and bool(b.any())):
        raise InputError("expected features that vary over the clips, got equal ones")
    k, m = ((v @ v.T).fill_diagonal_(0) for v in (a, b))
    return float(_hsic(k, m) / (_hsic(k, k) * _hsic(m, m)).sqrt())


def _hsic(k: Tensor, m: Tensor) -> Tensor:
    """The unbiased estimator, up to a factor, of kernels [M, M] with an empty diagonal."""
    n = len(k)
    rows, columns = k.sum(1), m.sum(1)
    return (k * m).sum() + rows.sum() * columns.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (rows @ columns)
