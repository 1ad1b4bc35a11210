"""What a classifier and a detector share: a linear head on the encoder, drawn small."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn

from vmae.core.errors import InputError
from vmae.core.model.encoder import EncoderConfig, VideoModel
from vmae.core.model.layers import init_weights


@dataclass(frozen=True, kw_only=True)
class HeadConfig(EncoderConfig):
    """The encoder, and the head on it."""

    dropout: float = 0.0
    """Before the head (the published scripts' fc dropout)."""
    init_scale: float = 0.001
    """The head's initial weights are scaled by it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.dropout < 1:
            raise InputError(f"expected dropout in [0, 1), got {self.dropout!r}")

    @classmethod
    def from_encoder(cls, config: EncoderConfig, **overrides: object) -> Self:
        """The configuration on another model's encoder, fields replaced by `overrides`."""
        shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(EncoderConfig)}
        return cls.from_dict(shared | overrides)


class HeadedModel(VideoModel):
    """An encoder and a linear layer to `num_classes` scores."""

    config: HeadConfig

    def __init__(self, config: HeadConfig, num_classes: int) -> None:
        super().__init__()
        if num_classes < 1:
            raise InputError(f"expected at least 1 class, got {num_classes}")
        self.config = config
        self.num_classes = num_classes

    def draw_head(self) -> None:
        """Add `dropout` and a fresh `head`: to be called where the head stands among the model's parts."""
        self.dropout = nn.Dropout(self.config.dropout)
        self.head = nn.Linear(self.config.embed_dim, self.num_classes)
        init_weights(self.head)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        with torch.no_grad():
            self.head.weight.mul_(self.config.init_scale)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "num_classes": self.num_classes}

    @classmethod
    def from_description(cls, values: dict[str, Any]) -> Self:
        return cls(cls.config_from(values), values["num_classes"])

    def load_encoder(self, source: VideoModel) -> None:
        """Take over the encoder's weights of another model of the same clip shape and widths.

        As published, the encoder's final norm is dropped where this model has none (a classifier that
        averages tokens and has `fc_norm`) and starts fresh where the other has none. Raises InputError for
        another clip shape (`vmae.core.weights.checkpoint.adapt_model`).
        """
        if self.grid != source.grid:
            raise InputError(
                f"expected the pre-trained clip shape {source.grid.clip_shape}"
                f" ({source.grid.describe()}), got {self.grid.clip_shape} ({self.grid.describe()})"
            )
        own_norm = {k: v for k, v in self.encoder.state_dict().items() if k.startswith("norm.")}
        read = source.encoder.state_dict()
        if not own_norm:
            read = {k: v for k, v in read.items() if not k.startswith("norm.")}
        self.encoder.load_state_dict(own_norm | read)
