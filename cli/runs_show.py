"""`vmae runs show`: everything about one run."""

from __future__ import annotations

import json
from pathlib import Path

import click

from vmae.cli.options import runs_dir_option
from vmae.cli.runs_common import cell, open_store


@click.command()
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
@runs_dir_option
@click.pass_context
def show(ctx: click.Context, run: str, as_json: bool, runs_dir: Path | None) -> None:
    """Show one RUN: an id, the start of an id, or a name."""
    from vmae.cli.tables import format_table
    from vmae.experiments.runs import find
    from vmae.experiments.tracking import tags

    found = find(open_store(ctx, runs_dir), run)
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
        "recipe": found.tags.get(tags.RECIPE, ""),
        "command": found.tags.get(tags.COMMAND, ""),
        "commit": found.tags.get(tags.COMMIT, ""),
        "data": found.tags.get(tags.DATA_DIGEST, ""),
        "checkpoint": found.tags.get(tags.CHECKPOINT, ""),
        "refused by the store": found.tags.get(tags.REFUSED, ""),
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
