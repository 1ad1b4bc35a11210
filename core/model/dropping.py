"""Tokens that are dropped on the way through an encoder, around a key frame (EVAD).

Source: Efficient Video Action Detection with Token Dropout and Context Refinement (Chen et al., ICCV 2023,
arXiv 2304.08451), section 3.2, and `KTPBlock` of MCG-NJU/EVAD, `projects/evad/models/vit_model.py`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vmae.core.model.grid import TokenGrid
from vmae.core.model.layers import Block


def dropping_blocks(depth: int) -> tuple[int, ...]:
    """The blocks that drop tokens, after a quarter, a half and three quarters (EVAD's 3, 6, 9 of 12)."""
    return tuple(sorted({depth * k // 4 for k in (1, 2, 3)}))


def key_frame_first(grid: TokenGrid, device: torch.device | str = "cpu") -> Tensor:
    """The tokens' numbers, int64 [N]: those of the time slot with the key frame (t // 2), then the others."""
    slots = torch.arange(grid.num_tokens, device=device).unflatten(0, (grid.t, grid.tokens_per_frame))
    key = grid.t // 2
    return torch.cat((slots[key : key + 1], slots[:key], slots[key + 1 :])).flatten()


class DroppingBlock(nn.Module):
    """A block after whose attention all but a share of the tokens are left out of the clip.

    The first `keys` tokens, the key frame's, stay, and of the others those with the highest attention weight,
    averaged over heads and queries; what the key frame's queries attend to counts `key_weight` times (EVAD's
    `ENHANCED_WEIGHT`: 1 for its keep rates of 1 and 0.7, 4 for 0.6). The parameters and their names are
    those of the block that it is made of.

    Departure: a share that would be less than the key frame leaves the key frame (there, an error).
    """

    def __init__(self, block: Block, keep_rate: float, key_weight: float = 1.0) -> None:
        super().__init__()
        self.norm1, self.attn = block.norm1, block.attn
        self.norm2, self.mlp, self.drop_path = block.norm2, block.mlp, block.drop_path
        self.keep_rate, self.key_weight = keep_rate, key_weight

    def forward(self, x: Tensor, keys: int) -> tuple[Tensor, Tensor]:
        """[B, N, D] to [B, M, D] with M = max(ceil(keep_rate N), keys), and which tokens they are: int64
        [B, M], rising after the first `keys`."""
        y, weights = self.attn.forward_with_map(self.norm1(x))
        x = x + self.drop_path(y)
        count = max(math.ceil(self.keep_rate * x.shape[1]), keys)
        others = self._noted(weights.detach().float(), keys).topk(count - keys).indices.sort().values + keys
        first = torch.arange(keys, device=x.device).expand(x.shape[0], -1)  # len() fixes a graph's batch
        kept = torch.cat((first, others), 1)
        x = x.gather(1, kept[..., None].expand(-1, -1, x.shape[2]))
        return x + self.drop_path(self.mlp(self.norm2(x))), kept

    def _noted(self, weights: Tensor, keys: int) -> Tensor:
        """How much the tokens after the key frame's are attended to, [B, N - keys], of [B, heads, N, N]."""
        noted = weights.mean((1, 2))
        if self.key_weight != 1:
            more = (self.key_weight - 1) * keys / weights.shape[2]
            noted = noted + more * weights[:, :, :keys].mean((1, 2))
        return noted[:, keys:]
