"""Augmentation of uint8 clips: one draw of parameters per clip, the same for all its frames.

Geometry is decided first, on numbers (`Box`), and applied once: the crop is cut from the decoded frames and
resized straight into its place in the batch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from vmae.core.video.scale import scale_into

MULTI_SCALES = (1.0, 0.875, 0.75, 0.66)


class Box(NamedTuple):
    """A region of a frame in pixels: rows `[top, top + height)`, columns `[left, left + width)`."""

    top: int
    left: int
    height: int
    width: int


def center_box(height: int, width: int, aspect: float = 1.0) -> Box:
    """The largest centred region whose width is `aspect` times its height."""
    crop_h, crop_w = _fit(height, width, aspect)
    return Box((height - crop_h) // 2, (width - crop_w) // 2, crop_h, crop_w)


def view_boxes(height: int, width: int, crops: int, aspect: float = 1.0) -> list[Box]:
    """`crops` largest regions of that aspect, spread from end to end of the spare side (one: the centre).

    The official test crops (`spatial_step = (max - short_side) / (crops - 1)`), before the resize.
    """
    crop_h, crop_w = _fit(height, width, aspect)
    shares = [0.5] if crops == 1 else [i / (crops - 1) for i in range(crops)]
    return [Box(int((height - crop_h) * s), int((width - crop_w) * s), crop_h, crop_w) for s in shares]


def multi_scale_box(
    height: int,
    width: int,
    size: tuple[int, int],
    rng: np.random.Generator,
    *,
    scales: tuple[float, ...] = MULTI_SCALES,
    max_distort: int = 1,
) -> Box:
    """A region with the largest sides of the output's shape, each times a scale, at one of 13 places.

    Official: `GroupMultiScaleCrop(fix_crop=True, more_fix_crop=True)` (V1 transforms.py): the two sides'
    scales are at most `max_distort` steps apart; a side within 2 pixels of the output's becomes the output's.
    Its outputs are square; the regions of a wide output are wide (departure: there they were square).
    """
    base = _fit(height, width, size[1] / size[0])
    heights = [max(1, int(base[0] * s)) for s in scales]
    widths = [max(1, int(base[1] * s)) for s in scales]
    heights = [size[0] if abs(s - size[0]) < 3 else s for s in heights]
    widths = [size[1] if abs(s - size[1]) < 3 else s for s in widths]
    pairs = [
        (min(h, height), min(w, width))
        for i, h in enumerate(heights)
        for j, w in enumerate(widths)
        if abs(i - j) <= max_distort
    ]
    crop_h, crop_w = pairs[int(rng.integers(len(pairs)))]
    # Offsets in quarters of the spare room: corners, centre, edge middles and the four inner quarters.
    spots = [
        (0, 0), (4, 0), (0, 4), (4, 4), (2, 2), (0, 2), (4, 2), (2, 4), (2, 0), (1, 1), (3, 1), (1, 3), (3, 3)
    ]  # fmt: skip
    x, y = spots[int(rng.integers(len(spots)))]
    return Box(y * ((height - crop_h) // 4), x * ((width - crop_w) // 4), crop_h, crop_w)


def random_resized_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """A region of a random share of the area and a log-uniform width/height ratio (Inception crop).

    Ten tries as in torchvision's `RandomResizedCrop`; then the largest centred region within the ratios.
    """
    area = height * width
    for _ in range(10):
        target = area * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        crop_w, crop_h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < crop_w <= width and 0 < crop_h <= height:
            return Box(
                int(rng.integers(height - crop_h + 1)), int(rng.integers(width - crop_w + 1)), crop_h, crop_w
            )
    return center_box(height, width, min(max(width / height, ratio[0]), ratio[1]))


def random_box(
    height: int, width: int, size: tuple[int, int], short_side: int, rng: np.random.Generator
) -> Box:
    """A region anywhere, as large as `size` is in a frame whose shorter side is `short_side`.

    AVA's training crop (224 of a frame resized to 256; `RandomClip` of MCG-NJU/VideoMAE-Action-Detection). A
    `short_side` smaller than `size` (0: none was asked for) gives the largest region of that aspect.
    """
    scale = min(height, width) / max(short_side, *size)
    crop_h, crop_w = (
        max(1, min(side, round(s * scale))) for side, s in zip((height, width), size, strict=True)
    )
    return Box(int(rng.integers(height - crop_h + 1)), int(rng.integers(width - crop_w + 1)), crop_h, crop_w)


def crop_resize(frames: np.ndarray, box: Box, out: np.ndarray, *, flip: bool = False) -> None:
    """Cut `box` from uint8 `[T, H, W, C]`, resize it into `out` uint8 `[T, h, w, C]`, mirror on request.

    Bilinear, as the official transforms; area where the crop shrinks to less than two thirds (bilinear would
    skip pixels there).
    """
    import cv2

    height, width = out.shape[1:3]
    crop = frames[:, box.top : box.top + box.height, box.left : box.left + box.width]
    if crop.shape[1:3] == (height, width):
        out[...] = crop[:, :, ::-1] if flip else crop
        return
    shrinks = box.height * box.width * 4 > height * width * 9
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    for frame, target in zip(crop, out, strict=True):
        scale_into(frame, target, method)
        if flip:
            cv2.flip(target, 1, dst=target)


def _fit(height: int, width: int, aspect: float) -> tuple[int, int]:
    if width >= height * aspect:
        return height, max(1, round(height * aspect))
    return max(1, round(width / aspect)), width
