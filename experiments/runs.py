"""The only reader of the store: runs -> rows, curves and pictures, for the command line and the dashboard.

An SQLite store is read with plain SQL, because importing MLflow costs more than a second and a list of ten
thousand runs must not; a tracking server is read through MLflow's client. Both give the same `Run`.
"""

from __future__ import annotations

import math
import operator
import re
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from vmae.core.errors import InputError, nearest
from vmae.experiments.tracking import EXPERIMENT, Store, reachable, sqlite, tags

_TAG_COLUMNS = {"kind": tags.KIND, "key": tags.KEY, "sweep": tags.SWEEP, "parent_id": tags.PARENT}
_HEAD_COLUMNS = ("run_id", "name", "status", "start_ms", "end_ms", "duration_s")
ALIASES = {"id": "run_id", "started": "start_ms", "minutes": "duration_s"}
"""Column names of the command line that show another column in a shorter form."""


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
        return self.tags.get(tags.KIND, "")

    @property
    def key(self) -> str:
        return self.tags.get(tags.KEY, "")

    @property
    def sweep(self) -> str:
        return self.tags.get(tags.SWEEP, "")

    @property
    def parent_id(self) -> str | None:
        return self.tags.get(tags.PARENT)

    @property
    def duration_s(self) -> float | None:
        return None if self.end_ms is None else (self.end_ms - self.start_ms) / 1000

    @property
    def checkpoint(self) -> Path | None:
        """Folder of the run's last model, or None where it wrote none."""
        value = self.tags.get(tags.CHECKPOINT)
        return Path(value) if value else None

    def value(self, column: str) -> Any:
        """A column by name: `name`, `kind`, `status`, ..., a metric, a parameter or a tag; None if absent."""
        column = ALIASES.get(column, column)
        if column in _HEAD_COLUMNS:
            return getattr(self, column)
        if column in _TAG_COLUMNS:
            return self.tags.get(_TAG_COLUMNS[column])
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
    """One condition on a run: `column op value`, for example `probe/top1 >= 0.3` or `kind = trial`."""

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

    def accepts(self, got: Any) -> bool:
        """Whether a run with this value of the column passes; a run without one never does."""
        if got is None:
            return False
        compare: Callable[[Any, Any], bool] = self._OPS[self.op]
        try:
            value = float(self.value) * (60 if self.column == "minutes" else 1)
            return compare(float(got), value)
        except ValueError:
            pass
        if self.column == "status":
            return compare(str(got).upper(), self.value.upper())
        return compare(str(got), self.value)


def list_runs(
    store: Store,
    *,
    where: Sequence[Filter] = (),
    sort: str = "start_ms",
    descending: bool = True,
    limit: int | None = None,
    columns: Sequence[str] | None = None,
) -> list[Run]:
    """Runs of the store, newest first unless sorted otherwise; runs without the sorted column come last.

    `columns` limits which parameters, metrics and tags are read (all by default): reading two columns of ten
    thousand runs takes a twentieth of the time of reading everything. A column that is NaN counts as absent
    for the order.
    """
    if not exists(store):
        return []
    path = store.sqlite_path
    if path is None:
        runs = _server_runs(store, where, limit if sort == "start_ms" and descending else None)
        return _select(runs, lambda name: {r.run_id: r.value(name) for r in runs}, where, sort, descending)[
            :limit
        ]
    with sqlite.opened(path) as db:
        heads = [Run(**head) for head in sqlite.heads(db, EXPERIMENT)]

        def column(name: str) -> dict[str, Any]:
            return _column(db, heads, name)

        chosen = _select(heads, column, where, sort, descending)[:limit]
        return _with_details(db, chosen, columns)


def _select(
    runs: list[Run],
    column: Callable[[str], dict[str, Any]],
    where: Sequence[Filter],
    sort: str,
    descending: bool,
) -> list[Run]:
    """Filter and sort by columns that `column(name)` gives as {run id: value}."""
    for condition in where:
        values = column(condition.column)
        runs = [r for r in runs if condition.accepts(values.get(r.run_id))]
    values = column(sort)
    keys = {r.run_id: _sort_key(values.get(r.run_id)) for r in runs}
    present = [r for r in runs if keys[r.run_id] is not None]
    absent = [r for r in runs if keys[r.run_id] is None]
    present.sort(key=lambda r: keys[r.run_id] or (0, ""), reverse=descending)
    return present + absent


