"""Sends what waits in spools, whoever left it there."""

from __future__ import annotations

from pathlib import Path

from vmae.experiments.layout import is_of_spool
from vmae.experiments.tracking.client import first_line
from vmae.experiments.tracking.sender import Sender
from vmae.experiments.tracking.spool import Spool
from vmae.experiments.tracking.store import store_at


def sync(runs_dir: Path | str) -> list[tuple[Path, str]]:
    """Send everything that waits in spools under a run directory, and offer again what the store refused.

    Args:
        runs_dir: a folder, or a URI: its spools are fetched, and what was sent is noted there.

    Returns:
        (spool, outcome) for each spool that had something to send; outcome is `sent`, or why not all of it.

    Raises:
        StorageAway: an object store did not answer.
    """
    store = store_at(runs_dir, remote=True, role="sync")
    storage = store.storage()
    storage.pull(store.runs_dir, only=is_of_spool, fresh=True)
    outcomes: list[tuple[Path, str]] = []
    for home in store.layout.spools():
        spool = Spool(home)
        if not spool.pending() and not spool.refused():
            continue
        if not storage.locks and spool.in_use():
            outcomes.append((spool.path, "its own process is at work and will send it"))
            continue
        for path in spool.files():
            storage.pull_file(path)
        sender = Sender(store, spool)
        try:
            sender.send()
            refused = sender.send_refused()
            kept = f"refused: {refused} (kept in {home.refused}; delete it to forget them)"
            outcomes.append((spool.path, kept if refused else "sent"))
        except Exception as e:
            outcomes.append((spool.path, first_line(e)))
        for path in (home.offset, home.refused):
            if path.exists():
                storage.push_file(path)
            else:
                storage.delete(path)
    return outcomes
