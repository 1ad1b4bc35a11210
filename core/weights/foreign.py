"""What reading and writing other code's checkpoints has in common: safe pickles, names and tensors."""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vmae.core.errors import CheckpointError
from vmae.core.model.encoder import SIZES, EncoderConfig, VideoModel
from vmae.core.model.videomae import VideoMAE, VideoMAEConfig
from vmae.core.weights.checkpoint import load_matching, match_dtype

Names = Callable[[str, VideoModel], tuple[str, ...]]
"""Our parameter's name in a model -> the other code's, several where it keeps the parts apart."""


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
            raise CheckpointError(f"{path}: not a readable checkpoint (cut short?): {first_line(e)}") from e
        raise CheckpointError(
            f"{path}: refused: its pickle asks for {wanted[1]}, and unpickling that can run code;"
            " expected tensors, plain values and argparse.Namespace only. If you trust the file, re-save its"
            " 'model' (or 'module') entry alone with torch.save"
        ) from e
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as e:
        raise CheckpointError(f"{path}: not a readable checkpoint (cut short?): {first_line(e)}") from e


def _numpy_scalars() -> list[Any]:
    # Losses and learning rates that training scripts put beside the weights.
    import numpy as np

    scalar = getattr(np, "_core", None) or np.core
    return [scalar.multiarray.scalar, np.dtype, *{type(np.dtype(t)) for t in "fdlqi?"}]


def export_state(model: VideoModel, names: Names) -> dict[str, Tensor]:
    """The model's tensors on the CPU under the other code's names; convolutions in their own shape."""
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


def import_state(model: VideoModel, state: dict[str, Tensor], names: Names, source: str) -> None:
    """Fill `model` from `state` under the source's names; every key must match on both sides."""
    wanted = {key: names(key, model) for key in model.state_dict()}
    expected = {name for keys in wanted.values() for name in keys}
    missing, unknown = sorted(expected - state.keys()), sorted(state.keys() - expected)
    if missing or unknown:
        raise CheckpointError(
            f"{source}: keys do not match; missing in the file: {list_names(missing)}; unknown to the model:"
            f" {list_names(unknown)}"
        )
    own: dict[str, Tensor] = {}
    for key, keys in wanted.items():
        tensor = torch.cat([state[k] for k in keys]) if len(keys) > 1 else state[keys[0]]
        if key.endswith("patch_embed.proj.weight") and tensor.dim() == 5:
            tensor = tensor.permute(0, 2, 3, 4, 1).flatten(1)
        own[key] = tensor
    match_dtype(model, own, source)
    load_matching(model, own, source)


def refuse_own_target(model: VideoModel, code: str) -> None:
    """Raise CheckpointError for a model whose decoder predicts something that the other code cannot train."""
    if isinstance(model, VideoMAE) and not model.config.predicts_pixels:
        raise CheckpointError(
            f"{code} predicts pixels; this model was trained to predict {model.config.target}"
        )


def strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keys without what DDP, DeepSpeed and torch.compile put before or between names."""
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        name = re.sub(r"(^|\.)_orig_mod\.", r"\1", key)
        while name.startswith("module."):
            name = name.removeprefix("module.").removeprefix("_orig_mod.")
        out[name] = value
    return out


def published_heads(dim: int, depth: int) -> int | None:
    """Heads of the published encoder of this width and depth, None where there is none."""
    for size in SIZES:
        c = EncoderConfig.from_size(size)
        if size != "tiny" and (c.embed_dim, c.depth) == (dim, depth):
            return c.num_heads
    return None


def published_decoder_heads(dim: int, decoder_dim: int) -> int | None:
    """Heads of the published decoder of these widths, None where there is none."""
    if dim == 1280 and decoder_dim == 512:  # V2's huge
        return 8
    for size in SIZES:
        c = VideoMAEConfig.from_size(size)
        if size != "tiny" and (c.embed_dim, c.decoder_embed_dim) == (dim, decoder_dim):
            return c.decoder_num_heads
    return None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; CheckpointError for anything else."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{path}: expected JSON: {first_line(e)}") from e
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(values).__name__}")
    return values


def some_keys(state: Iterable[str]) -> str:
    """The first names of a state dict, for an error's sentence."""
    return list_names(sorted(state)[:6])


def list_names(names: list[str]) -> str:
    """Names with commas, or `none`."""
    return ", ".join(names) if names else "none"


def first_line(error: BaseException) -> str:
    """The error's first sentence; unpickling a text file raises bare numbers, which say nothing."""
    text = str(error).strip()
    if not any(c.isalpha() for c in text):
        return "not a file of torch.save"
    return text.splitlines()[0].split(". ")[0][:200]
