"""The implementations that ours is measured against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vmae.core.errors import InputError
from vmae.core.model.videomae import VideoMAEConfig


def transformers_model(config: VideoMAEConfig, attention: str = "sdpa") -> Any:
    """Hugging Face transformers' VideoMAEForPreTraining of the same sizes, random weights.

    attention: its `attn_implementation`, "eager" or "sdpa". Raises InputError where transformers is missing.
    """
    try:
        import transformers
    except ImportError as e:
        raise InputError("this compares with transformers, which is not installed") from e
    shared: Any = transformers  # its own annotations lag behind what its configs take
    return shared.VideoMAEForPreTraining(
        shared.VideoMAEConfig(
            image_size=[config.height, config.width],
            patch_size=config.patch_size,
            num_channels=config.channels,
            num_frames=config.frames,
            tubelet_size=config.tubelet_size,
            hidden_size=config.embed_dim,
            num_hidden_layers=config.depth,
            num_attention_heads=config.num_heads,
            intermediate_size=config.mlp_dim,
            decoder_hidden_size=config.decoder_embed_dim,
            decoder_num_hidden_layers=config.decoder_depth,
            decoder_num_attention_heads=config.decoder_num_heads,
            decoder_intermediate_size=config.decoder_mlp_dim,
            use_mean_pooling=False,
            layer_norm_eps=config.norm_eps,
            attn_implementation=attention,
        )
    )


def peer_pixels(config: VideoMAEConfig, video: Tensor) -> Tensor:
    """What transformers reads of uint8 clips [B, C, T, H, W]: normalised floats [B, T, C, H, W].

    Made before the clock runs, which spares it work.
    """
    mean, std = (torch.tensor(v, device=video.device).view(-1, 1, 1, 1) for v in (config.mean, config.std))
    return ((video.float() / 255 - mean) / std).transpose(1, 2).contiguous()
