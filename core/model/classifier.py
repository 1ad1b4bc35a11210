"""Clip classification on the VideoMAE encoder."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from vmae.core.errors import InputError
from vmae.core.model.encoder import Encoder, all_indices
from vmae.core.model.head import HeadConfig, HeadedModel

POOLS = ("mean", "first")


@dataclass(frozen=True, kw_only=True)
class VideoClassifierConfig(HeadConfig):
    """The encoder and how its tokens become class scores."""

    pool: str = "mean"
    """"mean": mean of all tokens, then fc_norm (published). "first": the encoder's norm, then token 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool not in POOLS:
            raise InputError(f"expected pool among {', '.join(POOLS)}; got {self.pool!r}")


class VideoClassifier(HeadedModel):
    """Video to logits: encoder over all tokens, mean, `fc_norm`, dropout, `head`.

    There is no class token (MCG-NJU/VideoMAE, `modeling_finetune.py`).
    """

    title = "a classifier"
    config_class = VideoClassifierConfig
    config: VideoClassifierConfig

    def __init__(self, config: VideoClassifierConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        mean = config.pool == "mean"
        self.encoder = Encoder(config, final_norm=not mean)
        self.fc_norm = nn.LayerNorm(config.embed_dim, eps=config.head_norm_eps) if mean else nn.Identity()
        self.draw_head()

    def features(self, video: Tensor) -> Tensor:
        """[B, C, T, H, W] to [B, D], before dropout and head."""
        self.grid.check_video(video)
        tokens = self.encoder(video, all_indices(video, self.grid))  # [B, N, D]
        return self.fc_norm(tokens.mean(1)) if self.config.pool == "mean" else tokens[:, 0]

    def forward(self, video: Tensor) -> Tensor:
        """Class scores [B, num_classes] before softmax. Raises InputError on a video of another shape."""
        return self.head(self.dropout(self.features(video)))
