"""`vmae runs gc`: files that no run needs; shows what would go, and asks."""

from __future__ import annotations

from pathlib import Path

import click

from vmae.cli.options import confirm, in_runs_dir, runs_dir_option
from vmae.cli.runs_common import open_store


@click.command()
@click.option("--delete", "really", is_flag=True, help="Remove them. Without it they are only listed.")
@click.option("--yes", is_flag=True, help="With --delete: do not ask.")
@runs_dir_option
@click.pass_context
def gc(ctx: click.Context, really: bool, yes: bool, runs_dir: Path | None) -> None:
    """List files that no run needs: checkpoints and artifacts of deleted runs, leftovers of killed processes.

    Nothing is removed without --delete. Runs of another store, unsent or maybe running ones are kept.
    """
    from vmae.cli.tables import count_text, format_table, size_text
    from vmae.experiments import housekeeping

    store = open_store(ctx, runs_dir)
    orphans, kept = housekeeping.find_orphans(store)
    for title, entries in (("kept though no run is listed", kept), ("not needed by any run", orphans)):
        if entries:
            rows = [[str(o.path.relative_to(store.runs_dir)), o.reason, size_text(o.size)] for o in entries]
            click.echo(format_table([title, "why", "size"], rows, left=2) + "\n")
    total = sum(o.size for o in orphans)
    if not orphans:
        click.echo(f"nothing to remove in {store.shown(store.runs_dir)}")
        return
    if not really:
        click.echo(f"{size_text(total)} could be freed: vmae runs gc --delete{in_runs_dir(store)}")
        return
    what = f"{count_text(len(orphans), 'entry', 'entries')} ({size_text(total)})"
    confirm(f"remove {what} from {store.shown(store.runs_dir)}?", yes)
    click.echo(f"freed {size_text(housekeeping.remove(store, orphans))}")
