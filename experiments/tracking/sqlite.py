"""MLflow's tables in an SQLite file, read with plain SQL: importing MLflow costs more than a second."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vmae.core.errors import VmaeError

_VALUES = {"params": "value", "tags": "value", "latest_metrics": "case when is_nan then 'nan' else value end"}
TABLES = tuple(_VALUES)
"""The tables of what runs carry: a key and a value each."""
_FEW = 2000
"""Up to so many runs are asked for by their ids; of more the whole table is read."""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that only reads: it makes no file and holds no lock that a writer waits for.

    It is opened for writing all the same (where the file allows it) and told to take queries only: what a
    writer killed in its transaction left is rolled back by the next one to read, and SQLite refuses that to a
    connection of ``mode=ro``.

    Raises VmaeError where it is no database of MLflow's.
    """
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True, timeout=30)
        ) as db:
            db.execute("pragma query_only = on")
            yield db
    except sqlite3.DatabaseError as e:
        raise VmaeError(f"expected an MLflow database at {path}, got: {e}") from e


def heads(db: sqlite3.Connection, experiment: str) -> list[dict[str, Any]]:
    """Every active run of an experiment without what it carries, oldest first."""
    rows = db.execute(
        "select r.run_uuid, r.name, r.status, r.start_time, r.end_time, r.artifact_uri "
        "from runs r join experiments e on e.experiment_id = r.experiment_id "
        "where e.name = ? and r.lifecycle_stage = 'active' order by r.start_time",
        (experiment,),
    )
    return [
        {
            "run_id": run_id,
            "name": name or "",
            "status": status,
            "start_ms": start or 0,
            "end_ms": end,
            "artifact_uri": uri or "",
        }
        for run_id, name, status, start, end, uri in rows
    ]


def deleted(db: sqlite3.Connection, experiment: str, key: str) -> dict[str, str]:
    """Runs of an experiment that were marked as deleted: {run id: the value of a tag}, empty without it."""
    rows = db.execute(
        "select r.run_uuid, coalesce(t.value, '') from runs r "
        "join experiments e on e.experiment_id = r.experiment_id "
        "left join tags t on t.run_uuid = r.run_uuid and t.key = ? "
        "where e.name = ? and r.lifecycle_stage = 'deleted'",
        (key, experiment),
    )
    return dict(rows.fetchall())


def column(db: sqlite3.Connection, table: str, key: str) -> dict[str, Any]:
    """One key of every run that has it: {run id: value}, read by the table's index on the key."""
    values = dict(db.execute(f"select run_uuid, {_VALUES[table]} from {table} where key = ?", (key,)))
    return {k: float(v) for k, v in values.items()} if table == "latest_metrics" else values


def values(
    db: sqlite3.Connection, table: str, run_ids: Sequence[str], keys: Sequence[str] | None
) -> dict[str, dict[str, Any]]:
    """What runs carry (or those keys of it): {run id: {key: value}}; other runs may be among them."""
    conditions: list[tuple[str, list[str]]] = [("", [])]
    if keys is not None:
        conditions = [("where key = ?", [key]) for key in keys]
    elif len(run_ids) <= _FEW:
        parts = [list(run_ids[start : start + 500]) for start in range(0, len(run_ids), 500)]
        conditions = [(f"where run_uuid in ({','.join('?' * len(part))})", part) for part in parts]
    found: dict[str, dict[str, Any]] = {}
    for condition, arguments in conditions:
        asked = f"select run_uuid, key, {_VALUES[table]} from {table} {condition}"
        for run_id, key, got in db.execute(asked, arguments):
            found.setdefault(run_id, {})[key] = float(got) if table == "latest_metrics" else got
    return found


def all_keys(db: sqlite3.Connection) -> set[str]:
    """Every key that some run carries."""
    found: set[str] = set()
    for table in TABLES:
        # The keys lead the tables' indices: jumping from one to the next reads a row per key.
        (key,) = db.execute(f"select min(key) from {table}").fetchone()
        while key is not None:
            found.add(key)
            (key,) = db.execute(f"select min(key) from {table} where key > ?", (key,)).fetchone()
    return found


def history(db: sqlite3.Connection, run_id: str, metric: str) -> list[tuple[int, float]]:
    """A metric's curve: (step, value), in the order of steps."""
    rows = db.execute(
        "select step, case when is_nan then null else value end from metrics "
        "where run_uuid = ? and key = ? order by step, timestamp",
        (run_id, metric),
    )
    return [(int(s), float("nan") if v is None else float(v)) for s, v in rows]


def experiment_id(db: sqlite3.Connection, name: str) -> str:
    """An experiment's id; empty where there is none."""
    row = db.execute("select experiment_id from experiments where name = ?", (name,)).fetchone()
    return str(row[0]) if row else ""
