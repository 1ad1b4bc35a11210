"""`vmae runs export`: runs as a table for other programs."""

from __future__ import annotations

from pathlib import Path

import click

from vmae.cli.options import runs_dir_option
from vmae.cli.runs_common import filter_options, filters_of, open_store


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@filter_options
@runs_dir_option
@click.pass_context
def export(
    ctx: click.Context,
    file: Path,
    where: tuple[str, ...],
    kind: str | None,
    sweep: str | None,
    runs_dir: Path | None,
) -> None:
    """Write runs to FILE (.csv or .parquet): one row a run, columns metrics.*, params.* and tags.*."""
    from vmae.core.errors import InputError
    from vmae.experiments.runs import export, list_runs

    if file.suffix not in (".csv", ".parquet"):
        raise InputError(f"expected a file name that ends in .csv or .parquet, got '{file}'")
    store = open_store(ctx, runs_dir)
    found = list_runs(store, where=filters_of(store, where, kind, sweep))
    if not found:
        raise InputError(f"expected runs to export in {store.uri}, found none")
    export(found, file)
    click.echo(f"{len(found)} runs in {file}")
