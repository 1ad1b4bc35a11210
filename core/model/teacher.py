"""A frozen teacher: its latents at masked places are what a student predicts.

One path for masked distillation and two-stage latent prediction: SALT (arXiv 2509.24317; the teacher is a
pixel MAE), MVD (arXiv 2212.04500), AMD (arXiv 2311.03149). The teacher sees the whole clip once, without
gradient; the student sees its visible tokens only.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vmae.core.errors import InputError
from vmae.core.model.encoder import VideoModel, all_indices
from vmae.core.model.grid import TokenGrid

EPS = 1e-6


class Latents:
    """What a teacher says of tokens: `(video, indices, grid) -> float [B, K, D]`, a target (`model.target`).

    D values of the residual stream after encoder block `layer` (from 0, negative from the end), each token
    normalised to mean 0 and variance 1 over D (a layer norm without weights, as SALT and the JEPA line do;
    MVD predicts them as they are: a departure). It is no module: the student's checkpoint, optimiser and
    device know nothing of it. Raises InputError for a layer that is not there.
    """

    def __init__(self, teacher: VideoModel, layer: int = -1) -> None:
        depth = len(teacher.encoder.blocks)
        if not -depth <= layer < depth:
            raise InputError(
                f"model.target_layer: expected 0 to {depth - 1} (or negative from the end), got {layer}"
            )
        self.model = teacher.eval().requires_grad_(False)
        self.blocks: list[Any] = list(teacher.encoder.blocks)[: layer % depth + 1]

    @property
    def dim(self) -> int:
        """D."""
        return self.model.config.embed_dim

    def check(self, grid: TokenGrid) -> None:
        """Raise InputError unless the teacher's tokens lie where the student's do."""
        own = self.model.grid
        if (own.t, own.h, own.w) != (grid.t, grid.h, grid.w):
            raise InputError(
                f"expected a teacher with the student's {grid.t}x{grid.h}x{grid.w} tokens, got "
                f"{own.t}x{own.h}x{own.w}"
            )

    @torch.no_grad()
    def __call__(self, video: Tensor, indices: Tensor, grid: TokenGrid) -> Tensor:
        encoder = self.model.encoder
        if next(encoder.parameters()).device != video.device:
            self.model.to(video.device)
        x = encoder.embed(video, all_indices(video, self.model.grid))
        for block in self.blocks:
            x = block(x)
        x = x.gather(1, indices[..., None].expand(-1, -1, x.shape[2]))
        return F.layer_norm(x.float(), x.shape[2:], eps=EPS)

    def __deepcopy__(self, memo: dict[int, Any]) -> Latents:
        return self  # frozen: a copy of the student learns from the same one
