"""Reading and writing other code's checkpoints: official V1 and V2 files, Hugging Face directories, ours.

One table of names serves both directions. Every key must match, or the error lists what is left on both
sides. Pickles are opened with `weights_only=True` and a short list of harmless extra types.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vmae.core.errors import CheckpointError, InputError
from vmae.core.model.classifier import VideoClassifier, VideoClassifierConfig
from vmae.core.model.videomae import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    SIZES,
    EncoderConfig,
    VideoMAE,
    VideoMAEConfig,
)
from vmae.core.weights.checkpoint import (
    CONFIG_NAME,
    FORMAT,
    WEIGHTS_NAME,
    build_model,
    describe_model,
    load_matching,
    load_model,
    match_dtype,
    open_safetensors,
    save_model,
)

FORMATS = ("official", "hf", "vmae")
HF_LAYOUTS = ("v4", "v5")
Model = VideoMAE | VideoClassifier


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model read from a file of any known format."""

    model: Model
    meta: dict[str, Any] = field(default_factory=dict)
    """JSON values that came with it (labels, results); what there is depends on the source."""
    format: str
    """One of FORMATS."""
    notes: tuple[str, ...] = ()
    """What was assumed or changed while reading, one sentence each, to be shown to the user."""


def read_model(
    path: str | os.PathLike[str],
    *,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    num_heads: int | None = None,
    decoder_num_heads: int | None = None,
) -> Loaded:
    """Read an official `.pth`, a Hugging Face directory or our own checkpoint into our model.

    Official files do not say the clip's size and may not say the number of heads: `frames`, `height`,
    `width` (the sizes it was *trained* with; defaults 16, 224, 224 where the file's `args` are silent),
    `num_heads` and `decoder_num_heads` fill in; heads of published widths are known. They are refused for
    the other formats, which say it themselves (`num_heads` is accepted for Hugging Face, whose conversion of
    the small models wrote a wrong number). To run a model at another
    size than it was trained at see `vmae.core.weights.checkpoint.adapt_model`.
    Raises CheckpointError for a missing or cut file, a pickle that asks for more than tensors and plain
    values, an unknown architecture, or keys that do not match.
    """
    source = Path(path)
    if not source.exists():
        raise CheckpointError(f"{source}: no such file or directory")
    shape = {"frames": frames, "height": height, "width": width}
    kind = _format_of(source)
    asked = shape | {"decoder_num_heads": decoder_num_heads}
    if kind == "vmae":
        asked["num_heads"] = num_heads
    given = [k for k, v in asked.items() if v is not None]
    if kind != "official" and given:
        raise InputError(f"{source}: expected no {', '.join(given)}: a {kind} checkpoint states it itself")
    if kind == "vmae":
        model, meta = load_model(source)
        return Loaded(model=model, meta=meta, format="vmae")
    if kind == "hf":
        return _read_hf(source, num_heads)
    return _read_official(source, shape, num_heads, decoder_num_heads)


def write_model(
    path: str | os.PathLike[str],
    model: Model,
    to: str,
    meta: dict[str, Any] | None = None,
    *,
    hf_layout: str = "v4",
    overwrite: bool = False,
) -> tuple[str, ...]:
    """Write `model` as `to` (one of FORMATS): a `.pth` file, a directory, or ours. Returns notes.

    official: `{"model": state dict, "vmae": configuration}`, loadable by MCG-NJU/VideoMAE and, with
    `weights_only=True`, by any torch. hf: `config.json`, `model.safetensors`, `preprocessor_config.json`;
    `hf_layout` "v4" writes the Hub's key names (which transformers 5 reads too), "v5" the module names of
    transformers 5. The output appears whole or not at all. Raises InputError where `path` exists without
    `overwrite`, CheckpointError where the format cannot express the model.
    """
    target = Path(path)
    if to not in FORMATS:
        raise InputError(f"expected a format among {', '.join(FORMATS)}; got {to!r}")
    if hf_layout not in HF_LAYOUTS:
        raise InputError(f"expected an hf layout among {', '.join(HF_LAYOUTS)}; got {hf_layout!r}")
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists; expected a new path (or --force)")
    meta = meta or {}
    target.parent.mkdir(parents=True, exist_ok=True)
    if to == "official":
        state, notes = to_official(model)
        _replace_file(target, {"model": state, "vmae": describe_model(model, meta)})
        return notes
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".convert-") as temporary:
        if to == "vmae" and target.suffix == ".safetensors":
            save_model(target, model, meta)
            return ()
        folder = Path(temporary) / "out"
        folder.mkdir()
        notes = ()
        if to == "vmae":
            save_model(folder, model, meta)
        else:
            notes = _write_hf(folder, model, meta, hf_layout)
        if target.exists():
            shutil.move(target, Path(temporary) / "old")
        os.replace(folder, target)
    return notes


