"""A clip at a model's size: scaled to cover it, the centre cut out, in the channels it takes."""

from __future__ import annotations

import numpy as np

from vmae.core.errors import InputError


def fit(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale uint8 `[T, H, W, C]` to cover `height` x `width` and cut the centre out."""
    import cv2

    h, w = frames.shape[1:3]
    scale = max(height / h, width / w)
    if scale != 1:
        size = (max(width, round(w * scale)), max(height, round(h * scale)))
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        scaled = [cv2.resize(f, size, interpolation=method) for f in frames]
        # OpenCV drops a single channel.
        frames = np.stack([f if f.ndim == 3 else f[..., None] for f in scaled])
    top, left = (frames.shape[1] - height) // 2, (frames.shape[2] - width) // 2
    return np.ascontiguousarray(frames[:, top : top + height, left : left + width])


def to_channels(frames: np.ndarray, channels: int) -> np.ndarray:
    """uint8 `[T, H, W, 3]` as the model's channels: 3, or 1 (grey). Raises InputError for another number."""
    if channels == 3:
        return frames
    if channels == 1:
        grey = np.asarray(frames, np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
        return grey.round().astype(np.uint8)[..., None]
    raise InputError(f"expected a model of 1 or 3 channels for a colour video, got one of {channels}")