def check_columns(store: Store, columns: Sequence[str]) -> None:
    """Refuse a column that no run of the store has.

    Raises:
        InputError: names the column and the nearest known one. An empty store accepts any.
    """
    wanted = [c for c in columns if c not in (*_HEAD_COLUMNS, *_TAG_COLUMNS, *ALIASES)]
    if not wanted or not exists(store):
        return
    known = known_columns(store)
    for name in wanted:
        if known and name not in known:
            raise InputError(f"expected a column that some run has, got '{name}'{nearest(name, known)}")


def known_columns(store: Store) -> list[str]:
    """Every metric, parameter and tag that some run has, sorted."""
    path = store.sqlite_path
    if path is None:
        runs = list_runs(store)
        return sorted({k for r in runs for group in (r.metrics, r.params, r.tags) for k in group})
    if not exists(store):
        return []
    with sqlite.opened(path) as db:
        return sorted(sqlite.all_keys(db))


def deleted_runs(store: Store) -> dict[str, str]:
    """Runs that the store says were deleted: {run id: key}. A run it does not know is not among them."""
    if not exists(store):
        return {}
    if store.sqlite_path is not None:
        with sqlite.opened(store.sqlite_path) as db:
            return sqlite.deleted(db, EXPERIMENT, tags.KEY)
    found: dict[str, str] = {}
    with reachable(store) as client:
        from mlflow.entities import ViewType

        experiment = client.get_experiment_by_name(EXPERIMENT)
        token: str | None = None
        while experiment is not None:
            page = client.search_runs(
                [experiment.experiment_id],
                run_view_type=ViewType.DELETED_ONLY,
                max_results=1000,
                page_token=token,
            )
            found |= {str(r.info.run_id): r.data.tags.get(tags.KEY, "") for r in page}
            token = page.token
            if not token:
                break
    return found


def exists(store: Store) -> bool:
    """Whether there is a store to read (a server is taken to exist)."""
    path = store.sqlite_path
    return path is None or path.exists()


def find(store: Store, what: str) -> Run:
    """The run with this id, unique start of an id (4 characters or more) or name (the newest of that name).

    Raises:
        InputError: none or several match; names the nearest.
    """
    runs = list_runs(store, columns=["key"])
    exact = [r for r in runs if what in (r.run_id, r.key)]
    if not exact:
        exact = [r for r in runs if r.name == what][:1]
    if not exact and len(what) >= 4:
        exact = [r for r in runs if r.run_id.startswith(what)]
    if len(exact) == 1:
        (found,) = list_runs(store, where=[Filter(column="run_id", op="=", value=exact[0].run_id)])
        return found
    if exact:
        raise InputError(f"expected one run, got {len(exact)} whose id starts with '{what}'")
    names = list(dict.fromkeys(r.name for r in runs))
    raise InputError(
        f"expected the name or id of a run in {store.uri}, got '{what}'{nearest(what, names)}"
        + ("" if runs else ": the store has no runs yet")
    )


def children(store: Store, parent: Run) -> list[Run]:
    """The runs under a sweep's parent run, oldest first."""
    return list_runs(store, where=[Filter(column="parent_id", op="=", value=parent.run_id)], descending=False)


def list_sweeps(store: Store) -> list[Run]:
    """Parent runs of sweeps, newest first."""
    return list_runs(store, where=[Filter(column="kind", op="=", value=tags.SWEEPS)])


def best_run(store: Store, metric: str, *, highest: bool = True, where: Sequence[Filter] = ()) -> Run:
    """The run with the highest (or lowest) latest value of a metric.

    Raises:
        InputError: no run has the metric; names the nearest one there is.
    """
    runs = list_runs(store, where=where, sort=metric, descending=highest, limit=1)
    if not runs or not math.isfinite(runs[0].metrics.get(metric, math.nan)):
        known = sorted({m for r in list_runs(store, where=where) for m in r.metrics})
        raise InputError(f"expected a metric that some run has, got '{metric}'{nearest(metric, known)}")
    return runs[0]


def history(store: Store, run_id: str, metric: str) -> list[tuple[int, float]]:
    """A metric's curve: (step, value), in the order of steps; empty where the run has none."""
    path = store.sqlite_path
    if path:
        with sqlite.opened(path) as db:
            return sqlite.history(db, run_id, metric)
    with reachable(store) as client:
        points = client.get_metric_history(run_id, metric)
    return sorted((int(p.step), float(p.value)) for p in points)


