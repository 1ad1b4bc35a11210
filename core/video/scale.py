"""Scaling of a frame with any number of channels."""

from __future__ import annotations

import numpy as np

_AT_ONCE = 4  # channels that OpenCV's area method takes


def scale_into(frame: np.ndarray, out: np.ndarray, method: int) -> None:
    """Scale uint8 `[H, W, C]` to the size of `out`, uint8 `[h, w, C]`, by one of OpenCV's methods."""
    import cv2

    height, width, channels = out.shape
    if channels <= _AT_ONCE:
        cv2.resize(frame, (width, height), dst=out, interpolation=method)
        return
    for first in range(0, channels, _AT_ONCE):
        part = np.ascontiguousarray(frame[..., first : first + _AT_ONCE])
        scaled = cv2.resize(part, (width, height), interpolation=method)
        out[..., first : first + _AT_ONCE] = scaled.reshape(height, width, -1)
