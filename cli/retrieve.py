"""`vmae retrieve`: the videos that look most like one, by their windowed features."""

from __future__ import annotations

import json
from pathlib import Path

import click

from vmae.cli.options import runs_dir_option


@click.command()
@click.argument("query")
@click.option(
    "--index",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of features, from `vmae features LIST FOLDER --window ...`.",
)
@click.option("--top", default=10, show_default=True, type=click.IntRange(1), help="How many to show.")
@click.option("--checkpoint", help="The index's model, where it has moved.")
@click.option("--page", type=click.Path(path_type=Path), help="Also write an HTML page that plays them.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@runs_dir_option
def retrieve(
    query: str,
    index: Path,
    top: int,
    checkpoint: str | None,
    page: Path | None,
    as_json: bool,
    runs_dir: Path | None,
) -> None:
    """Find the videos of an index that look most like QUERY: a video's file, or one of the index by name.

    Similarity is the cosine between the mean of QUERY's windows and a video's nearest window, whose place is
    shown.
    """
    from dataclasses import asdict

    from vmae.experiments import retrieval
    from vmae.experiments.tracking import store_at

    shown, matches = retrieval.retrieve(store_at(runs_dir), query, index, top=top, checkpoint=checkpoint)
    if as_json:
        click.echo(json.dumps([asdict(m) for m in matches], indent=1))
    else:
        for k, m in enumerate(matches, 1):
            span = "" if m.start_s is None else f"  {m.start_s:.2f}-{m.end_s:.2f} s"
            click.echo(f"{k:3}  {m.similarity:6.3f}  {m.name}{span}  {m.path}")
    if page is not None:
        retrieval.write_page(page, shown, matches)
        click.echo(f"{page}: players of the query and {len(matches)} videos", err=as_json)