def experiment_id(store: Store) -> str:
    """The id of the store's experiment, as addresses of MLflow's pages need it; empty where there is none."""
    path = store.sqlite_path
    if path:
        if not path.exists():
            return ""
        with sqlite.opened(path) as db:
            return sqlite.experiment_id(db, EXPERIMENT)
    with reachable(store) as client:
        found = client.get_experiment_by_name(EXPERIMENT)
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
    path = Path(unquote(parsed.path if parsed.scheme else run.artifact_uri))
    return path if path.is_dir() else None


def as_columns(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Runs as columns: what identifies them, `metrics.*`, `params.*`, `tags.*`; None where a run lacks it."""
    heads = ("run_id", "name", "kind", "status", "start_ms", "end_ms", "artifact_uri")
    columns: dict[str, list[Any]] = {h: [getattr(r, h) for r in runs] for h in heads}
    for group in ("metrics", "params", "tags"):
        for key in sorted({k for r in runs for k in getattr(r, group)}):
            columns[f"{group}.{key}"] = [getattr(r, group).get(key) for r in runs]
    return columns


def export(runs: Sequence[Run], file: Path) -> None:
    """Write runs as `.csv` or `.parquet`: one row a run, columns `metrics.*`, `params.*`, `tags.*`.

    Metrics are numbers, everything else text (`start_ms`, `end_ms` integers); what a run lacks is empty.
    """
    columns = as_columns(runs)
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        types = {"start_ms": pa.int64(), "end_ms": pa.int64()}

        def kind(name: str) -> pa.DataType:
            return pa.float64() if name.startswith("metrics.") else types.get(name, pa.string())

        arrays = {name: pa.array(values, kind(name)) for name, values in columns.items()}
        pq.write_table(pa.table(arrays), file)
        return
    import csv

    with open(file, "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def _sort_key(value: Any) -> tuple[int, Any] | None:
    """Numbers before text, by value; None for what cannot be ordered."""
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return (1, str(value))
    return None if math.isnan(number) else (0, number)


def _column(db: sqlite3.Connection, heads: Sequence[Run], name: str) -> dict[str, Any]:
    """One column of every run: {run id: value}."""
    name = ALIASES.get(name, name)
    if name in _HEAD_COLUMNS:
        return {r.run_id: getattr(r, name) for r in heads}
    if name in _TAG_COLUMNS:
        return sqlite.column(db, "tags", _TAG_COLUMNS[name])
    found: dict[str, Any] = {}
    for table in ("tags", "params", "latest_metrics"):
        found |= sqlite.column(db, table, name)
    return found


def _with_details(db: sqlite3.Connection, heads: Sequence[Run], columns: Sequence[str] | None) -> list[Run]:
    """The runs with their parameters, tags and latest metrics (or those among `columns`)."""
    keys = None if columns is None else [_TAG_COLUMNS.get(c, c) for c in columns]
    ids = [r.run_id for r in heads]
    params, carried, metrics = (
        sqlite.values(db, table, ids, keys) for table in ("params", "tags", "latest_metrics")
    )
    return [
        replace(
            r,
            params=params.get(r.run_id, {}),
            tags=carried.get(r.run_id, {}),
            metrics=metrics.get(r.run_id, {}),
        )
        for r in heads
    ]


def _server_runs(store: Store, where: Sequence[Filter], limit: int | None) -> list[Run]:
    """Runs from a tracking server, newest first: it filters by tag, the rest is done here."""
    asked = [f for f in where if f.op == "=" and f.column in _TAG_COLUMNS and "'" not in f.value]
    query = " and ".join(f"tags.`{_TAG_COLUMNS[f.column]}` = '{f.value}'" for f in asked)
    wanted = limit if len(asked) == len(where) else None
    with reachable(store) as client:
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            return []
        runs: list[Run] = []
        token: str | None = None
        while True:
            size = 1000 if wanted is None else min(1000, wanted - len(runs))
            page = client.search_runs(
                [experiment.experiment_id],
                query,
                max_results=size,
                page_token=token,
                order_by=["start_time DESC"],
            )
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
            if not token or (wanted is not None and len(runs) >= wanted):
                return runs
