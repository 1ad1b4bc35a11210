"""Our checkpoint format: safetensors with a JSON configuration."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from vmae.core.classifier import VideoClassifier, VideoClassifierConfig
from vmae.core.errors import CheckpointError
from vmae.core.videomae import VideoMAE, VideoMAEConfig

FORMAT = "vmae-1"
WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"


def save_model(path: str | os.PathLike[str], model: nn.Module, meta: dict[str, Any] | None = None) -> Path:
    """Write a VideoMAE or VideoClassifier with its configuration and `meta` (JSON values).

    A `path` ending in `.safetensors` becomes one file, which carries the configuration in its header; any
    other becomes a directory with `model.safetensors` (the same file) and a readable `config.json`. Writes
    are atomic (write, fsync, rename). Returns the path of the safetensors file.
    """
    from safetensors.torch import save_file

    target = Path(path)
    single = target.suffix == ".safetensors"
    folder = target.parent if single else target
    folder.mkdir(parents=True, exist_ok=True)
    file = target if single else target / WEIGHTS_NAME
    header = _describe(model, meta or {})
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".save-", suffix=".tmp")
    os.close(handle)
    try:
        save_file(state, temporary, metadata={"vmae": json.dumps(header, sort_keys=True)})
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        os.chmod(temporary, 0o644)
        if not single:
            # A crash between the two leaves the weights' own header, never another run's config.json.
            (folder / CONFIG_NAME).unlink(missing_ok=True)
        os.replace(temporary, file)
        if not single:
            write_atomic(folder / CONFIG_NAME, json.dumps(header, indent=2, sort_keys=True) + "\n")
    finally:
        Path(temporary).unlink(missing_ok=True)
    return file


def load_model(path: str | os.PathLike[str]) -> tuple[VideoMAE | VideoClassifier, dict[str, Any]]:
    """Read what `save_model` wrote: `(model, meta)`, the model on the CPU in eval mode's opposite (train).

    Raises CheckpointError where the file is missing, cut short, of another format or does not match its
    own configuration, with what was expected and found.
    """
    from safetensors import SafetensorError, safe_open

    target = Path(path)
    file = target / WEIGHTS_NAME if target.is_dir() else target
    if not file.is_file():
        raise CheckpointError(f"{target}: expected a checkpoint ({WEIGHTS_NAME} or a directory with one)")
    try:
        with safe_open(file, framework="pt") as f:
            header = json.loads((f.metadata() or {}).get("vmae", "null"))
            state = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError) as e:
        raise CheckpointError(f"{file}: not a readable safetensors file (cut short?): {e}") from e
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CheckpointError(
            f"{file}: expected a vmae checkpoint (format {FORMAT}); its header has none:"
            " `vmae convert` reads official and Hugging Face files"
        )
    model = build_model(header)
    load_matching(model, state, str(file))
    return model, header["meta"]


def build_model(header: dict[str, Any]) -> VideoMAE | VideoClassifier:
    """The model (fresh weights) that a checkpoint's header describes."""
    kind = header.get("model")
    if kind == "VideoMAE":
        return VideoMAE(VideoMAEConfig.from_dict(header["config"]))
    if kind == "VideoClassifier":
        config = VideoClassifierConfig.from_dict(header["config"])
        return VideoClassifier(config, header["num_classes"])
    raise CheckpointError(f"expected a checkpoint of VideoMAE or VideoClassifier, got {kind!r}")


def load_matching(model: nn.Module, state: dict[str, Any], source: str) -> None:
    """Load `state` into `model`; every key and shape must match, else a CheckpointError lists both sides."""
    own = model.state_dict()
    missing = sorted(own.keys() - state.keys())
    unknown = sorted(state.keys() - own.keys())
    shapes = [
        f"{k}: expected {list(own[k].shape)}, got {list(state[k].shape)}"
        for k in sorted(own.keys() & state.keys())
        if own[k].shape != state[k].shape
    ]
    if missing or unknown or shapes:
        parts = []
        if missing:
            parts.append(f"missing in the file: {', '.join(missing)}")
        if unknown:
            parts.append(f"unknown to the model: {', '.join(unknown)}")
        if shapes:
            parts.append(f"other shapes: {'; '.join(shapes)}")
        raise CheckpointError(f"{source}: keys do not match; " + "; ".join(parts))
    model.load_state_dict(state)


def write_atomic(path: Path, text: str) -> None:
    """Write a small text file so that a reader sees the old or the new content, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)


def _describe(model: nn.Module, meta: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(model, VideoMAE | VideoClassifier):
        raise CheckpointError(f"expected a VideoMAE or VideoClassifier to save, got {type(model).__name__}")
    header: dict[str, Any] = {
        "format": FORMAT,
        "model": type(model).__name__,
        "config": model.config.to_dict(),
        "meta": meta,
    }
    if isinstance(model, VideoClassifier):
        header["num_classes"] = model.num_classes
    return header
