"""Files that are whole or absent: the one writer of everything that is replaced while others may read it."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp"
"""Ending of an unfinished file, whose name begins with a dot: what a killed process leaves."""
OLD_TEMPORARY_S = 3600.0
"""An unfinished file that was not written to for so long has no writer any more."""


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, durable: bool = False) -> Iterator[Path]:
    """A name beside `path` to write to; what is there when the body ends well becomes `path` in one step.

    A reader sees the old file or the new one, never a part, and a body that raises leaves the old one.
    `durable`: it is on the disk before it takes the name, and the name before the block is left, so that a
    loss of power keeps the one or the other too. The file's mode follows the umask.
    """
    path = Path(path)
    # Truncated: a name may have 255 bytes, and this one is longer.
    name = f".{path.name[:40]}.{os.getpid()}.{threading.get_ident()}{TEMPORARY}"
    temporary = path.with_name(name)
    try:
        # What the umask leaves of a new file's mode; safetensors 0.8 makes its own private to the user.
        temporary.touch()
        mode = temporary.stat().st_mode
        temporary.unlink()
        yield temporary
        if temporary.stat().st_mode != mode:
            temporary.chmod(mode & 0o777)
        if durable:
            fsync(temporary)
        os.replace(temporary, path)
        if durable:
            fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what killed writers left in a folder: unfinished files not written to for an hour."""
    for file in folder.glob(f".*{TEMPORARY}"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - file.stat().st_mtime > OLD_TEMPORARY_S:
                file.unlink()


def fsync(path: Path) -> None:
    """Wait until a file's bytes, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Write a text file as UTF-8 by `replacing`; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, durable=durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file by `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, data: Any, *, durable: bool = False) -> None:
    """Write JSON as `write_text` does."""
    write_text(path, json.dumps(data, indent=1) + "\n", durable=durable)


def read_record(path: Path, *needed: str) -> dict[str, Any] | None:
    """The JSON object in a file of ours that says where work stands, or None where there is none to go by.

    A file that is absent, cut short, of another kind or without the `needed` keys counts as never written:
    what it stood for is done again. For what cannot be done again, `read_json`.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.keys() >= set(needed) else None


def read_json(path: Path) -> Any:
    """The file's content, or None where it is absent. Raises ValueError where it is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
