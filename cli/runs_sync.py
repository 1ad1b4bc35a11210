"""`vmae runs sync`: what waits to be sent to the tracking store."""

from __future__ import annotations

from pathlib import Path

import click

from vmae.cli.options import runs_dir_option
from vmae.cli.runs_common import open_store


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
