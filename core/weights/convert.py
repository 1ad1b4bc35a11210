"""Reading and writing checkpoints of every known format: official files, Hugging Face directories, ours.

One table of names serves both directions. Every key must match, or the error lists what is left on both
sides. Pickles are opened with `weights_only=True` and a short list of harmless extra types.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from vmae.core.errors import CheckpointError, InputError
from vmae.core.files import replacing
from vmae.core.model.encoder import VideoModel
from vmae.core.weights.checkpoint import CONFIG_NAME, WEIGHTS_NAME, load_model, save_model
from vmae.core.weights.foreign import read_json
from vmae.core.weights.hf import LAYOUTS, read_hf, write_hf
from vmae.core.weights.models import FORMAT, Loaded, describe_model
from vmae.core.weights.official import read_official, to_official

FORMATS = ("official", "hf", "vmae")


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
    if not (source.is_file() or source.is_dir()):
        raise CheckpointError(f"{source}: expected a file or a folder, got a pipe, a socket or a device")
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
        return read_hf(source, num_heads)
    return read_official(source, shape, num_heads, decoder_num_heads)


def write_model(
    path: str | os.PathLike[str],
    model: VideoModel,
    to: str,
    meta: dict[str, Any] | None = None,
    *,
    hf_layout: str = "v4",
    overwrite: bool = False,
) -> tuple[str, ...]:
    """Write `model` as `to` (one of FORMATS): a `.pth` file, a directory, or ours. Returns notes.

    official: `{"model": state dict, "vmae": configuration}`, loadable by MCG-NJU/VideoMAE and, with
    `weights_only=True`, by any torch. hf: `config.json`, `model.safetensors`, `preprocessor_config.json`;
    `hf_layout` "v4" writes the Hub's key names (exact in transformers 5.0 and from 5.18 on; 5.12 to 5.15 load
    them wrongly without an exception), "v5" the module names of transformers 5 (exact from 5.12 on; wrong in
    5.0): docs/huggingface.md. The output appears whole or not at all. Raises InputError where `path` exists
    without `overwrite`, CheckpointError where the format cannot express the model.
    """
    target = Path(path)
    if to not in FORMATS:
        raise InputError(f"expected a format among {', '.join(FORMATS)}; got {to!r}")
    if hf_layout not in LAYOUTS:
        raise InputError(f"expected an hf layout among {', '.join(LAYOUTS)}; got {hf_layout!r}")
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists; expected a new path (or --force)")
    meta = meta or {}
    target.parent.mkdir(parents=True, exist_ok=True)
    if to == "official":
        state, notes = to_official(model)
        with replacing(target, durable=True) as unfinished:
            torch.save({"model": state, "vmae": describe_model(model, meta)}, unfinished)
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
            notes = write_hf(folder, model, meta, hf_layout)
        if target.exists():
            shutil.move(target, Path(temporary) / "old")
        os.replace(folder, target)
    return notes


def _format_of(source: Path) -> str:
    if source.is_dir():
        config = read_json(source / CONFIG_NAME) if (source / CONFIG_NAME).is_file() else {}
        if config.get("model_type") is not None:
            return "hf"
        if config.get("format") == FORMAT or (source / WEIGHTS_NAME).is_file():
            return "vmae"
        raise CheckpointError(
            f"{source}: expected a Hugging Face directory (config.json with model_type) or ours"
            f" ({WEIGHTS_NAME})"
        )
    return "vmae" if source.suffix == ".safetensors" else "official"
