"""RoIAlign (Mask R-CNN, arXiv 1703.06870, section 3): features of boxes, cut from a map without rounding."""

from __future__ import annotations

import importlib.util
from functools import cache

import torch
from torch import Tensor

from vmae.core.errors import InputError


def roi_align(
    features: Tensor,
    boxes: Tensor,
    clips: Tensor,
    *,
    output_size: int = 7,
    spatial_scale: float = 1 / 16,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Tensor:
    """Features of boxes: [K, C, output_size, output_size] from maps [B, C, H, W], in the maps' dtype.

    `boxes` [K, 4] are `x1, y1, x2, y2` in pixels of the clip, `clips` int64 [K] the map each belongs to;
    `spatial_scale` turns pixels into map cells. A box is cut into bins, and a bin is the mean of bilinear
    values at `sampling_ratio` squared points (0: as many as the bin is cells high and wide, rounded up).
    Points up to one cell outside take the edge's value, those beyond it 0. `aligned` puts a cell's value at
    its centre (Detectron2); without it at its corner, and boxes smaller than a cell count as one cell.

    torchvision's operator where it is installed and works, else `roi_align_reference`: the same numbers.
    Gradients reach the features, not the boxes.
    """
    _check(features, boxes, clips)
    if torchvision_operator():
        # It has no bfloat16, in which a box's pixels and a clip's number would be rounded besides.
        maps = features.to(torch.promote_types(features.dtype, torch.float32))
        rois = torch.cat((clips[:, None].to(maps), boxes.to(maps)), 1)
        out: Tensor = torch.ops.torchvision.roi_align(
            maps, rois, spatial_scale, output_size, output_size, sampling_ratio, aligned
        )
        return out.to(features.dtype)
    return roi_align_reference(
        features,
        boxes,
        clips,
        output_size=output_size,
        spatial_scale=spatial_scale,
        sampling_ratio=sampling_ratio,
        aligned=aligned,
    )


def roi_align_reference(
    features: Tensor,
    boxes: Tensor,
    clips: Tensor,
    *,
    output_size: int = 7,
    spatial_scale: float = 1 / 16,
    sampling_ratio: int = 0,
    aligned: bool = True,
    most_points: int | None = None,
) -> Tensor:
    """`roi_align` in plain torch.

    A bin's sampling points form a grid and bilinear weights are products, so the mean over the points is one
    small matrix per axis: `out = rows @ map @ columns.T` (torchvision's kernel visits every point).
    `most_points` bounds the points of a bin along an axis where the boxes' sizes may not be looked at (a
    graph that is exported).
    """
    _check(features, boxes, clips)
    wide = torch.promote_types(features.dtype, torch.float32)
    boxes = boxes.detach().to(wide) * spatial_scale - (0.5 if aligned else 0.0)
    columns, rows = (
        _axis_weights(boxes[:, k], boxes[:, k + 2], output_size, size, sampling_ratio, aligned, most_points)
        for k, size in ((0, features.shape[3]), (1, features.shape[2]))
    )
    out = torch.einsum("kph,kchw,kqw->kcpq", rows, features[clips].to(wide), columns)
    return out.to(features.dtype)


def _axis_weights(
    start: Tensor,
    end: Tensor,
    bins: int,
    size: int,
    sampling_ratio: int,
    aligned: bool,
    most_points: int | None,
) -> Tensor:
    """How much each of the `size` cells of one axis counts in each bin of each box, [K, bins, size]."""
    length = end - start if aligned else (end - start).clamp_min(1.0)  # [K]
    per_bin = length / bins
    adaptive = per_bin.ceil().clamp_min(1.0)
    points = adaptive if sampling_ratio <= 0 else torch.full_like(per_bin, sampling_ratio)
    if most_points is None:
        most_points = int(points.max()) if len(points) else 1
    index = torch.arange(most_points, device=start.device, dtype=start.dtype)  # [G]
    offset = (index + 0.5) / points[:, None]  # [K, G], in bins
    at = torch.arange(bins, device=start.device, dtype=start.dtype)[:, None] + offset[:, None]  # [K, bins, G]
    at = start[:, None, None] + at * per_bin[:, None, None]
    counts = (index < points[:, None])[:, None] & (at >= -1) & (at <= size)
    cells = torch.arange(size, device=start.device, dtype=start.dtype)
    hat = (1 - (at.clamp(0, size - 1)[..., None] - cells).abs()).clamp_min(0)  # [K, bins, G, size]
    return (hat * counts[..., None]).sum(2) / points[:, None, None]


@cache
def torchvision_operator() -> bool:
    """Whether torchvision's compiled operator can be used."""
    if importlib.util.find_spec("torchvision") is None:
        return False
    try:
        import torchvision.ops  # noqa: F401 - registers the operator
    except (ImportError, RuntimeError, OSError):  # built for another torch
        return False
    return hasattr(torch.ops.torchvision, "roi_align")


def _check(features: Tensor, boxes: Tensor, clips: Tensor) -> None:
    if features.dim() != 4:
        raise InputError(f"expected features [B, C, H, W], got {list(features.shape)}")
    if boxes.dim() != 2 or boxes.shape[1] != 4 or clips.shape != boxes.shape[:1]:
        raise InputError(
            f"expected boxes [K, 4] and clips [K], got {list(boxes.shape)} and {list(clips.shape)}"
        )
