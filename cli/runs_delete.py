"""`vmae runs delete` and `vmae runs gc`: both show what would go, and ask."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from vmae.cli.options import in_runs_dir, runs_dir_option
from vmae.cli.runs import cell, filter_options, filters_of, open_store


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
    from vmae.cli.tables import format_table
    from vmae.core.errors import InputError
    from vmae.experiments import housekeeping, results

    store = open_store(ctx, runs_dir)
    filters = filters_of(store, where, kind, sweep)
    if bool(runs) == bool(filters):
        raise InputError(
            "expected runs to delete, or filters that choose them" + (", not both" if runs else "")
        )
    chosen = [results.find(store, r) for r in runs] or results.list_runs(store, where=filters)
    chosen = housekeeping.with_trials(store, chosen)
    if not chosen:
        click.echo("no run fits: nothing to delete")
        return
    names = ["id", "name", "kind", "status", "started"]
    click.echo(format_table(names, [[cell(r, c) for c in names] for r in chosen], left=5))
    _confirm(f"delete {_count(len(chosen), 'run')} from {store.uri}?", yes)
    housekeeping.delete_runs(store, chosen)
    click.echo(f"deleted {_count(len(chosen), 'run')}; their files: vmae runs gc{in_runs_dir(store)}")


@click.command()
@click.option("--delete", "really", is_flag=True, help="Remove them. Without it they are only listed.")
@click.option("--yes", is_flag=True, help="With --delete: do not ask.")
@runs_dir_option
@click.pass_context
def gc(ctx: click.Context, really: bool, yes: bool, runs_dir: Path | None) -> None:
    """List files that no run needs: checkpoints and artifacts of deleted runs, leftovers of killed processes.

    Nothing is removed without --delete. Runs of another store, unsent or maybe running ones are kept.
    """
    from vmae.cli.tables import format_table
    from vmae.experiments import housekeeping

    store = open_store(ctx, runs_dir)
    orphans, kept = housekeeping.find_orphans(store)
    for title, entries in (("kept though no run is listed", kept), ("not needed by any run", orphans)):
        if entries:
            rows = [[str(o.path.relative_to(store.runs_dir)), o.reason, _bytes(o.size)] for o in entries]
            click.echo(format_table([title, "why", "size"], rows, left=2) + "\n")
    total = sum(o.size for o in orphans)
    if not orphans:
        click.echo(f"nothing to remove in {store.remote or store.runs_dir}")
        return
    if not really:
        click.echo(f"{_bytes(total)} could be freed: vmae runs gc --delete{in_runs_dir(store)}")
        return
    what = f"{_count(len(orphans), 'entry', 'entries')} ({_bytes(total)})"
    _confirm(f"remove {what} from {store.remote or store.runs_dir}?", yes)
    click.echo(f"freed {_bytes(housekeeping.remove(store, orphans))}")


def _confirm(question: str, yes: bool) -> None:
    from vmae.core.errors import InputError

    if yes:
        return
    if not sys.stdin.isatty():
        raise InputError("expected --yes where there is no terminal to ask on; nothing was removed")
    click.confirm(question, abort=True)


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _bytes(size: int) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} B"
