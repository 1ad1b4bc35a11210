"""Watching over pre-training: has the model collapsed, does the loss move at all?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vmae.core.model.masking import TokenMask
from vmae.core.model.videomae import VideoMAE

MIN_PREDICTION_VARIANCE = 1e-5
"""Of the target's variance; far below what even a barely trained decoder shows."""
FLAT_LOSS = 0.97
"""Share of the target's variance: a model that predicts the mean everywhere has 1."""
FLAT_CHANGE = 0.005
"""Relative improvement over the window below which the loss is called flat."""


@torch.no_grad()
def prediction_variance(model: VideoMAE, video: Tensor, mask: TokenMask) -> float:
    """How much predictions differ between tokens: variance over clips and masked tokens, mean over pixels."""
    pred = model.predict(video, mask).float()  # [B, N_mask, P]
    return float(pred.flatten(0, 1).var(0).mean())


def collapse_warning(variance: float, epoch: int) -> str | None:
    """A line when the predictions of all tokens are practically the same, else None."""
    if variance >= MIN_PREDICTION_VARIANCE:
        return None
    return (
        f"epoch {epoch}: collapse: predictions are the same for every token (variance {variance:.1e}, "
        f"expected above {MIN_PREDICTION_VARIANCE:g}); lower the learning rate or check the data"
    )


def flat_loss_warning(losses: Sequence[float], epochs: int) -> str | None:
    """A line when a normalised-target MSE has stood at the target's variance for a fifth of the run.

    `losses` are the epochs' mean losses so far, `epochs` the run's length. Predicting zero everywhere gives
    a loss of 1 (each patch has unit variance), so a loss that stays there means nothing is learnt.
    """
    window = max(3, epochs // 5)
    if len(losses) <= window:
        return None
    before, now = losses[-1 - window], losses[-1]
    if now < FLAT_LOSS or before - now > FLAT_CHANGE * before:
        return None
    return (
        f"epoch {len(losses)}: the loss is flat at the target's variance ({now:.3f}, {before:.3f} "
        f"{window} epochs ago; 1 is what predicting the mean gives): nothing is learnt yet; "
        "try a higher learning rate, a lower mask ratio, or larger structures per patch"
    )
