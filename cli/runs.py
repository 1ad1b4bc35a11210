"""`vmae runs`: what was run and what came of it, read from the MLflow store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmae.cli.options import runs_dir_option

if TYPE_CHECKING:
    from vmae.experiments.results import Filter, Run

DEFAULT_COLUMNS = "id,name,kind,status,started,minutes,pretrain/loss,eval/loss,probe/top1"


@click.group(invoke_without_command=True)
@runs_dir_option
@click.pass_context
def runs(ctx: click.Context, runs_dir: Path | None) -> None:
    """List, show and compare runs. Without a verb: list them."""
    ctx.obj = runs_dir
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_)


@runs.command("list")
@click.option(
    "--where",
    multiple=True,
    metavar="'COLUMN OP VALUE'",
    help="Condition, for example 'probe/top1 > 0.3' (repeatable).",
)
@click.option("--kind", help="Only pretrain, finetune, probe, evaluate, trial or sweep runs.")
@click.option("--sweep", help="Only the trials of this sweep.")
@click.option(
    "--sort",
    default="start_ms",
    help="Column to sort by: a metric, a parameter, name, ...  [default: newest first]",
)
@click.option("--ascending", is_flag=True, help="Smallest (or oldest) first.")
@click.option("--limit", type=int, default=30, show_default=True, help="Show at most this many; 0 for all.")
@click.option("--columns", help=f"Columns, comma separated.  [default: {DEFAULT_COLUMNS}]")
@click.option("--json", "as_json", is_flag=True, help="Everything about each run, as JSON.")
@runs_dir_option
@click.pass_context
def list_(
    ctx: click.Context,
    where: tuple[str, ...] = (),
    kind: str | None = None,
    sweep: str | None = None,
    sort: str = "start_ms",
    ascending: bool = False,
    limit: int = 30,
    columns: str | None = None,
    as_json: bool = False,
    runs_dir: Path | None = None,
) -> None:
    """List runs, newest first."""
    from vmae.experiments import results
    from vmae.experiments.results import Filter
    from vmae.experiments.tracking import store_at

    store = store_at(runs_dir or ctx.obj)
    filters = [Filter.parse(w) for w in where]
    if kind:
        filters.append(Filter(column="kind", op="=", value=kind))
    if sweep:
        filters += [Filter(column="sweep", op="=", value=sweep), Filter(column="kind", op="=", value="trial")]
        if sort == "start_ms":
            sort = "probe/top1"
    found = results.list_runs(store, where=filters, sort=sort, descending=not ascending, limit=limit or None)
    if as_json:
        click.echo(json.dumps([r.to_json() for r in found], indent=1))
        return
    if not found:
        click.echo(_nothing(store.uri, filters))
        return
    names = (columns or DEFAULT_COLUMNS).split(",")
    click.echo(_table(found, [n.strip() for n in names], keep_empty=columns is not None))


@runs.command()
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
@runs_dir_option
@click.pass_context
def show(ctx: click.Context, run: str, as_json: bool, runs_dir: Path | None) -> None:
    """Show one RUN: an id, the start of an id, or a name."""
    from vmae.cli.tables import format_table
    from vmae.experiments import results
    from vmae.experiments.tracking import store_at

    found = results.find(store_at(runs_dir or ctx.obj), run)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=1))
        return
    click.echo(f"{found.name}  {found.run_id}")
    click.echo(
        f"{found.kind}, {found.status.lower()}, started {_cell(found, 'started')}, "
        f"took {_cell(found, 'minutes')} min"
    )
    if found.sweep:
        click.echo(f"sweep: {found.sweep}")
    if found.checkpoint:
        click.echo(f"checkpoint: {found.checkpoint}")
    if found.metrics:
        rows = [[k, f"{v:.6g}"] for k, v in sorted(found.metrics.items())]
        click.echo("\n" + format_table(["metric", "last value"], rows))
    if found.params:
        click.echo(
            "\n"
            + format_table(["parameter", "value"], sorted([k, v] for k, v in found.params.items()), left=2)
        )


@runs.command()
@click.option("--metric", default="probe/top1", show_default=True, help="What to rank by.")
@click.option("--lowest", is_flag=True, help="The lowest value wins.")
@click.option("--sweep", help="Only the trials of this sweep.")
@click.option("--json", "as_json", is_flag=True, help="Everything about the run, as JSON.")
@runs_dir_option
@click.pass_context
def best(
    ctx: click.Context, metric: str, lowest: bool, sweep: str | None, as_json: bool, runs_dir: Path | None
) -> None:
    """Show the run with the best value of a metric."""
    from vmae.experiments import results
    from vmae.experiments.results import Filter
    from vmae.experiments.tracking import store_at

    filters = [Filter(column="sweep", op="=", value=sweep)] if sweep else []
    found = results.best_run(store_at(runs_dir or ctx.obj), metric, highest=not lowest, where=filters)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=1))
        return
    click.echo(f"{found.name}  {metric} = {found.metrics[metric]:.6g}  {found.run_id}")
    if found.checkpoint:
        click.echo(f"checkpoint: {found.checkpoint}")
    click.echo(f"all of it: vmae runs show {found.run_id[:8]}")


@runs.command()
@runs_dir_option
@click.pass_context
def sync(ctx: click.Context, runs_dir: Path | None) -> None:
    """Send what the tracking store missed while it was away."""
    from vmae.experiments.tracking import store_at
    from vmae.experiments.tracking import sync as send

    outcomes = send(store_at(runs_dir or ctx.obj).runs_dir)
    for path, outcome in outcomes:
        click.echo(f"{path.parent.name}: {outcome}")
    if not outcomes:
        click.echo("nothing waits to be sent")
    if any(outcome != "sent" for _, outcome in outcomes):
        raise SystemExit(1)


def _nothing(uri: str, filters: list[Filter]) -> str:
    if filters:
        conditions = " and ".join(f"{f.column} {f.op} {f.value}" for f in filters)
        return f"no run in {uri} with {conditions}"
    return f"no runs yet in {uri}; start some with `vmae sweep masking_ratio` or `vmae pretrain`"


def _table(found: list[Run], columns: list[str], keep_empty: bool) -> str:
    from vmae.cli.tables import format_table

    rows = [[_cell(run, c) for c in columns] for run in found]
    if not keep_empty:
        # A metric that none of the shown runs has would be a column of dashes.
        full = [i for i in range(len(columns)) if any(row[i] != "-" for row in rows)]
        columns = [columns[i] for i in full]
        rows = [[row[i] for i in full] for row in rows]
    return format_table(columns, rows, left=4)


def _cell(run: Run, column: str) -> str:
    from datetime import datetime

    if column == "id":
        return run.run_id[:8]
    if column == "started":
        return datetime.fromtimestamp(run.start_ms / 1000).strftime("%Y-%m-%d %H:%M")
    if column == "minutes":
        return f"{run.duration_s / 60:.1f}" if run.duration_s is not None else "-"
    value = run.value(column)
    if value is None or value == "":
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value.lower() if column == "status" else str(value)
