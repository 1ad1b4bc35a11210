"""Official files: MCG-NJU/VideoMAE (V1) and OpenGVLab/VideoMAEv2, pre-trained and fine-tuned."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from torch import Tensor

from vmae.core.errors import CheckpointError
from vmae.core.model.classifier import VideoClassifier, VideoClassifierConfig
from vmae.core.model.encoder import IMAGENET_MEAN, IMAGENET_STD, VideoModel
from vmae.core.model.videomae import VideoMAE, VideoMAEConfig
from vmae.core.weights.claims import require_held
from vmae.core.weights.foreign import (
    export_state,
    import_state,
    load_pickle,
    published_decoder_heads,
    published_heads,
    refuse_own_target,
    some_keys,
)
from vmae.core.weights.models import FORMAT, Loaded, build_held
from vmae.core.weights.wrappings import find_state


def official_keys(key: str, model: VideoModel) -> tuple[str, ...]:
    """Our parameter's name in MCG-NJU/VideoMAE and OpenGVLab/VideoMAEv2 state dicts."""
    if isinstance(model, VideoClassifier):
        key = key.removeprefix("encoder.")
    return (key,)


def to_official(model: VideoModel) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The model's state dict under official names, and notes on what the format cannot say.

    Raises CheckpointError for models that the official code does not have, and for a pre-training model
    without the encoder's final norm, which its models always have.
    """
    if not isinstance(model, VideoMAE | VideoClassifier):
        raise CheckpointError(f"official files hold pre-trained models and classifiers, got {model.title}")
    if isinstance(model, VideoMAE) and not model.config.encoder_norm:
        raise CheckpointError("the official model has an encoder norm and this one was trained without it")
    refuse_own_target(model, "official code")
    c = model.config
    if c.background != "keep":
        raise CheckpointError(
            f"the official model sees whole frames and this one has background {c.background}"
        )
    notes = []
    if (c.norm_eps, c.head_norm_eps) != (1e-6, 1e-6):
        notes.append(
            f"official code normalises with eps 1e-6; this model was read with {c.norm_eps:g} in blocks and"
            f" {c.head_norm_eps:g} before the head: expect differences near 1e-5"
        )
    if c.pos_grid is not None:
        notes.append(
            f"positions are interpolated from the {c.pos_grid} grid; official code will re-index them"
        )
    return export_state(model, official_keys), tuple(notes)


def load_official_state(model: VideoModel, state: dict[str, Tensor], source: str) -> None:
    """Fill `model` from an official state dict; every key and shape must match, else CheckpointError."""
    import_state(model, state, official_keys, source)


def read_official(
    source: Path, shape: dict[str, int | None], num_heads: int | None, decoder_num_heads: int | None
) -> Loaded:
    """See `vmae.core.weights.convert.read_model`."""
    content = load_pickle(source)
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{source}: expected a dict with 'model' or 'module', got {type(content).__name__}"
        )
    state = find_state(content, source)
    header = content.get("vmae")
    if isinstance(header, dict) and header.get("format") == FORMAT:
        model = build_held(header, state, str(source))
        load_official_state(model, state, str(source))
        return Loaded(model=model, meta=header["meta"], format="official")
    args = content.get("args")
    args = vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, dict) else {}
    model, notes = _official_model(
        source, state, args, shape=shape, num_heads=num_heads, decoder_num_heads=decoder_num_heads
    )
    load_official_state(model, state, str(source))
    meta = {k: content[k] for k in ("epoch",) if isinstance(content.get(k), int)}
    return Loaded(model=model, meta=meta, format="official", notes=tuple(notes))


def _official_model(
    source: Path,
    state: dict[str, Tensor],
    args: dict[str, Any],
    *,
    shape: dict[str, int | None],
    num_heads: int | None,
    decoder_num_heads: int | None,
) -> tuple[VideoModel, list[str]]:
    """The model that the tensors' shapes, the file's args and the caller describe, in that order."""
    pretrain = "encoder.patch_embed.proj.weight" in state
    prefix = "encoder." if pretrain else ""
    embed = state.get(f"{prefix}patch_embed.proj.weight")
    if embed is None or embed.dim() != 5 or f"{prefix}blocks.0.mlp.fc1.weight" not in state:
        raise CheckpointError(
            f"{source}: not a VideoMAE checkpoint: expected encoder.patch_embed.proj.weight (pre-training) or"
            f" patch_embed.proj.weight (fine-tuned) of 5 axes, got keys {some_keys(state)}"
        )
    dim, channels, tubelet, patch, patch_w = embed.shape
    if patch != patch_w:
        raise CheckpointError(f"{source}: expected square patches, got {patch}x{patch_w}")
    notes: list[str] = []
    size = args.get("input_size")
    sizes = {"frames": args.get("num_frames"), "height": size, "width": size}
    defaults = {"frames": 16, "height": 224, "width": 224}
    assumed = {}
    clip: dict[str, int] = {}
    for name, default in defaults.items():
        value = shape[name] if shape[name] is not None else sizes[name]
        if not isinstance(value, int):
            value = assumed[name] = default
        clip[name] = value
    if assumed:
        listed = ", ".join(f"{k} {v}" for k, v in assumed.items())
        notes.append(f"the file does not say the clip's size it was trained at: assumed {listed}")
    depth = _depth(state, f"{prefix}blocks.")
    heads = num_heads or published_heads(dim, depth)
    if heads is None:
        raise CheckpointError(
            f"{source}: the file does not say its number of heads and width {dim} depth {depth} is no"
            " published size: give --num-heads"
        )
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,) * channels, (0.5,) * channels)
    if channels != 3:
        notes.append(f"{channels} channels: assumed mean and std 0.5")
    common: dict[str, Any] = {
        **clip,
        "channels": channels,
        "patch_size": patch,
        "tubelet_size": tubelet,
        "embed_dim": dim,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": state[f"{prefix}blocks.0.mlp.fc1.weight"].shape[0] / dim,
        "mean": mean,
        "std": std,
    }
    if not pretrain:
        if "head.weight" not in state:
            raise CheckpointError(
                f"{source}: expected head.weight in a fine-tuned checkpoint, got {some_keys(state)}"
            )
        tuned = VideoClassifierConfig(**common, pool="mean" if "fc_norm.weight" in state else "first")
        classes = state["head.weight"].shape[0]
        require_held(tuned, state, str(source), classes)
        return VideoClassifier(tuned, classes), notes
    if "encoder_to_decoder.weight" not in state:
        raise CheckpointError(f"{source}: expected encoder_to_decoder.weight, got {some_keys(state)}")
    decoder_dim = state["encoder_to_decoder.weight"].shape[0]
    decoder_heads = decoder_num_heads or published_decoder_heads(dim, decoder_dim)
    if decoder_heads is None:
        raise CheckpointError(
            f"{source}: the file does not say its decoder's heads and width {decoder_dim} is no published"
            " one here: give --decoder-num-heads"
        )
    target = "raw" if args.get("normlize_target") is False else "normalized"
    config = VideoMAEConfig(
        **common,
        decoder_embed_dim=decoder_dim,
        decoder_depth=_depth(state, "decoder.blocks."),
        decoder_num_heads=decoder_heads,
        target=target,
    )
    require_held(config, state, str(source))
    return VideoMAE(config), notes


def _depth(state: dict[str, Tensor], prefix: str) -> int:
    found = {int(k[len(prefix) :].split(".")[0]) for k in state if k.startswith(prefix)}
    return len(found)
