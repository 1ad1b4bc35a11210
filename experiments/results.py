"""The only reader of the store: runs -> rows, curves and pictures, for the command line and the dashboard.

An SQLite store is read with plain SQL, because importing MLflow costs more than a second and a list of ten
thousand runs must not; a tracking server is read through MLflow's client. Both give the same `Run`.
"""

from __future__ import annotations

import operator
import re
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from vmae.core.errors import InputError, nearest
from vmae.experiments.tracking import EXPERIMENT, KEY_TAG, KIND_TAG, Store

PARENT_TAG = "mlflow.parentRunId"
SWEEP_TAG = "vmae.sweep"
CHECKPOINT_TAG = "vmae.checkpoint"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run as the store has it. Times are milliseconds since 1970; `metrics` are the latest values."""

    run_id: str
    name: str
    status: str
    start_ms: int
    end_ms: int | None
    artifact_uri: str
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return self.tags.get(KIND_TAG, "")

    @property
    def key(self) -> str:
        return self.tags.get(KEY_TAG, "")

    @property
    def sweep(self) -> str:
        return self.tags.get(SWEEP_TAG, "")

    @property
    def parent_id(self) -> str | None:
        return self.tags.get(PARENT_TAG)

    @property
    def duration_s(self) -> float | None:
        return None if self.end_ms is None else (self.end_ms - self.start_ms) / 1000

    @property
    def checkpoint(self) -> Path | None:
        """Folder of the run's last model, or None where it wrote none."""
        value = self.tags.get(CHECKPOINT_TAG)
        return Path(value) if value else None

    def value(self, column: str) -> Any:
        """A column by name: `name`, `kind`, `status`, ..., a metric, a parameter or a tag; None if absent."""
        if column in ("run_id", "name", "status", "start_ms", "end_ms", "kind", "key", "sweep", "duration_s"):
            return getattr(self, column)
        if column in self.metrics:
            return self.metrics[column]
        return self.params.get(column, self.tags.get(column))

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON types."""
        return {
            "run_id": self.run_id,
            "name": self.name,
            "kind": self.kind,
            "status": self.status,
            "start_ms": self.start_ms,
            "end_ms": self.end_ms,
            "params": self.params,
            "metrics": self.metrics,
            "tags": self.tags,
            "artifact_uri": self.artifact_uri,
        }


@dataclass(frozen=True, kw_only=True)
class Filter:
    """One condition on a run: `column op value`, for example `probe/val_top1 >= 0.3` or `kind = trial`."""

    column: str
    op: str
    value: str

    _OPS = {  # noqa: RUF012
        "=": operator.eq,
        "!=": operator.ne,
        ">=": operator.ge,
        "<=": operator.le,
        ">": operator.gt,
        "<": operator.lt,
    }

    @classmethod
    def parse(cls, text: str) -> Filter:
        """Read a condition; InputError where there is no operator."""
        match = re.fullmatch(r"\s*([\w./@-]+)\s*(>=|<=|!=|=|>|<)\s*(.+?)\s*", text)
        if match is None:
            raise InputError(f"--where: expected COLUMN OP VALUE with OP one of = != > >= < <=, got '{text}'")
        return cls(column=match[1], op=match[2], value=match[3])

    def matches(self, run: Run) -> bool:
        got = run.value(self.column)
        if got is None:
            return False
        compare: Callable[[Any, Any], bool] = self._OPS[self.op]
        try:
            return compare(float(got), float(self.value))
        except ValueError:
            return compare(str(got), self.value)


def list_runs(
    store: Store,
    *,
    where: Sequence[Filter] = (),
    sort: str = "start_ms",
    descending: bool = True,
    limit: int | None = None,
) -> list[Run]:
    """Runs of the store, newest first unless sorted otherwise; runs without the sorted column come last."""
    if not exists(store):
        return []
    if store.sqlite_path:
        runs = _sqlite_runs(store.sqlite_path, where, sort, descending, limit)
    else:
        runs = _server_runs(store)
    runs = [r for r in runs if all(f.matches(r) for f in where)]
    present = [r for r in runs if r.value(sort) is not None]
    absent = [r for r in runs if r.value(sort) is None]
    present.sort(key=lambda r: _sort_key(r.value(sort)), reverse=descending)
    return (present + absent)[:limit]


def exists(store: Store) -> bool:
    """Whether there is a store to read (a server is taken to exist)."""
    path = store.sqlite_path
    return path is None or path.exists()


def find(store: Store, what: str) -> Run:
    """The run with this id, unique start of an id (4 characters or more) or name (the newest of that name).

    Raises:
        InputError: none or several match; names the nearest.
    """
    runs = list_runs(store)
    exact = [r for r in runs if what in (r.run_id, r.key)]
    if not exact:
        exact = [r for r in runs if r.name == what][:1]
    if not exact and len(what) >= 4:
        exact = [r for r in runs if r.run_id.startswith(what)]
    if len(exact) == 1:
        return exact[0]
    if exact:
        raise InputError(f"expected one run, got {len(exact)} whose id starts with '{what}'")
    names = list(dict.fromkeys(r.name for r in runs))
    raise InputError(
        f"expected the name or id of a run in {store.uri}, got '{what}'{nearest(what, names)}"
        + ("" if runs else ": the store has no runs yet")
    )


def children(store: Store, parent: Run) -> list[Run]:
    """The runs under a sweep's parent run, oldest first."""
    return [r for r in list_runs(store, descending=False) if r.parent_id == parent.run_id]


def list_sweeps(store: Store) -> list[Run]:
    """Parent runs of sweeps, newest first."""
    return list_runs(store, where=[Filter(column="kind", op="=", value="sweep")])


