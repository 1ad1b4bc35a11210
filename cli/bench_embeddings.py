"""`vmae bench embeddings`: a model's features on the tasks of the public benchmark, by its own code."""

from __future__ import annotations

import json
from pathlib import Path

import click

from vmae.cli.options import runs_dir_option


@click.command("embeddings")
@click.argument("model")
@click.argument("tasks", nargs=-1, required=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("mteb"),
    show_default=True,
    help="Folder of mteb's result files.",
)
@click.option("--batch", default=8, show_default=True, type=click.IntRange(1), help="Clips at a time.")
@click.option("--json", "as_json", is_flag=True, help="The scores as JSON.")
@runs_dir_option
def embeddings(
    model: str, tasks: tuple[str, ...], out: Path, batch: int, as_json: bool, runs_dir: Path | None
) -> None:
    """Measure MODEL's features on mteb's TASKS on videos, such as HMDB51Clustering (the extra mteb).

    MODEL is a run's name, a path, a name of `vmae zoo list` or hf://org/name. mteb downloads the task's data.
    """
    from vmae.experiments.embeddings import measure, named_tasks
    from vmae.experiments.tracking import store_at

    scores = measure(store_at(runs_dir), model, named_tasks(tasks), out, batch_size=batch)
    if as_json:
        click.echo(json.dumps(scores))
        return
    for name, score in scores.items():
        click.echo(f"{name}: {score:.3f}")
    click.echo(f"mteb's files: {out}")
