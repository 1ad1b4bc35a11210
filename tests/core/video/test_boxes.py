"""Boxes follow their frames: what is marked in a box stays in it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmae.core.errors import InputError
from vmae.core.video.augment import (
    Box,
    center_box,
    crop_resize,
    multi_scale_box,
    random_resized_box,
    view_boxes,
)
from vmae.core.video.boxes import (
    check_boxes,
    crop_boxes,
    extend_boxes,
    has_area,
    jitter_boxes,
    to_pixels,
    to_shares,
)


def regions(height: int, width: int, size: tuple[int, int], rng: np.random.Generator) -> list[Box]:
    aspect = size[1] / size[0]
    return [
        center_box(height, width, aspect),
        *view_boxes(height, width, 3, aspect),
        multi_scale_box(height, width, size, rng),
        random_resized_box(height, width, rng),
    ]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), height=st.integers(24, 90), width=st.integers(24, 90), flip=st.booleans())
def test_a_marked_pixel_stays_in_its_box(seed: int, height: int, width: int, flip: bool) -> None:
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(16, 64)), int(rng.integers(16, 64)))
    y, x = int(rng.integers(height)), int(rng.integers(width))
    frames = np.zeros((1, height, width, 3), np.uint8)
    frames[:, y, x] = 255
    boxes = np.array([[x, y, x + 1, y + 1]], float)
    for region in regions(height, width, size, rng):
        out = np.empty((1, *size, 3), np.uint8)
        crop_resize(frames, region, out, flip=flip)
        lit = np.argwhere(out[0, :, :, 0] > 0)
        (x1, y1, x2, y2), scale_x, scale_y = (
            crop_boxes(boxes, region, size, flip=flip)[0],
            size[1] / region.width,
            size[0] / region.height,
        )
        if not has_area(np.array([[x1, y1, x2, y2]]))[0]:
            # The pixel is outside the crop; its neighbours inside may not even see it.
            assert len(lit) == 0
            continue
        if len(lit) == 0:  # a large shrink may leave nothing above 0
            continue
        # Bilinear resampling spreads a pixel by half of itself (or of the result's pixel) on each side.
        spread_x, spread_y = max(scale_x, 1) / 2 + 0.5, max(scale_y, 1) / 2 + 0.5
        rows, columns = lit[:, 0] + 0.5, lit[:, 1] + 0.5
        assert (rows >= y1 - spread_y).all() and (rows <= y2 + spread_y).all()
        assert (columns >= x1 - spread_x).all() and (columns <= x2 + spread_x).all()
        # The centre of what is lit lies where the box's centre lies, unless the crop's edge cuts it.
        weight = out[0, :, :, 0].astype(float)
        inside = x1 > 1 and x2 < size[1] - 1 and y1 > 1 and y2 < size[0] - 1
        if inside and scale_x >= 1 and scale_y >= 1:
            assert (weight * (np.arange(size[1]) + 0.5)).sum() / weight.sum() == pytest.approx(
                (x1 + x2) / 2, abs=0.6
            )
            assert (weight * (np.arange(size[0]) + 0.5)[:, None]).sum() / weight.sum() == pytest.approx(
                (y1 + y2) / 2, abs=0.6
            )


def test_crop_resize_and_flip_by_hand() -> None:
    boxes = np.array([[20.0, 10, 40, 30], [0, 0, 100, 50], [80, 0, 90, 5]])
    region = Box(top=10, left=20, height=20, width=40)
    assert crop_boxes(boxes, region, (40, 40)).tolist() == [[0, 0, 20, 40], [0, 0, 40, 40], [40, 0, 40, 0]]
    assert crop_boxes(boxes, region, (40, 40), flip=True).tolist() == [
        [20, 0, 40, 40], [0, 0, 40, 40], [0, 0, 0, 0],
    ]  # fmt: skip
    assert has_area(crop_boxes(boxes, region, (40, 40))).tolist() == [True, True, False]


def test_shares_and_pixels_are_inverse() -> None:
    shares = np.array([[0.1, 0.2, 0.5, 0.9]])
    assert to_pixels(shares, 100, 200).tolist() == [[20.0, 20.0, 100.0, 90.0]]
    assert to_shares(to_pixels(shares, 37, 53), 37, 53) == pytest.approx(shares)


def test_jitter_stays_within_its_amounts_and_the_frame() -> None:
    rng = np.random.default_rng(0)
    boxes = np.repeat([[50.0, 40, 90, 120]], 4000, 0)
    moved = jitter_boxes(boxes, 1000, 1000, rng)
    low, high = (moved - boxes).min(0), (moved - boxes).max(0)
    assert low == pytest.approx([-0.2 * 40, -0.1 * 80, -0.1 * 40, -0.05 * 80], rel=0.02)
    assert high == pytest.approx([0.1 * 40, 0.05 * 80, 0.2 * 40, 0.1 * 80], rel=0.02)
    assert (low >= [-8, -8, -4, -4]).all() and (high <= [4, 4, 8, 8]).all()
    edge = jitter_boxes(np.repeat([[95.0, 0, 100, 0.5]], 500, 0), 60, 100, rng)
    assert (edge >= 0).all() and (edge <= [100, 60, 100, 60]).all()
    assert (edge[:, 2:] - edge[:, :2] >= 1 - 1e-9).all()


def test_extension_by_hand_and_at_the_edge() -> None:
    assert extend_boxes(np.array([[40.0, 40, 60, 80]]), 100, 100).tolist() == [[39.0, 39.0, 61.0, 81.0]]
    assert extend_boxes(np.array([[0.0, 0, 100, 100]]), 100, 100).tolist() == [[0.0, 0.0, 100.0, 100.0]]


@pytest.mark.parametrize(
    "box", [(0.5, 0.1, 0.2, 0.3), (-0.1, 0, 1, 1), (0, 0, 1, 1.2), (float("nan"), 0, 1, 1)]
)
def test_boxes_outside_the_frame_or_inverted_are_refused(box: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match=r"val\.csv:3: expected a box"):
        check_boxes(np.array([box]), "val.csv:3")
