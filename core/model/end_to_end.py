"""Action detection without a person detector: people are found in the tokens of the key frame (EVAD).

Source: Efficient Video Action Detection with Token Dropout and Context Refinement (Chen et al., ICCV 2023,
arXiv 2304.08451; MCG-NJU/EVAD). As there: tokens around the key frame are dropped inside the encoder
(`vmae.core.model.dropping`), boxes come from the key frame's tokens, each box's features are cut by RoIAlign
(the box wider by 0.4, higher by 0.2) out of the tokens put back in their places, and blocks of attention
over the tokens that are left and the boxes' features refine them before the actions are said.

Departures, all for a smaller model: every token of the key frame guesses a person and a box around itself,
and the likeliest guesses are the queries (the two stages of Deformable DETR, arXiv 2010.04159, instead of
six Sparse R-CNN heads on a feature pyramid); RoIAlign is of the mean over the tokens left at each place
(there, of each time slot, dropped tokens being 0); the context's blocks are as wide as the encoder and
correct person and box too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vmae.core.errors import InputError
from vmae.core.model.detector import Detector, VideoDetectorConfig, interpolate_positions
from vmae.core.model.dropping import DroppingBlock, dropping_blocks, key_frame_first
from vmae.core.model.encoder import all_indices, require_positive
from vmae.core.model.grid import TokenGrid
from vmae.core.model.layers import Block, init_weights, run_blocks
from vmae.core.model.matching import matched_loss
from vmae.core.model.roi import roi_align

EXTENSION = (0.4, 0.2)
"""A box whose features are cut is so much wider and higher."""
SIDE = 0.3
"""Of the boxes that tokens guess at first, in shares of the frame."""
PRIOR = 0.05
"""Probability of a person at first."""
Cut = Callable[..., Tensor]
"""`roi_align`, or its like."""


@dataclass(frozen=True, kw_only=True)
class EndToEndConfig(VideoDetectorConfig):
    """The encoder, how many tokens stay in it, and how people are found."""

    keep_rate: float = 1.0
    """Share of the tokens that three blocks keep each (`dropping_blocks`); 1: no token is dropped."""
    key_weight: float = 1.0
    """How much more the key frame's queries count than others in which tokens those are (`DroppingBlock`)."""
    queries: int = 100
    """People of a key frame at most; no more than it has tokens."""
    context_depth: int = 2
    """Blocks over tokens and queries (published: 6, of half the width)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.keep_rate <= 1:
            raise InputError(f"expected keep_rate in (0, 1], got {self.keep_rate!r}")
        if not 0 <= self.key_weight < math.inf:
            raise InputError(f"expected key_weight of 0 or more, got {self.key_weight!r}")
        require_positive("queries", self.queries)
        require_positive("context_depth", self.context_depth)


class Guesses(NamedTuple):
    """People that are guessed in the key frames of B clips, twice."""

    first_person: Tensor
    """[B, K], of every token of the key frame, before the sigmoid."""
    first_box: Tensor
    """[B, K, 4], `x1, y1, x2, y2` in shares of the frame."""
    person: Tensor
    """[B, Q], of the queries."""
    box: Tensor
    """[B, Q, 4]."""
    actions: Tensor
    """[B, Q, C], before the sigmoid."""


class EndToEndDetector(Detector):
    """Clips to people: boxes, whether it is a person, what it does."""

    title = "an end-to-end detector"
    config_class = EndToEndConfig
    config: EndToEndConfig

    def __init__(self, config: EndToEndConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        d = config.embed_dim
        if config.keep_rate < 1:
            for i in dropping_blocks(config.depth):
                block: Block = self.encoder.blocks[i]  # type: ignore[assignment]
                self.encoder.blocks[i] = DroppingBlock(block, config.keep_rate, config.key_weight)
        self.first_person, self.first_box = nn.Linear(d, 1), _box_head(d)
        self.place = nn.Linear(4, d)
        self.context = nn.ModuleList(
            Block(d, config.num_heads, config.mlp_dim, norm_eps=config.norm_eps)
            for _ in range(config.context_depth)
        )
        self.context_norm = nn.LayerNorm(d, eps=config.norm_eps)
        self.person, self.box = nn.Linear(d, 1), _box_head(d)
        for part in (self.first_person, self.place, self.context, self.context_norm, self.person):
            part.apply(init_weights)
        for linear in (self.first_person, self.person):
            nn.init.constant_(linear.bias, _logit(torch.tensor(PRIOR)).item())

    def forward(self, video: Tensor) -> Guesses:
        """`video` [B, C, T, H, W] uint8 or floating point in [0, 1], the key frame number T // 2 of it.

        Raises InputError on other channels, frames or sizes.
        """
        return self.guess(*self.forward_tokens(video), self.grid_of(video))

    def guess(self, x: Tensor, places: Tensor, grid: TokenGrid, cut: Cut = roi_align) -> Guesses:
        """Who is in the key frames, by the tokens that `forward_tokens` gives; `cut` is RoIAlign."""
        b, keys, d = x.shape[0], grid.tokens_per_frame, self.config.embed_dim
        own = x[:, :keys]
        first_person = self.first_person(own).squeeze(2).float()
        first_logit = _logit(_cells(grid, x.device)) + self.first_box(own).float()
        count = min(self.config.queries, keys)
        best = first_person.topk(count).indices[..., None]  # [B, Q, 1]
        logit = first_logit.detach().gather(1, best.expand(-1, -1, 4))
        found = self._features(x, places, grid, logit, cut)
        found = found + own.gather(1, best.expand(-1, -1, d)) + self.place(logit.to(found.dtype))
        both = torch.cat((x, found), 1)
        recompute = self.config.checkpoint_activations
        both = run_blocks(self.context, both, recompute=recompute, last_from=x.shape[1])
        found = self.context_norm(both).view(b, count, d)
        return Guesses(
            first_person=first_person,
            first_box=_corners(first_logit.sigmoid()),
            person=self.person(found).squeeze(2).float(),
            box=_corners((logit + self.box(found).float()).sigmoid()),
            actions=self.head(self.dropout(found)).float(),
        )

    def forward_tokens(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """The normed tokens that are left, [B, M, D], the key frame's first; their numbers, int64 [B, M]."""
        grid, encoder = self.grid_of(video), self.encoder
        order = key_frame_first(grid, video.device)
        x = encoder.patch_embed(video, all_indices(video, grid))
        x = (x + interpolate_positions(encoder.pos_embed, self.grid, grid))[:, order]
        return self.encode(x, order.expand(len(x), -1), grid.tokens_per_frame)

    def encode(self, x: Tensor, places: Tensor, keys: int) -> tuple[Tensor, Tensor]:
        """The same of embedded tokens [B, N, D] with positions, the `keys` of the key frame first."""
        encoder, recompute = self.encoder, self.config.checkpoint_activations
        for block in encoder.blocks:
            if isinstance(block, DroppingBlock):
                x, kept = block(x, keys)
                places = places.gather(1, kept)
            else:
                x = run_blocks([block], x, recompute=recompute)
        return encoder.norm(x), places

    def _features(self, x: Tensor, places: Tensor, grid: TokenGrid, logit: Tensor, cut: Cut) -> Tensor:
        """Of boxes (centre and sides before the sigmoid, [B, Q, 4]): [B, Q, D]."""
        b, count = logit.shape[:2]
        at = (places % grid.tokens_per_frame)[..., None]
        total = x.new_zeros(b, grid.tokens_per_frame, x.shape[2]).scatter_add(1, at.expand_as(x), x)
        tokens = x.new_zeros(b, grid.tokens_per_frame, 1).scatter_add(1, at, x.new_ones(at.shape))
        maps = (total / tokens).permute(0, 2, 1).unflatten(2, (grid.h, grid.w))
        c = self.config
        bins = cut(
            maps,
            widened(_corners(logit.sigmoid()), grid).flatten(0, 1),
            torch.arange(b, device=x.device).repeat_interleave(count),
            output_size=c.roi_size,
            spatial_scale=1 / c.patch_size,
            sampling_ratio=c.roi_points,
            aligned=c.roi_aligned,
        )
        return bins.amax((2, 3)).unflatten(0, (b, count))


