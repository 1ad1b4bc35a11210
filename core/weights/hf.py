"""Hugging Face directories of transformers' VideoMAE, versions 4 and 5, and their files on the Hub."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from vmae.core.errors import CheckpointError
from vmae.core.files import replacing, write_text
from vmae.core.model.classifier import VideoClassifier, VideoClassifierConfig
from vmae.core.model.encoder import IMAGENET_MEAN, IMAGENET_STD, VideoModel
from vmae.core.model.videomae import VideoMAE, VideoMAEConfig
from vmae.core.weights.checkpoint import CONFIG_NAME, WEIGHTS_NAME, open_safetensors
from vmae.core.weights.claims import require_held
from vmae.core.weights.foreign import (
    export_state,
    import_state,
    load_pickle,
    published_heads,
    read_json,
    refuse_own_target,
    some_keys,
)
from vmae.core.weights.models import Loaded
from vmae.core.weights.wrappings import strip_prefixes

LAYOUTS = ("v4", "v5")
_HF_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.q_bias": "attention.attention.q_bias",
    "attn.v_bias": "attention.attention.v_bias",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_BLOCK_KEY = re.compile(r"(encoder|decoder)\.blocks\.(\d+)\.(.+)")


def hf_keys(key: str, model: VideoModel) -> tuple[str, ...]:
    """Our parameter's name(s) in Hugging Face files (transformers 4 and Hub names), q, k, v apart."""
    match = _BLOCK_KEY.fullmatch(key)
    if match is None:
        head = "classifier" if isinstance(model, VideoClassifier) else "head"
        for ours, theirs in (
            ("encoder.patch_embed.proj", "videomae.embeddings.patch_embeddings.projection"),
            ("encoder.norm", "videomae.layernorm"),
            ("head", head),
        ):
            if key.startswith(ours + "."):
                return (theirs + key.removeprefix(ours),)
        return (key,)
    part, index, rest = match.groups()
    prefix = f"{'videomae.encoder.layer' if part == 'encoder' else 'decoder.decoder_layers'}.{index}."
    if rest == "attn.qkv.weight":
        return tuple(f"{prefix}attention.attention.{x}.weight" for x in ("query", "key", "value"))
    for ours, theirs in _HF_BLOCK.items():
        if rest == ours or rest.startswith(ours + "."):
            return (prefix + theirs + rest.removeprefix(ours),)
    raise AssertionError(key)


def to_hf(
    model: VideoModel, meta: dict[str, Any] | None = None, layout: str = "v4"
) -> tuple[dict[str, Tensor], dict[str, Any], tuple[str, ...]]:
    """The model's state dict and `config.json` for transformers, and notes on what they cannot say."""
    refuse_own_target(model, "transformers")
    c = model.config
    if c.pos_grid is not None:
        raise CheckpointError("transformers cannot express positions interpolated from another grid")
    if c.background != "keep":
        raise CheckpointError(f"transformers cannot express a model with background {c.background}")
    values: dict[str, Any] = {
        "model_type": "videomae",
        "image_size": c.height if c.height == c.width else [c.height, c.width],
        "patch_size": c.patch_size,
        "num_channels": c.channels,
        "num_frames": c.frames,
        "tubelet_size": c.tubelet_size,
        "hidden_size": c.embed_dim,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.num_heads,
        "intermediate_size": c.mlp_dim,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": c.norm_eps,
        "qkv_bias": True,
    }
    notes = []
    if c.head_norm_eps != 1e-5:
        name = "decoder.norm" if isinstance(model, VideoMAE) else "fc_norm"
        notes.append(f"transformers fixes the eps of {name} at 1e-5 (here {c.head_norm_eps:g})")
    if isinstance(model, VideoMAE):
        c = model.config
        values |= {
            "architectures": ["VideoMAEForPreTraining"],
            "use_mean_pooling": not c.encoder_norm,
            "decoder_hidden_size": c.decoder_embed_dim,
            "decoder_num_hidden_layers": c.decoder_depth,
            "decoder_num_attention_heads": c.decoder_num_heads,
            "decoder_intermediate_size": c.decoder_mlp_dim,
            "norm_pix_loss": c.target == "normalized",
        }
        if c.loss != "mse":
            notes.append(f"transformers trains with mse; this model's loss is {c.loss}")
    elif isinstance(model, VideoClassifier):
        labels = (meta or {}).get("labels") or [f"LABEL_{i}" for i in range(model.num_classes)]
        values |= {
            "architectures": ["VideoMAEForVideoClassification"],
            "use_mean_pooling": model.config.pool == "mean",
            "id2label": {str(i): str(x) for i, x in enumerate(labels)},
            "label2id": {str(x): i for i, x in enumerate(labels)},
        }
    else:
        raise CheckpointError(f"transformers knows pre-trained models and classifiers, got {model.title}")
    state = export_state(model, hf_keys)
    if layout == "v5":
        state = {re.sub(r"\.([qv])_bias$", _to_v5, k): v for k, v in state.items()}
    return state, values, tuple(notes)