def official_keys(key: str, model: Model) -> tuple[str, ...]:
    """Our parameter's name in MCG-NJU/VideoMAE and OpenGVLab/VideoMAEv2 state dicts."""
    if isinstance(model, VideoClassifier):
        key = key.removeprefix("encoder.")
    return (key,)


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


def hf_keys(key: str, model: Model) -> tuple[str, ...]:
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


def to_official(model: Model) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The model's state dict under official names, and notes on what the format cannot say.

    Raises CheckpointError for a pre-training model without the encoder's final norm, which the official
    model always has.
    """
    if isinstance(model, VideoMAE) and not model.config.encoder_norm:
        raise CheckpointError("the official model has an encoder norm and this one was trained without it")
    c = model.config
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
    return _export(model, official_keys), tuple(notes)


def to_hf(
    model: Model, meta: dict[str, Any] | None = None, layout: str = "v4"
) -> tuple[dict[str, Tensor], dict[str, Any], tuple[str, ...]]:
    """The model's state dict and `config.json` for transformers, and notes on what they cannot say."""
    c = model.config
    if c.pos_grid is not None:
        raise CheckpointError("transformers cannot express positions interpolated from another grid")
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
    else:
        labels = (meta or {}).get("labels") or [f"LABEL_{i}" for i in range(model.num_classes)]
        values |= {
            "architectures": ["VideoMAEForVideoClassification"],
            "use_mean_pooling": model.config.pool == "mean",
            "id2label": {str(i): str(x) for i, x in enumerate(labels)},
            "label2id": {str(x): i for i, x in enumerate(labels)},
        }
    state = _export(model, hf_keys)
    if layout == "v5":
        state = {re.sub(r"\.([qv])_bias$", _to_v5, k): v for k, v in state.items()}
    return state, values, tuple(notes)


def load_official_state(model: Model, state: dict[str, Tensor], source: str) -> None:
    """Fill `model` from an official state dict; every key and shape must match, else CheckpointError."""
    _import(model, state, official_keys, source)


def load_pickle(path: Path) -> Any:
    """`torch.load` that runs nothing: tensors, plain containers and a few harmless types only.

    Raises CheckpointError where the file is cut short or asks for anything else, naming it.
    """
    import pickle
    import warnings

    allowed = [argparse.Namespace, pathlib.PosixPath, pathlib.PurePosixPath, collections.defaultdict, dict]
    try:
        with torch.serialization.safe_globals([*allowed, *_numpy_scalars()]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; the outcome is checked here
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(e))
        if wanted is None:
            raise CheckpointError(f"{path}: not a readable checkpoint (cut short?): {_first_line(e)}") from e
        raise CheckpointError(
            f"{path}: refused: its pickle asks for {wanted[1]}, and unpickling that can run code;"
            " expected tensors, plain values and argparse.Namespace only. If you trust the file, re-save its"
            " 'model' (or 'module') entry alone with torch.save"
        ) from e
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as e:
        raise CheckpointError(f"{path}: not a readable checkpoint (cut short?): {_first_line(e)}") from e


def _format_of(source: Path) -> str:
    if source.is_dir():
        config = _read_json(source / CONFIG_NAME) if (source / CONFIG_NAME).is_file() else {}
        if config.get("model_type") is not None:
            return "hf"
        if config.get("format") == FORMAT or (source / WEIGHTS_NAME).is_file():
            return "vmae"
        raise CheckpointError(
            f"{source}: expected a Hugging Face directory (config.json with model_type) or ours"
            f" ({WEIGHTS_NAME})"
        )
    return "vmae" if source.suffix == ".safetensors" else "official"


def _read_official(
    source: Path, shape: dict[str, int | None], num_heads: int | None, decoder_num_heads: int | None
) -> Loaded:
    content = load_pickle(source)
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{source}: expected a dict with 'model' or 'module', got {type(content).__name__}"
        )
    state = next((content[k] for k in ("model", "module") if isinstance(content.get(k), dict)), content)
    state = _strip_prefixes({k: v for k, v in state.items() if isinstance(v, Tensor)})
    header = content.get("vmae")
    if isinstance(header, dict) and header.get("format") == FORMAT:
        model = build_model(header)
        load_official_state(model, state, str(source))
        return Loaded(model=model, meta=header["meta"], format="official")
    args = content.get("args")
    args = vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, dict) else {}
    config, notes = _official_config(
        source, state, args, shape=shape, num_heads=num_heads, decoder_num_heads=decoder_num_heads
    )
    if isinstance(config, VideoMAEConfig):
        model = VideoMAE(config)
    else:
        model = VideoClassifier(config, state["head.weight"].shape[0])
    load_official_state(model, state, str(source))
    meta = {k: content[k] for k in ("epoch",) if isinstance(content.get(k), int)}
    return Loaded(model=model, meta=meta, format="official", notes=tuple(notes))


