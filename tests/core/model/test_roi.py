"""RoIAlign: values by hand, and torchvision's published definition, point by point."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vmae.core.errors import InputError
from vmae.core.model.roi import roi_align, roi_align_reference, torchvision_operator

RAMP = torch.arange(16.0, dtype=torch.float64).reshape(1, 1, 4, 4)  # value = 4y + x


def test_by_hand() -> None:
    def cut(box: list[float], **options: object) -> list[float]:
        boxes, clips = torch.tensor([box], dtype=torch.float64), torch.tensor([0])
        return roi_align_reference(RAMP, boxes, clips, spatial_scale=1.0, **options).flatten().tolist()  # type: ignore[arg-type]

    # Aligned, the whole map in 2x2 bins of 2x2 points each: the mean of a quadrant.
    assert cut([0, 0, 4, 4], output_size=2, sampling_ratio=2) == [2.5, 4.5, 10.5, 12.5]
    # One point in the middle of the box (2, 2), which lies between cells 1 and 2 of each axis.
    assert cut([1, 1, 3, 3], output_size=1, sampling_ratio=1) == [7.5]
    # Not aligned the same point is cell (2, 2).
    assert cut([1, 1, 3, 3], output_size=1, sampling_ratio=1, aligned=False) == [10.0]
    # Adaptive: a bin of 1.5 cells takes two points, at 0.25 + 0.375 and 0.25 + 1.125 of the ramp.
    assert cut([0.75, 0.75, 2.25, 2.25], output_size=1) == [pytest.approx(5 * (0.625 + 1.375) / 2)]
    # A point up to one cell outside takes the edge's value, one beyond it none.
    assert cut([-1, -1, 1, 1], output_size=1, sampling_ratio=1) == [0.0]
    assert cut([3, 3, 6, 6], output_size=1, sampling_ratio=1) == [15.0]
    assert cut([5, 5, 9, 9], output_size=1, sampling_ratio=1) == [0.0]
    # Half the points of this bin lie beyond: the mean is over all of them.
    assert cut([1.5, 1.5, 8.5, 2.5], output_size=1, sampling_ratio=2) == [pytest.approx((4 * 1.5 + 2.75) / 2)]


def published(features: Tensor, boxes: Tensor, clips: Tensor, size: int, ratio: int, aligned: bool) -> Tensor:
    """torchvision's kernel (`roi_align_kernel.cpp`), one sampling point after another, at scale 1/2."""
    _, channels, height, width = features.shape
    out = torch.zeros(len(boxes), channels, size, size, dtype=features.dtype)

    def value(clip: int, y: float, x: float) -> Tensor:
        if y < -1 or y > height or x < -1 or x > width:
            return torch.zeros(channels, dtype=features.dtype)
        y, x = max(y, 0.0), max(x, 0.0)
        y0, x0 = int(y), int(x)
        y1, x1 = y0 + 1, x0 + 1
        if y0 >= height - 1:
            y0 = y1 = height - 1
            y = float(y0)
        if x0 >= width - 1:
            x0 = x1 = width - 1
            x = float(x0)
        ly, lx = y - y0, x - x0
        f = features[clip]
        return (
            (1 - ly) * (1 - lx) * f[:, y0, x0]
            + (1 - ly) * lx * f[:, y0, x1]
            + ly * (1 - lx) * f[:, y1, x0]
            + ly * lx * f[:, y1, x1]
        )

    for k, box in enumerate(boxes.tolist()):
        x1, y1, x2, y2 = (v * 0.5 - (0.5 if aligned else 0.0) for v in box)
        w, h = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1.0), max(y2 - y1, 1.0))
        gh, gw = (ratio or math.ceil(side / size) for side in (h, w))
        for p in range(size):
            for q in range(size):
                points = [
                    value(
                        int(clips[k]),
                        y1 + p * h / size + (i + 0.5) * h / size / gh,
                        x1 + q * w / size + (j + 0.5) * w / size / gw,
                    )
                    for i in range(gh)
                    for j in range(gw)
                ]
                if points:
                    out[k, :, p, q] = torch.stack(points).sum(0) / max(gh * gw, 1)
    return out


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 1, 2, 3])
def test_agrees_with_the_published_definition(ratio: int, aligned: bool) -> None:
    g = torch.Generator().manual_seed(ratio)
    features = torch.randn(3, 4, 6, 9, dtype=torch.float64, generator=g)
    corner = torch.rand(12, 2, dtype=torch.float64, generator=g) * torch.tensor([22.0, 16.0]) - 3
    boxes = torch.cat((corner, corner + torch.rand(12, 2, dtype=torch.float64, generator=g) * 14 + 0.1), 1)
    clips = torch.randint(3, (12,), generator=g)
    for size in (1, 3):
        options = {"output_size": size, "spatial_scale": 0.5, "sampling_ratio": ratio, "aligned": aligned}
        got = roi_align_reference(features, boxes, clips, **options)  # type: ignore[arg-type]
        torch.testing.assert_close(got, published(features, boxes, clips, size, ratio, aligned))


@pytest.mark.skipif(not torchvision_operator(), reason="torchvision's operator is not installed")
def test_torchvision_gives_the_same_numbers() -> None:
    g = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 14, 18, generator=g)
    corner = torch.rand(20, 2, generator=g) * 200
    boxes, clips = (
        torch.cat((corner, corner + torch.rand(20, 2, generator=g) * 90 + 1), 1),
        torch.arange(20) % 2,
    )
    for dtype, close in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        maps = features.to(dtype)
        torch.testing.assert_close(
            roi_align(maps, boxes, clips), roi_align_reference(maps, boxes, clips), atol=close, rtol=close
        )


def test_gradients_reach_the_features() -> None:
    features = torch.randn(2, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    boxes, clips = torch.tensor([[0.0, 0, 50, 70], [10, 10, 80, 80]]), torch.tensor([0, 1])
    assert torch.autograd.gradcheck(
        lambda f: roi_align_reference(f, boxes, clips, output_size=3), (features,)
    )


def test_no_boxes_and_half_precision() -> None:
    maps = torch.randn(1, 8, 4, 4, dtype=torch.bfloat16)
    assert roi_align(maps, torch.empty(0, 4), torch.empty(0, dtype=torch.int64)).shape == (0, 8, 7, 7)
    assert roi_align(maps, torch.tensor([[0.0, 0, 64, 64]]), torch.tensor([0])).dtype == torch.bfloat16


def test_other_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="expected features"):
        roi_align(torch.zeros(4, 4), torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(InputError, match="expected boxes"):
        roi_align(RAMP, torch.zeros(1, 4), torch.zeros(2, dtype=torch.int64))
