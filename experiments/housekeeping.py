"""Deleting runs, and finding files that no run needs any more."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmae.experiments import results
from vmae.experiments.results import Run
from vmae.experiments.tracking import SPOOL_NAME, Store, _client, _Sender

_NOT_RUNS = ("artifacts", "cache")
_QUIET_S = 600.0  # a run that wrote its spool within this time may still be at work
_OLD_TEMPORARY_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Orphan:
    """A file or folder under the run directory, its size in bytes, and why it is (or is not) an orphan."""

    path: Path
    size: int
    reason: str


def with_trials(store: Store, runs: Sequence[Run]) -> list[Run]:
    """The runs, and after each sweep its trials; none twice."""
    found: dict[str, Run] = {}
    for run in runs:
        for member in [run, *(results.children(store, run) if run.kind == "sweep" else [])]:
            found.setdefault(member.run_id, member)
    return list(found.values())


def delete_runs(store: Store, runs: Sequence[Run]) -> None:
    """Mark runs as deleted in the store, as MLflow does: lists leave them out, `mlflow gc` erases them."""
    client = _client(store.uri)
    for run in runs:
        client.delete_run(run.run_id)


def find_orphans(store: Store) -> tuple[list[Orphan], list[Orphan]]:
    """Files under the run directory whose run is no longer in the store.

    A folder is an orphan when its run was sent to this very store and is not (or no longer) listed there.
    What is in doubt is kept: runs of another store, runs with unsent events, runs that may still be at work,
    checkpoints that a listed run refers to.

    Returns:
        (orphans, kept): what may go, and folders without a listed run that stay, each with the reason.
    """
    listed = results.list_runs(store, columns=["key", results.CHECKPOINT_TAG])
    keys = {r.key for r in listed}
    used = {str(r.checkpoint): r.name for r in listed if r.checkpoint}
    orphans: list[Orphan] = []
    kept: list[Orphan] = []
    for home in _run_folders(store.runs_dir):
        start, last = _ends(home / SPOOL_NAME)
        if start is None or start["key"] in keys or any(home.is_relative_to(o.path) for o in orphans):
            continue
        reason = _why_kept(store, home, start, last, keys, used)
        entry = Orphan(path=home, size=_size(home), reason=reason or f"run '{start['name']}' was deleted")
        (kept if reason else orphans).append(entry)
    orphans += _artifact_orphans(store, {r.run_id for r in listed})
    now = time.time()
    for path in sorted(store.runs_dir.rglob(".*.tmp")):
        inside = any(path.is_relative_to(o.path) for o in orphans)
        if path.is_file() and not inside and now - path.stat().st_mtime > _OLD_TEMPORARY_S:
            orphans.append(Orphan(path=path, size=path.stat().st_size, reason="left by a killed process"))
    return orphans, kept


def remove(orphans: Sequence[Orphan]) -> int:
    """Delete the files; returns the bytes freed."""
    for orphan in orphans:
        if orphan.path.is_dir():
            shutil.rmtree(orphan.path)
        else:
            orphan.path.unlink(missing_ok=True)
    return sum(o.size for o in orphans)


def _run_folders(runs_dir: Path) -> Iterator[Path]:
    """Folders with a spool, a sweep's before its trials'."""
    for folder, names, files in os.walk(runs_dir):
        if Path(folder) == runs_dir:
            names[:] = [n for n in names if n not in _NOT_RUNS]
        names.sort()
        if SPOOL_NAME in files:
            yield Path(folder)


def _ends(spool: Path) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The first and the last whole event of a spool; None for what cannot be read."""
    events: list[dict[str, Any] | None] = []
    lines = spool.read_bytes().splitlines()
    for line in (lines[0], lines[-1]) if lines else (b"", b""):
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            events.append(None)
    return events[0], events[1]


def _why_kept(
    store: Store,
    home: Path,
    start: dict[str, Any],
    last: dict[str, Any] | None,
    keys: set[str],
    used: dict[str, str],
) -> str | None:
    uri = start.get("store")
    if uri != store.uri:
        return f"recorded in another store ({uri or 'not known which'})"
    if _Sender(store, home / SPOOL_NAME).pending():
        return "has events that were not sent yet (`vmae runs sync`)"
    ended = last is not None and last.get("event") == "finish"
    if not ended and time.time() - (home / SPOOL_NAME).stat().st_mtime < _QUIET_S:
        return "may still be running"
    if any(s is not None and s["key"] in keys for s, _ in map(_ends, home.glob(f"trials/*/{SPOOL_NAME}"))):
        return "some of its trials are still listed"
    for checkpoint, name in used.items():
        if Path(checkpoint).is_relative_to(home):
            return f"its checkpoint is used by run '{name}'"
    return None


def _artifact_orphans(store: Store, run_ids: set[str]) -> list[Orphan]:
    """Artifact folders of runs that are not listed; only where this run directory is the store."""
    folder = store.runs_dir / "artifacts"
    if store.sqlite_path != store.runs_dir / "mlflow.db" or not folder.is_dir():
        return []
    names = sorted(p for p in folder.iterdir() if re.fullmatch(r"[0-9a-f]{32}", p.name))
    return [
        Orphan(path=p, size=_size(p), reason="artifacts of a deleted run")
        for p in names
        if p.name not in run_ids
    ]


def _size(folder: Path) -> int:
    return sum(p.lstat().st_size for p in folder.rglob("*") if not p.is_dir())