def read_hf(source: Path, num_heads: int | None) -> Loaded:
    """See `vmae.core.weights.convert.read_model`."""
    config = read_json(source / CONFIG_NAME)
    if config.get("model_type") != "videomae":
        raise CheckpointError(
            f"{source}: expected model_type videomae in config.json, got {config.get('model_type')!r}"
        )
    state, notes = _hf_state(source)
    for name, wanted in (("hidden_act", "gelu"), ("qkv_bias", True)):
        if config.get(name, wanted) != wanted:
            raise CheckpointError(f"{source}: expected {name} {wanted!r}, got {config[name]!r}")
    preprocessor = source / "preprocessor_config.json"
    images = read_json(preprocessor) if preprocessor.is_file() else {}
    if "image_mean" not in images:
        notes.append("no preprocessor_config.json with image_mean: assumed what VideoMAE was trained with")
    size = config.get("image_size", 224)
    height, width = size if isinstance(size, list) else (size, size)
    dim = config.get("hidden_size", 768)
    heads = config.get("num_attention_heads", 12)
    if num_heads is not None:
        notes.append(f"heads: {num_heads} as asked (config.json says {heads})")
        heads = num_heads
    elif (published := published_heads(dim, config.get("num_hidden_layers", 12))) not in (None, heads):
        notes.append(
            f"config.json says {heads} heads where the published model of width {dim} has {published}; taken"
            f" as it says (--num-heads {published} to override)"
        )
    channels = config.get("num_channels", 3)
    default_mean, default_std = (
        (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,) * channels, (0.5,) * channels)
    )
    common: dict[str, Any] = {
        "frames": config.get("num_frames", 16),
        "height": height,
        "width": width,
        "channels": channels,
        "patch_size": config.get("patch_size", 16),
        "tubelet_size": config.get("tubelet_size", 2),
        "embed_dim": dim,
        "depth": config.get("num_hidden_layers", 12),
        "num_heads": heads,
        "mlp_ratio": config.get("intermediate_size", 3072) / dim,
        "norm_eps": config.get("layer_norm_eps", 1e-12),
        "head_norm_eps": 1e-5,
        "mean": tuple(images.get("image_mean", default_mean)),
        "std": tuple(images.get("image_std", default_std)),
    }
    meta: dict[str, Any] = {}
    model: VideoModel
    if "classifier.weight" in state:
        classes = state["classifier.weight"].shape[0]
        pool = "mean" if config.get("use_mean_pooling", True) else "first"
        tuned = VideoClassifierConfig(**common, pool=pool)
        require_held(tuned, state, str(source), classes)
        model = VideoClassifier(tuned, classes)
        names = config.get("id2label") or {}
        if len(names) == classes:
            meta["labels"] = [names[k] for k in sorted(names, key=int)]
    elif "encoder_to_decoder.weight" in state:
        decoder_dim = config.get("decoder_hidden_size", 384)
        decoder_mlp = config.get("decoder_intermediate_size", 1536)
        pretrain = VideoMAEConfig(
            **common,
            decoder_embed_dim=decoder_dim,
            decoder_depth=config.get("decoder_num_hidden_layers", 4),
            decoder_num_heads=config.get("decoder_num_attention_heads", 6),
            target="normalized" if config.get("norm_pix_loss", True) else "raw",
            encoder_norm="videomae.layernorm.weight" in state,
        )
        if pretrain.decoder_mlp_dim != decoder_mlp:
            raise CheckpointError(
                f"{source}: expected one MLP ratio for encoder and decoder (a decoder width of"
                f" {pretrain.decoder_mlp_dim}), got {decoder_mlp}"
            )
        require_held(pretrain, state, str(source))
        model = VideoMAE(pretrain)
    else:
        raise CheckpointError(
            f"{source}: expected a VideoMAEForPreTraining or VideoMAEForVideoClassification checkpoint,"
            f" got keys {some_keys(state)}"
        )
    import_state(model, state, hf_keys, str(source))
    return Loaded(model=model, meta=meta, format="hf", notes=tuple(notes))


