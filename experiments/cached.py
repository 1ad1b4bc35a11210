"""What lies in the cache of a run directory, and what of it may go. Everything in it can be made again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vmae.core.files import TEMPORARY
from vmae.core.video.cache import DecodedCache, being_built, sweep_unfinished
from vmae.experiments.layout import RunsDir


@dataclass(frozen=True, kw_only=True)
class Cached:
    """An entry: decoded clips of a list, parts of a long evaluation, a model from elsewhere, or all that was
    tried inside lists."""

    path: Path
    what: str
    size: int
    """Bytes."""
    used: float
    """When it was last used, in seconds since 1970."""
    held: bool = False
    """Whether a process is making it now."""


def entries(runs: RunsDir) -> list[Cached]:
    """What the cache holds, most recently used first. Remains of killed builds are removed on the way."""
    if not runs.cache.is_dir():
        return []
    sweep_unfinished(runs.cache)
    found = []
    for place in (runs.cache, runs.parts, runs.model_copy("").parent):
        for folder in sorted(p for p in place.glob("*") if p.is_dir()):
            if folder in (runs.parts, runs.model_copy("").parent) or folder.name.endswith(TEMPORARY):
                continue
            found.append(_entry(folder, place, runs))
    return sorted(found, key=lambda e: -e.used)


def _entry(folder: Path, place: Path, runs: RunsDir) -> Cached:
    files = [f.stat() for f in folder.rglob("*") if f.is_file()]
    used = max([folder.stat().st_mtime, *(f.st_mtime for f in files)])
    if place == runs.parts:
        what = "finished parts of an evaluation or of features"
    elif folder == runs.tried:
        what = "what was tried inside lists, with the answers"
    elif place != runs.cache:
        what = "a model from elsewhere"
    else:
        try:
            cache = DecodedCache(folder)
            what = f"{len(cache)} decoded videos, short side {cache.short_side}"
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            what = "no whole cache"
    held = place == runs.cache and being_built(folder)
    return Cached(path=folder, what=what, size=sum(f.st_size for f in files), used=used, held=held)


def to_go(found: Sequence[Cached], *, keep: int | None = None, unused_s: float | None = None) -> list[Cached]:
    """Which entries go: those not used for `unused_s`, and the longest unused until at most `keep` bytes are
    left; all where neither is said. What is being made stays."""
    free = [e for e in found if not e.held]
    if keep is None and unused_s is None:
        return free
    gone = [e for e in free if unused_s is not None and time.time() - e.used > unused_s]
    if keep is not None:
        left = sum(e.size for e in found) - sum(e.size for e in gone)
        for entry in sorted((e for e in free if e not in gone), key=lambda e: e.used):
            if left <= keep:
                break
            gone.append(entry)
            left -= entry.size
    return gone


def remove(gone: Sequence[Cached]) -> int:
    """Delete entries; returns the bytes freed. A training that has one open goes on with it."""
    for entry in gone:
        shutil.rmtree(entry.path, ignore_errors=True)
    return sum(e.size for e in gone)
