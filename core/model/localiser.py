"""Temporal localisation: an anchor-free head on a video's windowed features, small and plain.

The design is ActionFormer's (Zhang et al., arXiv 2202.07925) without its transformer: convolutions embed the
features, a pyramid halves their length level by level, and two heads that all levels share say for every
point of every level how much it is of each class, and how far the action reaches to its left and right.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmae.core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class LocaliserConfig:
    """The head's size."""

    dim: int = 128
    """Width of the head."""
    levels: int = 5
    """Of the pyramid; level l has a point every 2**l features."""
    reach: float = 4.0
    """Actions whose farther end is up to so many features away belong to level 0, up to twice that to
    level 1, and so on; the last level takes all longer ones."""

    def __post_init__(self) -> None:
        for name in ("dim", "levels"):
            if getattr(self, name) < 1:
                raise InputError(f"expected localise.head.{name} >= 1; got {getattr(self, name)}")
        if not self.reach > 0:
            raise InputError(f"expected localise.head.reach > 0; got {self.reach}")


class Localiser(nn.Module):
    """Features [B, D, T] to scores and extents of every point of the pyramid."""

    def __init__(self, config: LocaliserConfig, input_dim: int, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        d = config.dim
        self.embed = nn.ModuleList([_Block(input_dim, d), _Block(d, d)])
        self.down = nn.ModuleList([_Block(d, d, stride=2) for _ in range(config.levels - 1)])
        self.classify = nn.ModuleList([_Block(d, d), nn.Conv1d(d, num_classes, 3, padding=1)])
        self.extend = nn.ModuleList([_Block(d, d), nn.Conv1d(d, 2, 3, padding=1)])
        self.scale = nn.Parameter(torch.ones(config.levels))
        # A point is of no class at first, with a probability of 0.99 (focal loss, arXiv 1708.02002).
        nn.init.constant_(self.classify[1].bias, -4.6)  # type: ignore[arg-type]

    def forward(self, x: Tensor, mask: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """`x` [B, D, T] and `mask` bool [B, T] (True: there) to, level by level, class scores before the
        sigmoid [B, t, C], distances to the left and right end in features [B, t, 2], and masks [B, t]."""
        for block in self.embed:
            x = block(x, mask)
        scores, extents, masks = [], [], []
        for level in range(self.config.levels):
            if level:
                mask = mask[:, ::2]
                x = self.down[level - 1](x, mask)
            scores.append(_head(self.classify, x, mask).transpose(1, 2))
            reach = F.softplus(_head(self.extend, x, mask) * self.scale[level]) * 2**level
            extents.append(reach.transpose(1, 2))
            masks.append(mask)
        return scores, extents, masks


def _head(layers: nn.ModuleList, x: Tensor, mask: Tensor) -> Tensor:
    found: Tensor = layers[1](layers[0](x, mask))
    return found


class _Block(nn.Module):
    """A convolution of three points, a norm over channels, a ReLU; nothing where the mask has nothing."""

    def __init__(self, dim_in: int, dim: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim_in, dim, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(self.conv(x).transpose(1, 2)).transpose(1, 2)
        return F.relu(x) * mask[:, None]


def points_of(config: LocaliserConfig, length: int) -> list[Tensor]:
    """Where the points of each level are, in features, [t] for `length` features."""
    return [torch.arange(0, length, 2**level, dtype=torch.float32) for level in range(config.levels)]


def targets_of(
    config: LocaliserConfig, length: int, segments: Tensor, labels: Tensor, num_classes: int
) -> tuple[list[Tensor], list[Tensor]]:
    """What the points of one video's levels are to say: classes [t, C] in {0, 1}, ends [t, 2] in features.

    `segments` [M, 2] in features, `labels` int64 [M]. A point belongs to an action within whose middle it
    lies (1.5 points to either side, inside the action) and whose farther end its level reaches; of several
    to the shortest.
    """
    classes, ends = [], []
    for level, at in enumerate(points_of(config, length)):
        step = float(2**level)
        left, right = at[:, None] - segments[:, 0], segments[:, 1] - at[:, None]  # [t, M]
        inside = torch.minimum(left, right) > 0
        near = (at[:, None] - segments.mean(1)).abs() <= 1.5 * step
        far = torch.maximum(left, right)
        low = config.reach * 2 ** (level - 1) if level else 0.0
        high = config.reach * 2**level if level < config.levels - 1 else float("inf")
        fits = inside & near & (far > low) & (far <= high)
        cost = torch.where(fits, (segments[:, 1] - segments[:, 0])[None], float("inf"))
        wanted = torch.zeros(len(at), num_classes)
        end = torch.zeros(len(at), 2)
        if len(segments):
            value, best = cost.min(1)
            rows = torch.isfinite(value).nonzero()[:, 0]
            wanted[rows, labels[best[rows]]] = 1.0
            end[rows] = torch.stack((left, right), 2)[rows, best[rows]]
        classes.append(wanted)
        ends.append(end)
    return classes, ends


def focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Focal loss (arXiv 1708.02002, equation 5; alpha 0.25, gamma 2) of each number, in float32."""
    p = logits.float().sigmoid()
    cross = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")
    miss = torch.where(targets > 0, 1 - p, p)
    return torch.where(targets > 0, 0.25, 0.75) * miss**2 * cross


def localisation_loss(scores: Tensor, extents: Tensor, classes: Tensor, ends: Tensor) -> Tensor:
    """Focal loss of the classes plus 1 - DIoU of the extents, over the number of points in actions.

    `scores`, `classes` [P, C]; `extents`, `ends` [P, 2], distances to the left and right.
    """
    positive = classes.sum(1) > 0
    count = positive.sum().clamp_min(1)
    focal = focal_loss(scores, classes).sum() / count
    mine, true = extents.float()[positive], ends[positive]
    both = torch.minimum(mine, true).sum(1)
    whole = torch.maximum(mine, true).sum(1)
    either = mine.sum(1) + true.sum(1) - both
    apart = ((mine[:, 1] - mine[:, 0]) - (true[:, 1] - true[:, 0])) / 2
    diou = both / either.clamp_min(1e-6) - (apart / whole.clamp_min(1e-6)) ** 2
    return focal + (1 - diou).sum() / count
