"""The implementations that ours is measured against."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vmae.core.errors import InputError
from vmae.core.model.videomae import VideoMAEConfig
from vmae.kernels.reference import patch_targets


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


def official_model(config: VideoMAEConfig, clone: Path) -> Any:
    """The pre-training model of a clone of the official code (MCG-NJU/VideoMAE), random weights.

    Raises InputError where the clone has no such model, where what it imports (timm) is missing, and for
    sizes that it cannot have: it reads square clips of 16 frames.
    """
    c = config
    if (c.frames, c.height) != (16, c.width):
        raise InputError(
            f"the official model takes square clips of 16 frames, got {c.frames} of {c.width}x{c.height}"
        )
    if not (clone / "modeling_pretrain.py").is_file():
        raise InputError(f"expected a clone of the official code with modeling_pretrain.py, got {clone}")
    sys.path.insert(0, str(clone))
    try:
        kind = importlib.import_module("modeling_pretrain").PretrainVisionTransformer
    except (ImportError, AttributeError) as e:
        raise InputError(f"{clone} cannot be imported: {e}") from e
    finally:
        sys.path.remove(str(clone))
    return kind(
        img_size=c.width,
        patch_size=c.patch_size,
        encoder_embed_dim=c.embed_dim,
        encoder_depth=c.depth,
        encoder_num_heads=c.num_heads,
        decoder_num_classes=c.grid.patch_dim,
        decoder_embed_dim=c.decoder_embed_dim,
        decoder_depth=c.decoder_depth,
        decoder_num_heads=c.decoder_num_heads,
        mlp_ratio=c.mlp_ratio,
        qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=c.norm_eps),
        tubelet_size=c.tubelet_size,
    )


def official_loss(model: Any, config: VideoMAEConfig, video: Tensor, masked: Tensor) -> Callable[[], Tensor]:
    """What a step of the official `engine_for_pretraining.py` computes: labels of all patches, then the loss.

    video: uint8 [B, C, T, H, W], normalised before the clock runs, as its loader does. masked: bool [B, N].
    """
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (config.mean, config.std))
    clips = (video.float() / 255 - mean) / std
    every = torch.arange(config.grid.num_tokens).expand(len(video), -1)

    def loss() -> Tensor:
        with torch.no_grad():
            labels = patch_targets(
                clips * std + mean, every, patch_size=config.patch_size, tubelet_size=config.tubelet_size
            )
            labels = labels[masked].view(len(video), -1, labels.shape[2])
        found: Tensor = nn.functional.mse_loss(model(clips, masked), labels)
        return found

    return loss
