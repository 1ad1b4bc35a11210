"""Training checkpoints: complete, atomic, and recognised when they were cut short.

A checkpoint is a folder `step-0000001234` with `state.pt` (a `torch.save` of plain containers and tensors)
and `manifest.json` (size and CRC-32 of `state.pt`). It is written under a temporary name, every file and the
folder are fsynced, and one rename makes it appear; what stands under its final name was complete when it was
written. Reading verifies size and checksum and falls back to the checkpoint before, with a warning.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import warnings
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

import torch

from vmae.core.errors import CheckpointError

STATE_FILE, MANIFEST_FILE = "state.pt", "manifest.json"
_NAME = re.compile(r"^step-(\d{10})$")
_CHUNK = 1 << 22
_REPLACED = ".replaced-"


class _ChecksummedFile:
    """Writes to a file, counting bytes and CRC; keeps the first OSError instead of raising it.

    `torch.save`'s C++ writer must not be unwound by an exception half-way: it is let run to its end, and
    `save_state` raises the error afterwards.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.size, self.crc = file, 0, 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if self.error is None:
            try:
                self._file.write(view)
            except OSError as e:
                self.error = e
        self.crc = zlib.crc32(view, self.crc)
        self.size += len(view)
        return len(view)

    def flush(self) -> None:
        if self.error is None:
            try:
                self._file.flush()
            except OSError as e:
                self.error = e


def _fsync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def save_state(
    folder: Path, step: int, state: dict[str, Any], *, keep_last: int = 2, keep: Collection[int] = ()
) -> Path:
    """Write `state` as the checkpoint of `step`; delete all but the newest `keep_last` and those in `keep`.

    Returns the checkpoint's folder. Raises OSError when it cannot be written (disk full, quota, a
    vanished disk); then nothing was deleted and nothing half-written is left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _put_back(folder)
    for leftover in folder.glob(".tmp-step-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    final = folder / f"step-{step:010d}"
    temporary = folder / f".tmp-{final.name}"
    try:
        temporary.mkdir()
        with open(temporary / STATE_FILE, "wb") as file:
            out = _ChecksummedFile(file)
            torch.save(state, out)  # type: ignore[arg-type]
            out.flush()
            if out.error is not None:
                raise out.error
            os.fsync(file.fileno())
        manifest = {"format": 1, "step": step, "file": STATE_FILE, "size": out.size, "crc32": out.crc}
        with open(temporary / MANIFEST_FILE, "w") as text:
            json.dump(manifest, text)
            text.flush()
            os.fsync(text.fileno())
        _fsync_folder(temporary)
        replaced = folder / f"{_REPLACED}{final.name}"
        if final.exists():
            # The same step again, or one that failed its check. Killed between the two renames, the old one
            # is put back by who looks next.
            os.rename(final, replaced)
        os.rename(temporary, final)
        _fsync_folder(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        _put_back(folder)
        raise
    kept = {f"step-{s:010d}" for s in keep}
    for old in list_states(folder)[: -max(1, keep_last)]:
        if old.name not in kept:
            shutil.rmtree(old, ignore_errors=True)
    return final


def _put_back(folder: Path) -> None:
    """A checkpoint that was moved out of the way of one that never came takes its name again."""
    for replaced in folder.glob(f"{_REPLACED}step-*"):
        final = folder / replaced.name.removeprefix(_REPLACED)
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            os.rename(replaced, final)


def list_states(folder: Path) -> list[Path]:
    """The checkpoints under their final names, oldest first; their content is not verified."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if _NAME.match(p.name) and p.is_dir())


def load_state(path: Path) -> dict[str, Any]:
    """Verify and load one checkpoint folder; tensors on the CPU. Raises CheckpointError as `verified`."""
    state: dict[str, Any] = torch.load(verified(path), map_location="cpu", weights_only=True)
    return state


def verified(path: Path) -> Path:
    """The file of a checkpoint's folder that holds its state, found whole.

    Raises CheckpointError when the manifest is missing or unreadable, or size or checksum differ.
    """
    try:
        manifest = json.loads((path / MANIFEST_FILE).read_text())
        size, crc = int(manifest["size"]), int(manifest["crc32"])
        state_file = path / str(manifest["file"])
        got_size = state_file.stat().st_size
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise CheckpointError(f"{path}: expected a complete checkpoint; its manifest says: {e}") from e
    if got_size != size:
        raise CheckpointError(f"{path}: expected {size} bytes in {state_file.name}, got {got_size}")
    got = 0
    with open(state_file, "rb") as file:
        while chunk := file.read(_CHUNK):
            got = zlib.crc32(chunk, got)
    if got != crc:
        raise CheckpointError(f"{path}: expected checksum {crc:08x} of {state_file.name}, got {got:08x}")
    return state_file


def has_whole_state(folder: Path) -> bool:
    """Whether a run goes on from a checkpoint here, and so needs no weights from elsewhere."""
    for path in reversed(list_states(folder)):
        with contextlib.suppress(CheckpointError):
            return verified(path).exists()
    return False


def load_newest_state(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that is whole, or None where there is none.

    Every damaged one met on the way is named in a UserWarning and left in place.
    """
    if folder.is_dir():
        _put_back(folder)
    for path in reversed(list_states(folder)):
        try:
            return path, load_state(path)
        except CheckpointError as e:
            warnings.warn(f"damaged checkpoint passed over, using the one before: {e}", stacklevel=2)
    return None
