"""Checkpoint files in folders: found by walking, told apart by their headers, never loaded to be listed."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WEIGHTS_NAME = "model.safetensors"  # as in `checkpoint`, whose import takes torch's time

MOST_FILES = 200
MOST_FOLDERS = 5000
MAX_DEPTH = 6
_MAX_HEADER = 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A pre-training checkpoint as its header describes it."""

    path: str
    name: str
    """Below the folder it was found in."""
    stamp: int
    """Nanoseconds of its last change."""
    ratio: float | None = None
    mask_type: str = ""


def list_files(folders: tuple[str, ...], skip: Collection[str] = ()) -> list[ModelFile]:
    """Pre-training checkpoints at or below the given paths, newest first, at most MOST_FILES.

    A path is a .safetensors file or a folder, walked to MAX_DEPTH without following links or entering
    folders whose name is one of `skip`. Files of another kind (classifiers, other programs', unreadable
    ones) are left out.
    """
    found: dict[str, ModelFile] = {}
    for folder in folders:
        for file in _walk(Path(folder), skip):
            known = str(file.resolve())
            described = None if known in found else describe(file, Path(folder))
            if described is not None:
                found[known] = described
            if len(found) == MOST_FILES:
                break
    return sorted(found.values(), key=lambda f: f.stamp, reverse=True)


def describe(file: Path, below: Path) -> ModelFile | None:
    """What the header says; None for anything but a pre-training checkpoint of ours."""
    header = read_header(file)
    if header is None or header.get("model") != "VideoMAE" or not _is_text(file):
        return None
    meta = header.get("meta")
    mask = meta.get("mask") if isinstance(meta, dict) else None
    mask = mask if isinstance(mask, dict) else {}
    ratio = mask.get("ratio")
    try:
        stamp = file.stat().st_mtime_ns
    except OSError:
        return None
    return ModelFile(
        path=str(file),
        name=_name(file, below),
        stamp=stamp,
        ratio=float(ratio) if isinstance(ratio, int | float) and 0 < ratio < 1 else None,
        mask_type=str(mask.get("type", "")),
    )


def _name(file: Path, below: Path) -> str:
    # A model's folder says more than the one name that all files in such folders have.
    shown = file.parent if file.name == WEIGHTS_NAME else file
    name = str(shown.relative_to(below)) if below in shown.parents else shown.name
    return "".join(c if c.isprintable() else "?" for c in name)


def _is_text(file: Path) -> bool:
    """Whether a path can be shown and sent: one of another encoding holds letters that no text has."""
    try:
        str(file).encode()
    except UnicodeEncodeError:
        return False
    return True


def read_header(file: Path) -> dict[str, Any] | None:
    """The `vmae` entry of a safetensors file's header, or None; reads the header alone."""
    try:
        with open(file, "rb") as f:
            length = int.from_bytes(f.read(8), "little")
            if not 0 < length <= _MAX_HEADER:
                return None
            header = json.loads(f.read(length))
        found = json.loads(header["__metadata__"]["vmae"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _walk(start: Path, skip: Collection[str]) -> Iterator[Path]:
    if start.is_file():
        yield start
        return
    for folder, inside, names in itertools.islice(os.walk(start), MOST_FOLDERS):
        depth = len(Path(folder).relative_to(start).parts)
        inside[:] = sorted(d for d in inside if d not in skip and depth < MAX_DEPTH)
        for name in sorted(names):
            # A pipe would keep whoever opens it waiting; a link may lead to itself or nowhere.
            if name.endswith(".safetensors") and os.path.isfile(f"{folder}/{name}"):
                yield Path(folder) / name
