"""What the verbs of `vmae runs` share: the store, the filters, a run's values as text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmae.cli.options import Command
from vmae.experiments import stages
from vmae.experiments.stages.probe import PROBE
from vmae.experiments.tracking import tags

if TYPE_CHECKING:
    from vmae.experiments.runs import Filter, Run
    from vmae.experiments.tracking import Store

KINDS = (*stages.JOBS, PROBE.name, *tags.KINDS)


RESULT = "result"
"""A column of tables: the number that a run is for, whatever its kind."""


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
    from vmae.experiments.runs import Filter, check_columns, list_sweeps

    filters = [Filter.parse(w) for w in where]
    check_columns(store, [f.column for f in filters])
    if kind:
        if kind not in KINDS:
            raise InputError(
                f"--kind: expected one of {', '.join(KINDS)}; got '{kind}'{nearest(kind, KINDS)}"
            )
        filters.append(Filter(column="kind", op="=", value=kind))
    if sweep:
        names = [s.name for s in list_sweeps(store)]
        if sweep not in names:
            raise InputError(
                f"--sweep: expected the name of a sweep in {store.uri}, got '{sweep}'{nearest(sweep, names)}"
            )
        filters.append(Filter(column="sweep", op="=", value=sweep))
        if not kind:
            filters.append(Filter(column="kind", op="=", value=tags.TRIAL))
    return filters


def open_store(ctx: click.Context, runs_dir: Path | None) -> Store:
    """The store of `--runs-dir`, given before or after the verb."""
    from vmae.experiments.tracking import store_at

    return store_at(runs_dir or ctx.obj, remote=True, role="runs")


def cell(run: Run, column: str) -> str:
    """A run's value of a column as text."""
    from datetime import datetime

    if column == "id":
        return run.run_id[:8]
    if column == "started":
        return datetime.fromtimestamp(run.start_ms / 1000).strftime("%Y-%m-%d %H:%M")
    if column == RESULT:
        found = stages.result(run.metrics)
        return "-" if found is None else f"{found[1].text(found[2])} {found[0]}"
    if column == "minutes":
        return f"{run.duration_s / 60:.1f}" if run.duration_s is not None else "-"
    value = run.value(column)
    if value is None or value == "":
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).lower() if column == "status" else str(value)
