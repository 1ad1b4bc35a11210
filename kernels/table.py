"""What was measured on this very machine, kept: one file per fingerprint, written whole and under a lock.

`${VMAE_CACHE_DIR:-~/.cache/vmae}/kernels/<fingerprint>.json`. A fingerprint is the GPU and everything that
makes a kernel faster or slower on it: driver, torch, Triton, cuDNN, the sources of `kernels/`. Where the
place cannot be written the table lives in memory, and a warning says so.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_log = logging.getLogger("vmae.kernels")
SCHEMA = 1
PRIORS = Path(__file__).parent / "results" / "calibrated.json"
"""Checked-in tables by GPU name: what a GPU of the same name is likely to choose, measured first."""


@dataclass(kw_only=True)
class Row:
    """What is known of one site.

    choice: "torch", "triton", "triton <variant>", "sdpa <backend>", "flash_attn <version>"; empty: nothing
    was decided, only refused. why: in a sentence. ms: quartiles of each candidate that was timed. refused:
    candidates that may not be tried again, and why.
    """

    choice: str = ""
    why: str = ""
    ms: dict[str, list[float]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


Rows = dict[str, Row]
"""By the site's key."""


def cache_folder() -> Path:
    """Where tables lie."""
    home = os.environ.get("VMAE_CACHE_DIR")
    return (Path(home) if home else Path.home() / ".cache" / "vmae") / "kernels"


@functools.cache
def digest_of_kernels() -> str:
    """Of the sources of `kernels/`: another kernel is another measurement."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def fingerprint(facts: Mapping[str, Any]) -> str:
    """A file name for these facts: the GPU's name, and a digest of all of them."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    name = re.sub(r"[^a-z0-9]+", "-", str(facts.get("gpu", "device")).lower()).strip("-")
    return f"{name}-{digest}"


def to_json(rows: Rows) -> dict[str, Any]:
    """Rows as JSON keeps them."""
    return {key: asdict(row) for key, row in sorted(rows.items())}


def from_json(values: Mapping[str, Any]) -> Rows:
    """The inverse of `to_json`."""
    return {key: Row(**row) for key, row in values.items()}


class Store:
    """The table of one fingerprint: read, merged into, and whose turn it is to measure."""

    def __init__(self, facts: Mapping[str, Any], folder: Path | None = None) -> None:
        self.facts = dict(facts)
        self.path = (cache_folder() if folder is None else folder) / f"{fingerprint(facts)}.json"
        self._memory: Rows = {}
        self._unwritable = False

    def load(self) -> Rows:
        """All rows known by now; a file that cannot be read counts as none, with a warning."""
        return {**self._read(), **self._memory}

    def _read(self) -> Rows:
        try:
            table = json.loads(self.path.read_text())
            return from_json(table["sites"]) if table["schema"] == SCHEMA else {}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as e:
            _log.warning("%s: expected a table of kernels, got %s; it is measured again", self.path, _line(e))
            return {}

    def merge(self, rows: Rows) -> None:
        """Add rows; of a site that is there what is new counts, and what was refused stays refused."""
        try:
            with _locked(self.path.with_suffix(".lock"), limit_s=10.0):
                known = self._read()
                for key, row in rows.items():
                    known[key] = _joined(known.get(key), row)
                text = json.dumps(
                    {"schema": SCHEMA, "machine": self.facts, "sites": to_json(known)}, indent=1
                )
                _replace(self.path, text)
        except OSError as e:
            if not self._unwritable:
                _log.warning("%s cannot be written (%s): what is measured is kept for this process only",
                             self.path, _line(e))  # fmt: skip
            self._unwritable = True
            for key, row in rows.items():
                self._memory[key] = _joined(self._memory.get(key), row)

    @contextmanager
    def turn(self, limit_s: float) -> Iterator[bool]:
        """Inside, nobody else measures for this fingerprint; False where that did not come in `limit_s`."""
        with ExitStack() as held:
            ours = True
            try:
                held.enter_context(_locked(self.path.with_suffix(".measuring"), limit_s=limit_s))
            except TimeoutError:
                ours = False
            except OSError:  # nowhere to put a lock: each process measures for itself
                pass
            yield ours


def _joined(old: Row | None, new: Row) -> Row:
    if old is None:
        return new
    if not new.choice:
        new = Row(choice=old.choice, why=old.why, ms=old.ms, refused=new.refused)
    return Row(choice=new.choice, why=new.why, ms=new.ms, refused={**old.refused, **new.refused})


@contextmanager
def _locked(path: Path, *, limit_s: float) -> Iterator[None]:
    """An exclusive lock of this file, which ends with the process; TimeoutError after `limit_s`."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + limit_s
    with path.open("a") as f:
        while True:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise TimeoutError(f"{path} is held by another process") from None
                time.sleep(0.05)
        yield


def _replace(path: Path, text: str) -> None:
    """Whole or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".new")
    try:
        with os.fdopen(handle, "w") as f:
            f.write(text + "\n")
            f.flush()
            os.fsync(f.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _line(e: Exception) -> str:
    return (str(e).splitlines() or [type(e).__name__])[0]


def prior(gpu: str) -> Rows:
    """The checked-in rows of a GPU of this very name; empty where there are none."""
    if not PRIORS.is_file():
        return {}
    table: dict[str, Any] = json.loads(PRIORS.read_text())
    return from_json(table.get(gpu, {}))