def _hf_state(source: Path) -> tuple[dict[str, Tensor], list[str]]:
    """All tensors of a Hugging Face directory under transformers 4 names."""
    state: dict[str, Tensor] = {}
    for file in _hf_files(source):
        part = open_safetensors(file)[0] if file.suffix == ".safetensors" else load_pickle(file)
        if not isinstance(part, dict):
            raise CheckpointError(f"{file}: expected a dict of tensors, got {type(part).__name__}")
        state |= {k: v for k, v in part.items() if isinstance(v, Tensor)}
    notes = []
    out: dict[str, Tensor] = {}
    dropped = 0
    for key, value in strip_prefixes(state).items():
        name = re.sub(r"\.attention\.(query|value)\.bias$", _to_v4, key)
        if name.endswith(".attention.attention.key.bias"):
            dropped += 1
        elif name.endswith(("position_embeddings", "position_ids")):
            # Fixed sinusoids that some versions save: computed here.
            continue
        else:
            out[name] = value
    if dropped:
        # It adds the same number to a query's score of every key, and softmax ignores that.
        notes.append(f"dropped {dropped} key biases: they have no effect on attention")
    return out, notes


def _hf_files(source: Path) -> list[Path]:
    for name in (WEIGHTS_NAME, "pytorch_model.bin"):
        if (source / name).is_file():
            return [source / name]
        index = source / f"{name}.index.json"
        if index.is_file():
            parts = sorted(set(read_json(index).get("weight_map", {}).values()))
            for part in parts:
                if Path(part).name != part or not (source / part).is_file():
                    raise CheckpointError(f"{index}: expected the part {part} beside it")
            return [source / part for part in parts]
    raise CheckpointError(f"{source}: expected {WEIGHTS_NAME} or pytorch_model.bin beside config.json")


def write_hf(folder: Path, model: VideoModel, meta: dict[str, Any], layout: str) -> tuple[str, ...]:
    """Write a directory that transformers loads; notes on what it cannot say."""
    from safetensors.torch import save_file

    state, config, notes = to_hf(model, meta, layout)
    with replacing(folder / WEIGHTS_NAME) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
    c = model.config
    images: dict[str, Any] = {
        "image_processor_type": "VideoMAEImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": c.height},
        "do_center_crop": True,
        "crop_size": {"height": c.height, "width": c.width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": c.mean is not None,
        "image_mean": list(c.mean or (0.0,) * c.channels),
        "image_std": list(c.std or (1.0,) * c.channels),
    }
    for name, values in ((CONFIG_NAME, config), ("preprocessor_config.json", images)):
        write_text(folder / name, json.dumps(values, indent=2, sort_keys=True) + "\n")
    return notes


def _to_v4(match: re.Match[str]) -> str:
    return f".attention.{match[1][0]}_bias"


def _to_v5(match: re.Match[str]) -> str:
    return {"q": ".query.bias", "v": ".value.bias"}[match[1]]