def _official_config(
    source: Path,
    state: dict[str, Tensor],
    args: dict[str, Any],
    *,
    shape: dict[str, int | None],
    num_heads: int | None,
    decoder_num_heads: int | None,
) -> tuple[VideoMAEConfig | VideoClassifierConfig, list[str]]:
    """The configuration from the tensors' shapes, the file's `args` and the caller's words, in this order."""
    pretrain = "encoder.patch_embed.proj.weight" in state
    prefix = "encoder." if pretrain else ""
    embed = state.get(f"{prefix}patch_embed.proj.weight")
    if embed is None or embed.dim() != 5 or f"{prefix}blocks.0.mlp.fc1.weight" not in state:
        raise CheckpointError(
            f"{source}: not a VideoMAE checkpoint: expected encoder.patch_embed.proj.weight (pre-training) or"
            f" patch_embed.proj.weight (fine-tuned) of 5 axes, got keys {_some(state)}"
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
    heads = num_heads or _published_heads(dim, depth)
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
                f"{source}: expected head.weight in a fine-tuned checkpoint, got {_some(state)}"
            )
        return VideoClassifierConfig(**common, pool="mean" if "fc_norm.weight" in state else "first"), notes
    if "encoder_to_decoder.weight" not in state:
        raise CheckpointError(f"{source}: expected encoder_to_decoder.weight, got {_some(state)}")
    decoder_dim = state["encoder_to_decoder.weight"].shape[0]
    decoder_heads = decoder_num_heads or _published_decoder_heads(dim, decoder_dim)
    if decoder_heads is None:
        raise CheckpointError(
            f"{source}: the file does not say its decoder's heads and width {decoder_dim} is no published"
            " one here: give --decoder-num-heads"
        )
    target = "raw" if args.get("normlize_target") is False else "normalized"
    return (
        VideoMAEConfig(
            **common,
            decoder_embed_dim=decoder_dim,
            decoder_depth=_depth(state, "decoder.blocks."),
            decoder_num_heads=decoder_heads,
            target=target,
        ),
        notes,
    )


def _read_hf(source: Path, num_heads: int | None) -> Loaded:
    config = _read_json(source / CONFIG_NAME)
    if config.get("model_type") != "videomae":
        raise CheckpointError(
            f"{source}: expected model_type videomae in config.json, got {config.get('model_type')!r}"
        )
    state, notes = _hf_state(source)
    for name, wanted in (("hidden_act", "gelu"), ("qkv_bias", True)):
        if config.get(name, wanted) != wanted:
            raise CheckpointError(f"{source}: expected {name} {wanted!r}, got {config[name]!r}")
    preprocessor = source / "preprocessor_config.json"
    images = _read_json(preprocessor) if preprocessor.is_file() else {}
    if "image_mean" not in images:
        notes.append("no preprocessor_config.json with image_mean: assumed what VideoMAE was trained with")
    size = config.get("image_size", 224)
    height, width = size if isinstance(size, list) else (size, size)
    dim = config.get("hidden_size", 768)
    heads = config.get("num_attention_heads", 12)
    if num_heads is not None:
        notes.append(f"heads: {num_heads} as asked (config.json says {heads})")
        heads = num_heads
    elif (published := _published_heads(dim, config.get("num_hidden_layers", 12))) not in (None, heads):
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
    model: Model
    if "classifier.weight" in state:
        classes = state["classifier.weight"].shape[0]
        pool = "mean" if config.get("use_mean_pooling", True) else "first"
        model = VideoClassifier(VideoClassifierConfig(**common, pool=pool), classes)
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
        model = VideoMAE(pretrain)
    else:
        raise CheckpointError(
            f"{source}: expected a VideoMAEForPreTraining or VideoMAEForVideoClassification checkpoint,"
            f" got keys {_some(state)}"
        )
    _import(model, state, hf_keys, str(source))
    return Loaded(model=model, meta=meta, format="hf", notes=tuple(notes))


def _hf_state(source: Path) -> tuple[dict[str, Tensor], list[str]]:
    """All tensors of a Hugging Face directory under transformers 4 names."""
    state: dict[str, Tensor] = {}
    for file in _hf_files(source):
        part = open_safetensors(file)[0] if file.suffix == ".safetensors" else load_pickle(file)
        state |= {k: v for k, v in part.items() if isinstance(v, Tensor)}
    notes = []
    out: dict[str, Tensor] = {}
    dropped = 0
    for key, value in _strip_prefixes(state).items():
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
            parts = sorted(set(_read_json(index).get("weight_map", {}).values()))
            for part in parts:
                if Path(part).name != part or not (source / part).is_file():
                    raise CheckpointError(f"{index}: expected the part {part} beside it")
            return [source / part for part in parts]
    raise CheckpointError(f"{source}: expected {WEIGHTS_NAME} or pytorch_model.bin beside config.json")


