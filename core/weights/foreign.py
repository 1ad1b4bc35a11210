"""What reading and writing other code's checkpoints has in common: safe pickles, names and tensors."""

from __future__ import annotations

import argparse
import collections
import functools
import json
import pathlib
import re
import types
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

    Those types are known under every name that they had in some version of Python and numpy. Raises
    CheckpointError where the file is cut short or asks for anything else, naming it.
    """
    import pickle
    import warnings

    try:
        with torch.serialization.safe_globals(_harmless()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; the outcome is checked here
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        wanted = re.search(r"GLOBAL ([\w.]+)|got <class '([\w.]+)'>|unrecognized function (.+)", str(e))
        if wanted is None:
            raise CheckpointError(f"{path}: not a readable checkpoint (cut short?): {_met(e)}") from e
        raise CheckpointError(
            f"{path}: refused: its pickle asks for {wanted[wanted.lastindex or 0]}, and unpickling that can"
            " run code; expected tensors, plain values and argparse.Namespace only. If you trust the file,"
            " re-save its 'model' (or 'module', 'state_dict') entry alone with torch.save"
        ) from e
    except Exception as e:
        # A damaged pickle can make its reader raise anything.
        raise CheckpointError(f"{path}: not a readable checkpoint (cut short?): {first_line(e)}") from e


def _met(error: Exception) -> str:
    """What torch's reader stumbled over: it stands after a page of advice."""
    text = str(error).partition("WeightsUnpickler error:")[2].strip()
    return text.splitlines()[0][:200] if text else first_line(error)


@functools.cache
def _harmless() -> list[Any]:
    """Types that hold values and run nothing, each with the name a pickle has for it.

    What training scripts put beside the weights: arguments, paths, losses, learning rates, states of random
    generators.
    """
    import numpy as np

    core = getattr(np, "_core", None) or np.core
    found: list[Any] = [argparse.Namespace, types.SimpleNamespace, collections.defaultdict, dict, bytes]
    for python in ("pathlib", "pathlib._local"):  # Python 3.13 has them in the latter
        for name in ("PurePath", "PosixPath", "PurePosixPath", "Path"):
            found.append((pathlib.PurePosixPath, f"{python}.{name}"))
        for name in ("WindowsPath", "PureWindowsPath"):
            found.append((pathlib.PureWindowsPath, f"{python}.{name}"))
    for numpy in ("numpy.core", "numpy._core"):  # numpy 1, numpy 2
        found.append((core.multiarray.scalar, f"{numpy}.multiarray.scalar"))
        found.append((core.multiarray._reconstruct, f"{numpy}.multiarray._reconstruct"))
    plain = "?bhilqpBHILQPefdgFDGSU"  # numbers, bytes and text: no objects
    return [*found, np.ndarray, np.dtype, *{type(np.dtype(code)) for code in plain}]


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
    except (OSError, ValueError, RecursionError) as e:
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