def end_to_end_loss(guesses: Guesses, true: Tensor, clips: Tensor, targets: Tensor) -> Tensor:
    """The first guesses' loss and that of the queries, with their actions (`matched_loss`).

    `true` [K, 4] are boxes in shares of the frame, `clips` int64 [K] their clips, `targets` [K, C] their
    actions.
    """
    first = matched_loss(guesses.first_person, guesses.first_box, true, clips)
    return first + matched_loss(guesses.person, guesses.box, true, clips, guesses.actions, targets)


def widened(boxes: Tensor, grid: TokenGrid) -> Tensor:
    """Boxes [..., 4] in shares of the frame in pixels, extended by EXTENSION, cut at the frame's edges."""
    limit = boxes.new_tensor([grid.width, grid.height])
    low, high = boxes[..., :2] * limit, boxes[..., 2:] * limit
    pad = (high - low) * boxes.new_tensor(EXTENSION) / 2
    return torch.cat(((low - pad).clamp_min(0), torch.minimum(high + pad, limit)), -1)


def _cells(grid: TokenGrid, device: torch.device) -> Tensor:
    """Around each token of a frame: centre and sides [K, 4], in shares."""
    y = (torch.arange(grid.h, device=device) + 0.5) / grid.h
    x = (torch.arange(grid.w, device=device) + 0.5) / grid.w
    centres = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1)
    return torch.cat((centres, torch.full_like(centres, SIDE)), 1)


def _corners(boxes: Tensor) -> Tensor:
    """Centre and sides [..., 4] to `x1, y1, x2, y2`, cut at the frame's edges."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat((centre - half, centre + half), -1).clamp(0, 1)


def _logit(share: Tensor) -> Tensor:
    return torch.logit(share, eps=1e-4)


def _box_head(dim: int) -> nn.Sequential:
    """Changes of a box before the sigmoid; none at first."""
    last = nn.Linear(dim, 4)
    head = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), last)
    head.apply(init_weights)
    nn.init.zeros_(last.weight)
    return head
