"""Clip classification on the VideoMAE encoder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from vmae.core.errors import InputError
from vmae.core.model.encoder import Encoder, EncoderConfig, VideoModel, all_indices
from vmae.core.model.layers import init_weights

POOLS = ("mean", "first")


@dataclass(frozen=True, kw_only=True)
class VideoClassifierConfig(EncoderConfig):
    """The encoder and how its tokens become class scores."""

    pool: str = "mean"
    """"mean": mean of all tokens, then fc_norm (published). "first": the encoder's norm, then token 0."""
    dropout: float = 0.0
    """Before the head (the published scripts' fc dropout)."""
    init_scale: float = 0.001
    """The head's initial weights are scaled by it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool not in POOLS:
            raise InputError(f"expected pool among {', '.join(POOLS)}; got {self.pool!r}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"expected dropout in [0, 1), got {self.dropout!r}")

    @classmethod
    def from_encoder(cls, config: EncoderConfig, **overrides: object) -> VideoClassifierConfig:
        """The classifier's configuration on another model's encoder, fields replaced by `overrides`."""
        shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(EncoderConfig)}
        return cls.from_dict(shared | overrides)


class VideoClassifier(VideoModel):
    """Video to logits: encoder over all tokens, mean, `fc_norm`, dropout, `head`.

    There is no class token (MCG-NJU/VideoMAE, `modeling_finetune.py`).
    """

    title = "a classifier"
    config_class = VideoClassifierConfig
    config: VideoClassifierConfig

    def __init__(self, config: VideoClassifierConfig, num_classes: int) -> None:
        super().__init__()
        if num_classes < 1:
            raise InputError(f"expected at least 1 class, got {num_classes}")
        self.config = config
        self.num_classes = num_classes
        mean = config.pool == "mean"
        self.encoder = Encoder(config, final_norm=not mean)
        self.fc_norm = nn.LayerNorm(config.embed_dim, eps=config.head_norm_eps) if mean else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.embed_dim, num_classes)
        init_weights(self.head)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        with torch.no_grad():
            self.head.weight.mul_(config.init_scale)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "num_classes": self.num_classes}

    @classmethod
    def from_description(cls, values: dict[str, Any]) -> Self:
        return cls(VideoClassifierConfig.from_dict(values["config"]), values["num_classes"])

    def features(self, video: Tensor) -> Tensor:
        """[B, C, T, H, W] to [B, D], before dropout and head."""
        self.grid.check_video(video)
        tokens = self.encoder(video, all_indices(video, self.grid))  # [B, N, D]
        return self.fc_norm(tokens.mean(1)) if self.config.pool == "mean" else tokens[:, 0]

    def forward(self, video: Tensor) -> Tensor:
        """Class scores [B, num_classes] before softmax. Raises InputError on a video of another shape."""
        return self.head(self.dropout(self.features(video)))

    def load_encoder(self, source: VideoModel) -> None:
        """Take over the encoder's weights of another model of the same clip shape and widths.

        The encoder's final norm is dropped where tokens are averaged and `fc_norm` starts fresh, as
        published. Raises InputError for another clip shape (`vmae.core.weights.checkpoint.adapt_model`).
        """
        if self.grid != source.grid:
            raise InputError(
                f"expected the pre-trained clip shape {source.grid.clip_shape}"
                f" ({source.grid.describe()}), got {self.grid.clip_shape} ({self.grid.describe()})"
            )
        state = source.encoder.state_dict()
        if self.config.pool == "mean":
            state = {k: v for k, v in state.items() if not k.startswith("norm.")}
        self.encoder.load_state_dict(state)