def best_run(store: Store, metric: str, *, highest: bool = True, where: Sequence[Filter] = ()) -> Run:
    """The run with the highest (or lowest) latest value of a metric.

    Raises:
        InputError: no run has the metric; names the nearest one there is.
    """
    runs = [r for r in list_runs(store, where=where, sort=metric, descending=highest) if metric in r.metrics]
    if not runs:
        known = sorted({m for r in list_runs(store, where=where) for m in r.metrics})
        raise InputError(f"expected a metric that some run has, got '{metric}'{nearest(metric, known)}")
    return runs[0]


def history(store: Store, run_id: str, metric: str) -> list[tuple[int, float]]:
    """A metric's curve: (step, value), in the order of steps; empty where the run has none."""
    path = store.sqlite_path
    if path:
        with _open(path) as db:
            rows = db.execute(
                "select step, case when is_nan then null else value end from metrics "
                "where run_uuid = ? and key = ? order by step, timestamp",
                (run_id, metric),
            ).fetchall()
        return [(int(s), float("nan") if v is None else float(v)) for s, v in rows]
    from vmae.experiments.tracking import _client

    points = _client(store.uri).get_metric_history(run_id, metric)
    return sorted((int(p.step), float(p.value)) for p in points)


def experiment_id(store: Store) -> str:
    """The id of the store's experiment, as addresses of MLflow's pages need it; empty where there is none."""
    path = store.sqlite_path
    if path:
        if not path.exists():
            return ""
        with _open(path) as db:
            row = db.execute("select experiment_id from experiments where name = ?", (EXPERIMENT,)).fetchone()
        return str(row[0]) if row else ""
    from vmae.experiments.tracking import _client

    found = _client(store.uri).get_experiment_by_name(EXPERIMENT)
    return str(found.experiment_id) if found else ""


def pictures(run: Run, key: str = "reconstruction") -> list[tuple[int, Path]]:
    """The pictures a run logged under a key, as (step, file), in the order of steps.

    Empty for stores whose artifacts are not on this machine's file system.
    """
    folder = artifact_folder(run)
    if folder is None:
        return []
    found: dict[int, Path] = {}
    safe = key.replace("/", "#")
    for path in sorted((folder / "images").glob("*.png")):
        match = re.match(re.escape(safe) + r"\+step\+(\d+)\+", unquote(path.name))
        if match:
            found[int(match[1])] = path
    return sorted(found.items())


def artifact_folder(run: Run) -> Path | None:
    """The run's artifacts as a local folder, or None where they are elsewhere."""
    parsed = urlparse(run.artifact_uri)
    if parsed.scheme not in ("", "file"):
        return None
    path = Path(unquote(parsed.path) if parsed.scheme else run.artifact_uri)
    return path if path.is_dir() else None


def _sort_key(value: Any) -> tuple[int, Any]:
    try:
        return (1, float(value))
    except (TypeError, ValueError):
        return (0, str(value))


def _open(path: Path) -> sqlite3.Connection:
    # Read-only: a reader must not make a file, nor hold a lock that a writer waits for.
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)


def _sqlite_runs(
    path: Path, where: Sequence[Filter], sort: str, descending: bool, limit: int | None
) -> list[Run]:
    with _open(path) as db:
        rows = db.execute(
            "select r.run_uuid, r.name, r.status, r.start_time, r.end_time, r.artifact_uri "
            "from runs r join experiments e on e.experiment_id = r.experiment_id "
            "where e.name = ? and r.lifecycle_stage = 'active' order by r.start_time",
            (EXPERIMENT,),
        ).fetchall()
        # A plain newest-first list needs the details of the few runs it shows, not of all.
        if not where and limit is not None and sort == "start_ms":
            rows = rows[-limit:] if descending else rows[:limit]
        ids = [r[0] for r in rows]
        params = _by_run(db, "select run_uuid, key, value from params", ids)
        tags = _by_run(db, "select run_uuid, key, value from tags", ids)
        metrics = _by_run(
            db, "select run_uuid, key, case when is_nan then 'nan' else value end from latest_metrics", ids
        )
    return [
        Run(
            run_id=run_id,
            name=name or "",
            status=status,
            start_ms=start or 0,
            end_ms=end,
            artifact_uri=uri or "",
            params=params.get(run_id, {}),
            metrics={k: float(v) for k, v in metrics.get(run_id, {}).items()},
            tags=tags.get(run_id, {}),
        )
        for run_id, name, status, start, end, uri in rows
    ]


def _by_run(db: sqlite3.Connection, query: str, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}

    def add(rows: Iterable[tuple[str, str, Any]]) -> None:
        for run_id, key, value in rows:
            found.setdefault(run_id, {})[key] = value

    if len(ids) > 5000:
        add(db.execute(query))
    else:
        for start in range(0, len(ids), 500):
            part = ids[start : start + 500]
            marks = ",".join("?" * len(part))
            add(db.execute(f"{query} where run_uuid in ({marks})", part))
    return found


def _server_runs(store: Store) -> list[Run]:
    from vmae.experiments.tracking import _client

    client = _client(store.uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return []
    runs: list[Run] = []
    token: str | None = None
    while True:
        page = client.search_runs([experiment.experiment_id], max_results=1000, page_token=token)
        runs += [
            Run(
                run_id=r.info.run_id,
                name=r.info.run_name or "",
                status=r.info.status,
                start_ms=r.info.start_time or 0,
                end_ms=r.info.end_time,
                artifact_uri=r.info.artifact_uri or "",
                params=dict(r.data.params),
                metrics=dict(r.data.metrics),
                tags=dict(r.data.tags),
            )
            for r in page
        ]
        token = page.token
        if not token:
            return runs
