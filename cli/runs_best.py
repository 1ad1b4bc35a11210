"""`vmae runs best`: the run with the best value of a metric."""

from __future__ import annotations

import json
from pathlib import Path

import click

from vmae.cli.options import in_runs_dir, runs_dir_option
from vmae.cli.runs_common import filter_options, filters_of, open_store
from vmae.experiments import stages


@click.command()
@click.option("--metric", default=stages.SCORES[0], show_default=True, help="What to rank by.")
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
    from vmae.experiments.runs import best_run
    from vmae.experiments.tracking import tags

    store = open_store(ctx, runs_dir)
    found = best_run(store, metric, highest=not lowest, where=filters_of(store, where, kind, sweep))
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=1))
        return
    click.echo(f"{found.name}  {metric} = {found.metrics[metric]:.6g}  {found.run_id}")
    if tags.CHECKPOINT in found.tags:
        click.echo(f"checkpoint: {found.tags[tags.CHECKPOINT]}")
    click.echo(f"all of it: vmae runs show {found.run_id[:8]}{in_runs_dir(store)}")
