"""Boxes that follow their frames: through crops, resizes and flips, jittered for training, widened for tests.

A box is `x1, y1, x2, y2` in pixels on a continuous axis: pixel `i` spans `[i, i + 1)`, so a box around the
whole frame is `0, 0, width, height`, and a mirrored `x` is `width - x`. (AlphAction's `BoxList`, which
MCG-NJU/VideoMAE-Action-Detection uses, counts inclusive pixels, one off at the right and lower edge.)
"""

from __future__ import annotations

import numpy as np

from vmae.core.errors import InputError
from vmae.core.video.augment import Box

TRAIN_JITTER = (0.2, 0.1, 0.1, 0.05)
TEST_EXTENSION = (0.1, 0.05)


def to_pixels(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boxes [K, 4] in shares of the frame (as AVA lists them) in pixels, float64."""
    return np.asarray(boxes, np.float64).reshape(-1, 4) * (width, height, width, height)


def to_shares(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """The inverse of `to_pixels`."""
    return np.asarray(boxes, np.float64).reshape(-1, 4) / (width, height, width, height)


def crop_boxes(boxes: np.ndarray, region: Box, size: tuple[int, int], *, flip: bool = False) -> np.ndarray:
    """Where boxes [K, 4] of a frame lie after `vmae.core.video.augment.crop_resize`, clipped to the result.

    `region` is cut out, resized to `size` (height, width) and, with `flip`, mirrored. Float64 [K, 4]; a box
    that the crop misses has no area left.
    """
    height, width = size
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4) - (region.left, region.top, region.left, region.top)
    scale_x, scale_y = width / region.width, height / region.height
    boxes = boxes * (scale_x, scale_y, scale_x, scale_y)
    if flip:
        boxes = np.stack((width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]), 1)
    return clip_boxes(boxes, height, width)


def clip_boxes(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boxes [K, 4] cut at the edges of the frame."""
    clipped: np.ndarray = np.clip(boxes, 0, (width, height, width, height))
    return clipped


def has_area(boxes: np.ndarray) -> np.ndarray:
    """Whether each box [K, 4] is at least a thousandth of a pixel wide and high, bool [K]."""
    return np.all(boxes[:, 2:] - boxes[:, :2] >= 1e-3, axis=1)


def jitter_boxes(
    boxes: np.ndarray,
    height: int,
    width: int,
    rng: np.random.Generator,
    amounts: tuple[float, float, float, float] = TRAIN_JITTER,
) -> np.ndarray:
    """Boxes [K, 4] whose edges are moved at random, within the frame and at least a pixel wide and high.

    `amounts` are the largest shares of the box's width that its left and right edges move outwards and
    inwards, then of its height for the other two (AlphAction's `random_aug`; the published numbers).
    """
    x_out, x_in, y_out, y_in = amounts
    k = len(boxes)
    low = rng.uniform((-x_out, -y_out), (x_in, y_in), (k, 2))
    high = rng.uniform((-x_in, -y_in), (x_out, y_out), (k, 2))
    sides = boxes[:, 2:] - boxes[:, :2]
    limit = np.array((width, height), np.float64)
    first = np.clip(boxes[:, :2] + sides * low, 0, limit - 1)
    return np.concatenate((first, np.clip(boxes[:, 2:] + sides * high, first + 1, limit)), 1)


def extend_boxes(
    boxes: np.ndarray, height: int, width: int, amounts: tuple[float, float] = TEST_EXTENSION
) -> np.ndarray:
    """Boxes [K, 4] wider by `amounts[0]` and higher by `amounts[1]` of themselves, clipped to the frame."""
    pad = (boxes[:, 2:] - boxes[:, :2]) * np.asarray(amounts) / 2
    return clip_boxes(np.concatenate((boxes[:, :2] - pad, boxes[:, 2:] + pad), 1), height, width)


def check_boxes(boxes: np.ndarray, where: str) -> None:
    """Raise InputError where a box [K, 4] in shares of the frame is not finite, inverted or outside it.

    `where` says what the boxes are of, for the message.
    """
    for box in np.asarray(boxes, np.float64).reshape(-1, 4):
        x1, y1, x2, y2 = box
        if not (0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1):
            raise InputError(
                f"{where}: expected a box 0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1 in shares of the frame, "
                f"got {x1:g},{y1:g},{x2:g},{y2:g}"
            )
