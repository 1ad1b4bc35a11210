"""Action detection on the VideoMAE encoder: what each person in a clip's key frame does.

As in MCG-NJU/VideoMAE-Action-Detection (`modeling_finetune.py`): all tokens through the encoder and its final
norm, their mean over time, RoIAlign of each person's box, the maximum of its bins, one linear layer; a
person does several things at once, so every class has its own sigmoid.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from vmae.core.errors import InputError
from vmae.core.model.encoder import Encoder, all_indices
from vmae.core.model.grid import TokenGrid
from vmae.core.model.head import HeadConfig, HeadedModel
from vmae.core.model.layers import run_blocks
from vmae.core.model.roi import roi_align


@dataclass(frozen=True, kw_only=True)
class VideoDetectorConfig(HeadConfig):
    """The encoder, and how a box is read out of its tokens."""

    roi_size: int = 7
    """Bins of a box, across and down; their maximum is taken."""
    roi_points: int = 0
    """Sampling points of a bin along each axis; 0: one a token, rounded up."""
    roi_aligned: bool = True
    """Whether a token's value is at its centre. The published models have False (RoIAlign's first form)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.roi_size < 1:
            raise InputError(f"expected roi_size of at least 1, got {self.roi_size!r}")
        if self.roi_points < 0:
            raise InputError(f"expected roi_points of 0 or more, got {self.roi_points!r}")


class Detector(HeadedModel):
    """An encoder whose clips may have any height and width that are whole patches, and an action head.

    The fixed positions of the configuration's grid are interpolated bicubically to the clip's, time slot by
    time slot, as published.
    """

    describes_clips = False
    config: VideoDetectorConfig

    def __init__(self, config: VideoDetectorConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.encoder = Encoder(config)
        self.draw_head()

    def grid_of(self, video: Tensor) -> TokenGrid:
        """The token grid of a clip [B, C, T, H, W]. Raises InputError where it is not this model's kind."""
        if video.dim() != 5:
            raise InputError(f"expected a video [B, C, T, H, W], got {list(video.shape)}")
        grid = dataclasses.replace(self.grid, height=video.shape[3], width=video.shape[4])
        grid.check_video(video)
        return grid


class VideoDetector(Detector):
    """Clips and boxes to class scores."""

    title = "a detector"
    config_class = VideoDetectorConfig

    def forward(self, video: Tensor, boxes: Tensor, clips: Tensor) -> Tensor:
        """Class scores [K, num_classes] before the sigmoid.

        `video` [B, C, T, H, W] uint8 or floating point in [0, 1]; `boxes` [K, 4] are `x1, y1, x2, y2` in its
        pixels, `clips` int64 [K] the clip of each. Raises InputError on other channels, frames or sizes.
        """
        return self.head(self.dropout(self.forward_features(video, boxes, clips)))

    def forward_features(self, video: Tensor, boxes: Tensor, clips: Tensor) -> Tensor:
        """What the head reads, [K, D]."""
        c = self.config
        bins = roi_align(
            self.forward_map(video),
            boxes,
            clips,
            output_size=c.roi_size,
            spatial_scale=1 / c.patch_size,
            sampling_ratio=c.roi_points,
            aligned=c.roi_aligned,
        )  # [K, D, bins, bins]
        return bins.amax((2, 3))

    def forward_map(self, video: Tensor) -> Tensor:
        """The tokens' mean over time, [B, D, h, w], of a clip of any size in whole patches."""
        grid = self.grid_of(video)
        x = self.encoder.patch_embed(video, all_indices(video, grid)) + interpolate_positions(
            self.encoder.pos_embed, self.grid, grid
        )
        x = run_blocks(self.encoder.blocks, x, recompute=self.config.checkpoint_activations)
        x = self.encoder.norm(x).unflatten(1, (grid.t, grid.h, grid.w)).mean(1)  # [B, h, w, D]
        return x.permute(0, 3, 1, 2)


def interpolate_positions(table: Tensor, trained: TokenGrid, grid: TokenGrid) -> Tensor:
    """Positions [N, D] of `trained` for a grid of other height and width, [N', D].

    Bicubic in space, each time slot by itself (`interpolate_pos_embed_online` of the official repository).
    """
    if (trained.h, trained.w) == (grid.h, grid.w):
        return table
    slots = table.unflatten(0, (trained.t, trained.h, trained.w)).permute(0, 3, 1, 2)  # [t, D, h, w]
    resized = F.interpolate(slots, size=(grid.h, grid.w), mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).flatten(0, 2)


def detection_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of scores [K, C] against `targets` [K, C] in [0, 1], in float32.

    The mean over boxes and classes times the number of boxes, as published (a batch of many people counts
    more); without boxes 0, with a gradient of 0.
    """
    if not len(logits):
        return logits.float().sum()
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float()) * len(logits)
