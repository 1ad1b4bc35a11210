"""Clips that show whole frames, of any aspect ratio, as detectors are tested."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from vmae.core.errors import VideoError
from vmae.core.video import augment
from vmae.core.video.clips import ClipDataset, Cut, failure
from vmae.core.video.config import DataConfig
from vmae.core.video.samples import Sample


class WholeFrames(ClipDataset):
    """The clip of each sample with nothing cropped off.

    The short side becomes `config.short_side` pixels (`config.size`'s where that is 0), and both sides whole
    multiples of `multiple`, the patch size: the aspect ratio changes by up to half a patch (the official
    convolution drops what is left of the last patch). A batch's `clip` is a list of uint8 `[T, H, W, 3]`.
    """

    def __init__(self, samples: Sequence[Sample], config: DataConfig, *, multiple: int) -> None:
        side = config.short_side or min(config.size)
        super().__init__(samples, replace(config, size=(side, side), short_side=side), "val")
        self.multiple = multiple

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the clip of frames of this size."""
        scale = self.config.size[0] / min(height, width) / self.multiple
        return tuple(max(1, round(side * scale)) * self.multiple for side in (height, width))  # type: ignore[return-value]

    def load_batch(self, keys: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """As `ClipDataset.load_batch`, but `clip` is a list: clips have sizes of their own."""
        clips, good, cuts, failed = [], [], [], []
        for _, index in keys:
            try:
                frames = self.frames_of(index)
            except VideoError as e:
                failed.append(failure(e, index, self.samples[index]))
                continue
            height, width = frames.shape[1:3]
            region = augment.Box(0, 0, height, width)
            out = np.empty((len(frames), *self.size_of(height, width), 3), np.uint8)
            augment.crop_resize(frames, region, out)
            clips.append(torch.from_numpy(out))
            cuts.append(Cut(region, height, width, False))
            good.append(index)
        return {
            "clip": clips,
            "label": torch.tensor([self.samples[i].label for i in good], dtype=torch.int64),
            "index": torch.tensor(good, dtype=torch.int64),
            "view": torch.zeros(len(good), dtype=torch.int64),
            "path": [self.samples[i].path for i in good],
            "cut": cuts,
            "failed": failed,
        }
