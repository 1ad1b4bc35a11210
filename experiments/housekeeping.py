"""Deleting runs, and finding files that no run needs any more."""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmae.core.files import OLD_TEMPORARY_S
from vmae.experiments.layout import NOT_RUNS, SPOOL, SweepDir, Tracked, is_of_spool
from vmae.experiments.runs import Run, children, deleted_runs, list_runs
from vmae.experiments.storage import PART, Seen
from vmae.experiments.tracking import Store, reachable, tags
from vmae.experiments.tracking.spool import Spool

_WEIGHTS = (tags.CHECKPOINT, tags.CLASSIFIER, tags.INIT)
_QUIET_S = 600.0  # a run that wrote its spool within this time may still be at work


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
        for member in [run, *(children(store, run) if run.kind == "sweep" else [])]:
            found.setdefault(member.run_id, member)
    return list(found.values())


def delete_runs(store: Store, runs: Sequence[Run]) -> None:
    """Mark runs as deleted in the store, as MLflow does: lists leave them out, `mlflow gc` erases them."""
    with reachable(store) as client:
        for run in runs:
            client.delete_run(run.run_id)


def find_orphans(store: Store) -> tuple[list[Orphan], list[Orphan]]:
    """Files under the run directory (a folder, or on an object store) whose run is no longer in the store.

    A folder is an orphan when this very store says that its run was deleted; a run that it does not know (its
    database was lost or replaced, the run has just begun) is kept. So is what else is in doubt: runs of
    another store, runs with unsent events, runs that may still be at work, weights that a listed run refers
    to.

    Returns:
        (orphans, kept): what may go, and folders without a listed run that stay, each with the reason. Paths
        are below `store.runs_dir`, also of what lies on an object store.
    """
    listed = list_runs(store, columns=["key", *_WEIGHTS])
    keys = {r.key for r in listed}
    deleted = deleted_runs(store)
    gone = set(deleted.values()) - keys - {""}
    used = {r.tags[name]: r.name for r in listed for name in _WEIGHTS if name in r.tags}
    orphans: list[Orphan] = []
    kept: list[Orphan] = []
    storage = store.storage()
    storage.pull(store.runs_dir, only=is_of_spool, fresh=True)
    files = storage.listing(store.runs_dir)
    sizes = _sizes(files, store.runs_dir)
    for home in _run_folders(files, store.runs_dir):
        start, last = _ends(Tracked(home).spool)
        if start is None or start["key"] in keys or any(home.is_relative_to(o.path) for o in orphans):
            continue
        reason = None if start["key"] in gone else "its run is not known to the store"
        reason = _why_kept(store, home, start, last, keys, used) or reason
        entry = Orphan(path=home, size=sizes[home], reason=reason or f"run '{start['name']}' was deleted")
        (kept if reason else orphans).append(entry)
    orphans += _artifact_orphans(store, set(deleted), sizes)
    now = time.time()
    for path, file in sorted(files.items()):
        left = path.name.endswith(PART) or (path.name.startswith(".") and path.suffix == ".tmp")
        inside = left and any(path.is_relative_to(o.path) for o in orphans)
        if left and not inside and now - file.modified > OLD_TEMPORARY_S:
            orphans.append(Orphan(path=path, size=file.size, reason="left by a killed process"))
    return orphans, kept


def remove(store: Store, orphans: Sequence[Orphan]) -> int:
    """Delete the files; returns the bytes freed. Raises StorageAway where an object store does not answer."""
    storage = store.storage()
    for orphan in orphans:
        storage.delete(orphan.path)
    return sum(o.size for o in orphans)


def _sizes(files: Mapping[Path, Seen], runs_dir: Path) -> dict[Path, int]:
    """Bytes below every folder of the run directory."""
    sizes: dict[Path, int] = defaultdict(int)
    for path, file in files.items():
        for folder in path.parents:
            sizes[folder] += file.size
            if folder == runs_dir:
                break
    return sizes


def _run_folders(files: Mapping[Path, Seen], runs_dir: Path) -> list[Path]:
    """Folders with a spool, a sweep's before its trials'."""
    homes = sorted(path.parent for path in files if path.name == SPOOL)
    return [home for home in homes if home.relative_to(runs_dir).parts[:1] not in [(n,) for n in NOT_RUNS]]


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
    spool = Tracked(home).spool
    trials = [t for t in SweepDir(home).all_trials() if t.spool.exists()]
    if any(Spool(each).pending() for each in (Tracked(home), *trials)):
        return "has events that were not sent yet (`vmae runs sync`)"
    ended = last is not None and last.get("event") == "finish"
    if not ended and time.time() - spool.stat().st_mtime < _QUIET_S:
        return "may still be running"
    if any(s is not None and s["key"] in keys for s, _ in (_ends(t.spool) for t in trials)):
        return "some of its trials are still listed"
    place = store.shown(home)
    for checkpoint, name in used.items():
        if checkpoint == place or checkpoint.startswith(f"{place}/"):
            return f"its weights are used by run '{name}'"
    return None


def _artifact_orphans(store: Store, deleted: set[str], sizes: Mapping[Path, int]) -> list[Orphan]:
    """Artifact folders of deleted runs; only where this run directory is the store."""
    folder = store.layout.artifacts
    if store.sqlite_path != store.layout.database or not folder.is_dir():
        return []
    names = sorted(p for p in folder.iterdir() if re.fullmatch(r"[0-9a-f]{32}", p.name))
    return [
        Orphan(path=p, size=sizes.get(p, 0), reason="artifacts of a deleted run")
        for p in names
        if p.name in deleted
    ]
