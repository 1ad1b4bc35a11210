"""`vmae runs delete`: shows what would go, and asks."""

from __future__ import annotations

from pathlib import Path

import click

from vmae.cli.options import confirm, in_runs_dir, runs_dir_option
from vmae.cli.runs_common import cell, filter_options, filters_of, open_store


@click.command()
@click.argument("runs", nargs=-1)
@filter_options
@click.option("--yes", is_flag=True, help="Do not ask.")
@runs_dir_option
@click.pass_context
def delete(
    ctx: click.Context,
    runs: tuple[str, ...],
    where: tuple[str, ...],
    kind: str | None,
    sweep: str | None,
    yes: bool,
    runs_dir: Path | None,
) -> None:
    """Delete RUNS (ids or names), or those that the filters choose, from the store; a sweep with its trials.

    Their files stay until `vmae runs gc --delete`.
    """
    from vmae.cli.tables import count_text, format_table
    from vmae.core.errors import InputError
    from vmae.experiments import housekeeping
    from vmae.experiments.runs import find, list_runs

    store = open_store(ctx, runs_dir)
    filters = filters_of(store, where, kind, sweep)
    if bool(runs) == bool(filters):
        raise InputError(
            "expected runs to delete, or filters that choose them" + (", not both" if runs else "")
        )
    chosen = [find(store, r) for r in runs] or list_runs(store, where=filters)
    chosen = housekeeping.with_trials(store, chosen)
    if not chosen:
        click.echo("no run fits: nothing to delete")
        return
    names = ["id", "name", "kind", "status", "started"]
    click.echo(format_table(names, [[cell(r, c) for c in names] for r in chosen], left=5))
    confirm(f"delete {count_text(len(chosen), 'run')} from {store.uri}?", yes)
    housekeeping.delete_runs(store, chosen)
    click.echo(f"deleted {count_text(len(chosen), 'run')}; their files: vmae runs gc{in_runs_dir(store)}")
