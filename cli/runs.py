"""`vmae runs`: what was run and what came of it, read from the MLflow store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmae.cli.lazy import LazyGroup, Verbs
from vmae.cli.options import Command, in_runs_dir, runs_dir_option

if TYPE_CHECKING:
    from vmae.experiments.results import Filter, Run
    from vmae.experiments.tracking import Store

DEFAULT_COLUMNS = (
    "id,name,kind,status,started,minutes,pretrain/loss,eval/loss,finetune/loss,probe/top1,finetune/top1"
)
KINDS = ("pretrain", "finetune", "probe", "evaluate", "trial", "sweep")

VERBS: Verbs = {
    "list": ("vmae.cli.runs", "list_", "List runs, newest first; filter, sort, choose columns."),
    "show": ("vmae.cli.runs", "show", "Show one run: metrics, parameters, checkpoint."),
    "compare": ("vmae.cli.runs_compare", "compare", "What differs between runs, and their curves."),
    "best": ("vmae.cli.runs", "best", "Show the run with the best value of a metric."),
    "export": ("vmae.cli.runs_export", "export", "Write runs as csv or parquet."),
    "register": (
        "vmae.cli.runs_register",
        "register",
        "Make a checkpoint a version of an MLflow model.",
    ),
    "delete": ("vmae.cli.runs_delete", "delete", "Delete runs from the store, after asking."),
    "gc": ("vmae.cli.runs_delete", "gc", "Find (and with --delete remove) files of deleted runs."),
    "sync": ("vmae.cli.runs", "sync", "Send what the tracking store missed while it was away."),
}


@click.group(cls=LazyGroup, verbs=VERBS, invoke_without_command=True)
@runs_dir_option
@click.pass_context
def runs(ctx: click.Context, runs_dir: Path | None) -> None:
    """List, show and compare runs. Without a verb: list them."""
    ctx.obj = runs_dir
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_)


def filter_options(command: Command) -> Command:
    """`--where`, `--kind` and `--sweep`, read by `filters_of`."""
    for option in (
        click.option("--sweep", help="Only the trials of this sweep."),
        click.option("--kind", help=f"Only runs of this kind: {', '.join(KINDS)}."),
        click.option(
            "--where",
            multiple=True,
            metavar="'COLUMN OP VALUE'",
            help="Condition, for example 'probe/top1 > 0.3' or 'status = failed' (repeatable).",
        ),
    ):
        command = option(command)
    return command


def filters_of(store: Store, where: tuple[str, ...], kind: str | None, sweep: str | None) -> list[Filter]:
    """The conditions of `filter_options`; InputError for one that names nothing there is."""
    from vmae.core.errors import InputError, nearest
    from vmae.experiments import results
    from vmae.experiments.results import Filter

    filters = [Filter.parse(w) for w in where]
    results.check_columns(store, [f.column for f in filters])
    if kind:
        if kind not in KINDS:
            raise InputError(
                f"--kind: expected one of {', '.join(KINDS)}; got '{kind}'{nearest(kind, KINDS)}"
            )
        filters.append(Filter(column="kind", op="=", value=kind))
    if sweep:
        names = [s.name for s in results.list_sweeps(store)]
        if sweep not in names:
            raise InputError(
                f"--sweep: expected the name of a sweep in {store.uri}, got '{sweep}'{nearest(sweep, names)}"
            )
        filters.append(Filter(column="sweep", op="=", value=sweep))
        if not kind:
            filters.append(Filter(column="kind", op="=", value="trial"))
    return filters


def open_store(ctx: click.Context, runs_dir: Path | None) -> Store:
    """The store of `--runs-dir`, given before or after the verb."""
    from vmae.experiments.tracking import store_at

    return store_at(runs_dir or ctx.obj, remote=True, role="runs")


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
    from vmae.experiments import results

    store = open_store(ctx, runs_dir)
    filters = filters_of(store, where, kind, sweep)
    names = [n.strip() for n in (columns or DEFAULT_COLUMNS).split(",") if n.strip()]
    results.check_columns(store, [*(names if columns else []), *([sort] if sort else [])])
    found = results.list_runs(
        store,
        where=filters,
        sort=sort or (_sweep_metric(store, sweep) if sweep else "start_ms"),
        descending=not ascending,
        limit=limit or None,
        columns=None if as_json else names,
    )
    if as_json:
        click.echo(json.dumps([r.to_json() for r in found], indent=1))
    elif not found:
        click.echo(_nothing(store, filters))
    else:
        click.echo(_table(found, names, keep_empty=columns is not None))
        if len(found) == limit:
            click.echo(f"(the first {limit}; --limit 0 shows all)", err=True)


@click.command()
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
@runs_dir_option
@click.pass_context
def show(ctx: click.Context, run: str, as_json: bool, runs_dir: Path | None) -> None:
    """Show one RUN: an id, the start of an id, or a name."""
    from vmae.cli.tables import format_table
    from vmae.experiments import results

    found = results.find(open_store(ctx, runs_dir), run)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=1))
        return
    click.echo(f"{found.name}  {found.run_id}")
    click.echo(
        f"{found.kind}, {found.status.lower()}, started {cell(found, 'started')}, "
        f"took {cell(found, 'minutes')} min"
    )
    facts = {
        "sweep": found.sweep,
        "recipe": found.tags.get("vmae.recipe", ""),
        "command": found.tags.get("vmae.command", ""),
        "commit": found.tags.get("mlflow.source.git.commit", ""),
        "data": found.tags.get("vmae.data_digest", ""),
        "checkpoint": found.tags.get(results.CHECKPOINT_TAG, ""),
        "refused by the store": found.tags.get("vmae.refused", ""),
    }
    for name, value in facts.items():
        if value:
            click.echo(f"{name}: {value}")
    if found.metrics:
        rows = [[k, f"{v:.6g}"] for k, v in sorted(found.metrics.items())]
        click.echo("\n" + format_table(["metric", "last value"], rows))
    if found.params:
        pairs = sorted([k, v] for k, v in found.params.items())
        click.echo("\n" + format_table(["parameter", "value"], pairs, left=2))


@click.command()
@click.option("--metric", default="probe/top1", show_default=True, help="What to rank by.")
@click.option("--lowest", is_flag=True, help="The lowest value wins.")
@filter_options
@click.option("--json", "as_json", is_flag=True, help="Everything about the run, as JSON.")
@runs_dir_option
@click.pass_context
def best(
    ctx: click.Context,
    metric: str,
    lowest: bool,
    where: tuple[str, ...],
    kind: str | None,
    sweep: str | None,
    as_json: bool,
    runs_dir: Path | None,
) -> None:
    """Show the run with the best value of a metric."""
    from vmae.experiments import results

    store = open_store(ctx, runs_dir)
    found = results.best_run(store, metric, highest=not lowest, where=filters_of(store, where, kind, sweep))
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=1))
        return
    click.echo(f"{found.name}  {metric} = {found.metrics[metric]:.6g}  {found.run_id}")
    if results.CHECKPOINT_TAG in found.tags:
        click.echo(f"checkpoint: {found.tags[results.CHECKPOINT_TAG]}")
    click.echo(f"all of it: vmae runs show {found.run_id[:8]}{in_runs_dir(store)}")


@click.command()
@runs_dir_option
@click.pass_context
def sync(ctx: click.Context, runs_dir: Path | None) -> None:
    """Send what the tracking store missed while it was away."""
    from vmae.experiments.tracking import sync as send

    store = open_store(ctx, runs_dir)
    outcomes = send(store.remote or store.runs_dir)
    for path, outcome in outcomes:
        click.echo(f"{path.parent.name}: {outcome}")
    if not outcomes:
        click.echo("nothing waits to be sent")
    if any(outcome != "sent" for _, outcome in outcomes):
        raise SystemExit(1)


def _sweep_metric(store: Store, sweep: str) -> str:
    """The metric that ranks a sweep's trials."""
    from vmae.experiments import results

    parent = next((s for s in results.list_sweeps(store) if s.name == sweep), None)
    return parent.tags.get("vmae.metric", "probe/top1") if parent else "probe/top1"


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


def cell(run: Run, column: str) -> str:
    """A run's value of a column as text."""
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
    return str(value).lower() if column == "status" else str(value)
