"""`vmae runs list`: runs as a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmae.cli.options import runs_dir_option
from vmae.cli.runs_common import RESULT, cell, filter_options, filters_of, open_store
from vmae.experiments import stages
from vmae.experiments.stages.stage import SPEED

if TYPE_CHECKING:
    from vmae.experiments.runs import Filter, Run
    from vmae.experiments.stages.stage import Metric
    from vmae.experiments.tracking import Store

DEFAULT_COLUMNS = ",".join(
    ["id", "name", "kind", "status", "started", "minutes", RESULT]
    + [m.name for m in stages.columns() if m.unit != SPEED and not m.score]
)


@click.command("list")
@filter_options
@click.option(
    "--sort",
    help="Column to sort by: a metric, a parameter, minutes, name, ...  [default: newest first]",
)
@click.option("--ascending", is_flag=True, help="Smallest (or oldest) first.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=30,
    show_default=True,
    help="Show at most this many; 0 for all.",
)
@click.option("--columns", help=f"Columns, comma separated.  [default: {DEFAULT_COLUMNS}]")
@click.option("--json", "as_json", is_flag=True, help="Everything about each run, as JSON.")
@runs_dir_option
@click.pass_context
def list_(
    ctx: click.Context,
    where: tuple[str, ...] = (),
    kind: str | None = None,
    sweep: str | None = None,
    sort: str | None = None,
    ascending: bool = False,
    limit: int = 30,
    columns: str | None = None,
    as_json: bool = False,
    runs_dir: Path | None = None,
) -> None:
    """List runs, newest first; the trials of a --sweep best first."""
    from vmae.experiments.runs import check_columns, list_runs

    store = open_store(ctx, runs_dir)
    filters = filters_of(store, where, kind, sweep)
    names = [n.strip() for n in (columns or DEFAULT_COLUMNS).split(",") if n.strip()]
    check_columns(store, [*(n for n in names if columns and n != RESULT), *([sort] if sort else [])])
    ranked = _sweep_metric(store, sweep) if sweep and not sort else None
    found = list_runs(
        store,
        where=filters,
        sort=ranked.name if ranked else sort or "start_ms",
        descending=(ranked is None or ranked.higher_is_better) != ascending,
        limit=limit or None,
        columns=None if as_json else [*names, *(stages.RESULTS if RESULT in names else ())],
    )
    if as_json:
        click.echo(json.dumps([r.to_json() for r in found], indent=1))
    elif not found:
        click.echo(_nothing(store, filters))
    else:
        click.echo(_table(found, names, keep_empty=columns is not None))
        if len(found) == limit:
            click.echo(f"(the first {limit}; --limit 0 shows all)", err=True)


def _sweep_metric(store: Store, sweep: str) -> Metric:
    """The metric that ranks a sweep's trials."""
    from vmae.experiments.runs import list_sweeps

    parent = next((s for s in list_sweeps(store) if s.name == sweep), None)
    return stages.ranked_by(parent.tags if parent else {})


def _nothing(store: Store, filters: list[Filter]) -> str:
    if filters:
        conditions = " and ".join(f"{f.column} {f.op} {f.value}" for f in filters)
        return f"no run in {store.uri} with {conditions}"
    return f"no runs yet in {store.uri}; start some with `vmae sweep masking_ratio` or `vmae pretrain`"


def _table(found: Sequence[Run], columns: list[str], keep_empty: bool) -> str:
    from vmae.cli.tables import format_table

    rows = [[cell(run, c) for c in columns] for run in found]
    if not keep_empty:
        # A metric that none of the shown runs has would be a column of dashes.
        full = [i for i in range(len(columns)) if any(row[i] != "-" for row in rows)]
        columns = [columns[i] for i in full]
        rows = [[row[i] for i in full] for row in rows]
    return format_table(columns, rows, left=sum(c in ("id", "name", "kind", "status") for c in columns))
