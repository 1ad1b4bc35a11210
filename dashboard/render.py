"""Sprite sheets: all frames of a clip as one picture for the browser."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

HIDDEN_GREY = 128
_LOSSLESS_PIXELS = 500_000


def sheet_columns(frames: int, width: int) -> int:
    """Frames side by side in a sprite sheet, so that it stays within WebP's 16383 pixels."""
    return max(1, min(frames, 16000 // width))


def sprite_sheet(frames: np.ndarray, quality: int | None = None) -> str:
    """uint8 [T, H, W, 3] as one WebP data URL, frames left to right, then down.

    Without a `quality`, small sheets are lossless and large ones lossy at 92: what is measured by eye must
    not be the codec's.
    """
    t, h, w, _ = frames.shape
    columns = sheet_columns(t, w)
    rows = -(-t // columns)
    sheet = np.zeros((rows, columns, h, w, 3), np.uint8)
    sheet.reshape(rows * columns, h, w, 3)[:t] = frames
    image = Image.fromarray(sheet.transpose(0, 2, 1, 3, 4).reshape(rows * h, columns * w, 3))
    buffer = io.BytesIO()
    if quality is None and t * h * w <= _LOSSLESS_PIXELS:
        image.save(buffer, "WEBP", lossless=True, quality=0, method=0)
    else:
        image.save(buffer, "WEBP", quality=quality or 92, method=1)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