def _write_hf(folder: Path, model: Model, meta: dict[str, Any], layout: str) -> tuple[str, ...]:
    from safetensors.torch import save_file

    state, config, notes = to_hf(model, meta, layout)
    save_file(state, folder / WEIGHTS_NAME, metadata={"format": "pt"})
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
        (folder / name).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    return notes


def _export(model: Model, names: Any) -> dict[str, Tensor]:
    c = model.config
    out: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        tensor = value.detach().cpu()
        if key.endswith("patch_embed.proj.weight"):
            # [D, (p0 p1 p2 c)] to the convolution's (D, C, p0, p1, p2)
            tensor = tensor.view(-1, c.tubelet_size, c.patch_size, c.patch_size, c.channels)
            tensor = tensor.permute(0, 4, 1, 2, 3)
        keys = names(key, model)
        for name, part in zip(keys, tensor.chunk(len(keys)), strict=True):
            out[name] = part.contiguous().clone()
    return out


def _import(model: Model, state: dict[str, Tensor], names: Any, source: str) -> None:
    """Fill `model` from `state` under the source's names; every key must match on both sides."""
    wanted = {key: names(key, model) for key in model.state_dict()}
    expected = {name for keys in wanted.values() for name in keys}
    missing, unknown = sorted(expected - state.keys()), sorted(state.keys() - expected)
    if missing or unknown:
        raise CheckpointError(
            f"{source}: keys do not match; missing in the file: {_list(missing)}; unknown to the model:"
            f" {_list(unknown)}"
        )
    own: dict[str, Tensor] = {}
    for key, keys in wanted.items():
        tensor = torch.cat([state[k] for k in keys]) if len(keys) > 1 else state[keys[0]]
        if key.endswith("patch_embed.proj.weight") and tensor.dim() == 5:
            tensor = tensor.permute(0, 2, 3, 4, 1).flatten(1)
        own[key] = tensor
    match_dtype(model, own, source)
    load_matching(model, own, source)


def _strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keys without what DDP, DeepSpeed and torch.compile put before or between names."""
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        name = re.sub(r"(^|\.)_orig_mod\.", r"\1", key)
        while name.startswith("module."):
            name = name.removeprefix("module.").removeprefix("_orig_mod.")
        out[name] = value
    return out


def _published_heads(dim: int, depth: int) -> int | None:
    for size in SIZES:
        c = EncoderConfig.from_size(size)
        if size != "tiny" and (c.embed_dim, c.depth) == (dim, depth):
            return c.num_heads
    return None


def _published_decoder_heads(dim: int, decoder_dim: int) -> int | None:
    if dim == 1280 and decoder_dim == 512:  # V2's huge
        return 8
    for size in SIZES:
        c = VideoMAEConfig.from_size(size)
        if size != "tiny" and (c.embed_dim, c.decoder_embed_dim) == (dim, decoder_dim):
            return c.decoder_num_heads
    return None


def _depth(state: dict[str, Tensor], prefix: str) -> int:
    found = {int(k[len(prefix) :].split(".")[0]) for k in state if k.startswith(prefix)}
    return len(found)


def _replace_file(target: Path, content: dict[str, Any]) -> None:
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".convert-", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as f:
            torch.save(content, f)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{path}: expected JSON: {_first_line(e)}") from e
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(values).__name__}")
    return values


def _numpy_scalars() -> list[Any]:
    # Losses and learning rates that training scripts put beside the weights.
    import numpy as np

    scalar = getattr(np, "_core", None) or np.core
    return [scalar.multiarray.scalar, np.dtype, *{type(np.dtype(t)) for t in "fdlqi?"}]


def _to_v4(match: re.Match[str]) -> str:
    return f".attention.{match[1][0]}_bias"


def _to_v5(match: re.Match[str]) -> str:
    return {"q": ".query.bias", "v": ".value.bias"}[match[1]]


def _some(state: Iterable[str]) -> str:
    return _list(sorted(state)[:6])


def _list(names: list[str]) -> str:
    return ", ".join(names) if names else "none"


def _first_line(error: BaseException) -> str:
    """The error's first sentence; unpickling a text file raises bare numbers, which say nothing."""
    text = str(error).strip()
    if not any(c.isalpha() for c in text):
        return "not a file of torch.save"
    return text.splitlines()[0].split(". ")[0][:200]
