"""Mixup and CutMix of clips, with the soft targets that belong to them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vmae.core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """How pairs of clips are mixed. Defaults are VideoMAE's fine-tuning scripts."""

    mixup: float = 0.8
    """Alpha of Beta(alpha, alpha), mixup's share of the first clip; 0: no mixup."""
    cutmix: float = 1.0
    """Alpha of CutMix's; 0: no CutMix."""
    prob: float = 1.0
    """Share of batches that are mixed at all."""
    switch_prob: float = 0.5
    """Share of mixed batches that get CutMix, where both are on."""

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            if not getattr(self, name) >= 0:
                raise InputError(f"expected mix.{name} >= 0; got {getattr(self, name)}")
        for name in ("prob", "switch_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"expected mix.{name} in [0, 1]; got {getattr(self, name)}")


def soft_targets(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """float32 `[B, C]`: `smoothing / C` everywhere, `1 - smoothing` more at the label."""
    off = smoothing / num_classes
    targets = torch.full((len(labels), num_classes), off, device=labels.device)
    return targets.scatter_(1, labels[:, None], 1 - smoothing + off)


def mix_clips(
    video: Tensor, targets: Tensor, config: MixConfig, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Mix each clip with its mirror place in the batch (first with last, ...), one draw for the batch.

    `video` `[B, C, T, H, W]` uint8 or float in [0, 1]; `targets` float `[B, C]`. Mixup returns float in
    [0, 1]; CutMix keeps the type and swaps one box, the same in all frames, and its share is the box's true
    area after clipping at the border (timm's `Mixup`, mode `batch`, as the official scripts use it).
    """
    if (config.mixup == 0 and config.cutmix == 0) or len(video) < 2 or rng.random() >= config.prob:
        return video, targets
    cut = config.cutmix > 0 and (config.mixup == 0 or rng.random() < config.switch_prob)
    alpha = config.cutmix if cut else config.mixup
    share = float(rng.beta(alpha, alpha))
    other = video.flip(0)
    if cut:
        height, width = video.shape[-2:]
        ratio = (1 - share) ** 0.5
        cut_h, cut_w = int(height * ratio), int(width * ratio)
        y, x = int(rng.integers(height)), int(rng.integers(width))
        top, bottom = max(0, y - cut_h // 2), min(height, y + cut_h // 2)
        left, right = max(0, x - cut_w // 2), min(width, x + cut_w // 2)
        mixed = video.clone()
        mixed[..., top:bottom, left:right] = other[..., top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (height * width)
    else:
        if video.dtype == torch.uint8:
            video, other = video.float() / 255, other.float() / 255
        mixed = torch.lerp(other, video, share)
    return mixed, targets * share + targets.flip(0) * (1 - share)
