"""Reconstructions as one picture: a row for each form, a column for each frame."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from vmae.core.measure.reconstruct import Reconstruction

if TYPE_CHECKING:
    from PIL import ImageFont

PANELS = ("original", "masked_input", "as_trained", "model_only")
_INK = (32, 33, 36)
_PAPER = (255, 255, 255)


def contact_sheet(
    reconstruction: Reconstruction,
    clip: int = 0,
    *,
    frames: int = 6,
    height: int = 112,
    panels: tuple[str, ...] = PANELS,
) -> np.ndarray:
    """One clip's panels under one another, frames spread evenly over the clip side by side.

    Args:
        reconstruction: from `reconstruct`.
        clip: which clip of the batch.
        frames: how many columns (at most the clip's frames).
        height: of each frame in the picture, pixels.
        panels: which forms, in order; each row is titled with what the form uses.

    Returns:
        uint8 `[rows, columns, 3]`.
    """
    from PIL import Image, ImageDraw

    total = reconstruction.original.shape[1]
    columns = np.unique(np.linspace(0, total - 1, min(frames, total)).round().astype(int))
    h, w = reconstruction.original.shape[2:4]
    width = round(w * height / h)
    gap, title = 4, max(16, height // 6)
    labels = reconstruction.labels
    # A raw-pixel model has one form only: the same row twice would suggest two.
    if reconstruction.target == "raw":
        panels = tuple(p for p in panels if p != "model_only")
    size = (len(columns) * (width + gap) + gap, len(panels) * (height + title + gap) + gap)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = _font(title * 2 // 3)
    for row, panel in enumerate(panels):
        top = gap + row * (height + title + gap)
        draw.text((gap, top), labels[panel], fill=_INK, font=font)
        pixels = getattr(reconstruction, panel)[clip]
        for column, frame in enumerate(columns):
            picture = Image.fromarray(_rgb(pixels[frame]))
            picture = picture.resize(
                (width, height), Image.Resampling.NEAREST if h < height else Image.Resampling.BOX
            )
            sheet.paste(picture, (gap + column * (width + gap), top + title))
    return np.asarray(sheet)


def _rgb(frame: np.ndarray) -> np.ndarray:
    """`[H, W, C]` of any channel count as three channels."""
    return frame[..., :3] if frame.shape[-1] >= 3 else np.repeat(frame[..., :1], 3, axis=-1)


@lru_cache(maxsize=4)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size)
