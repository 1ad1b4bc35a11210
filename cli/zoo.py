"""`vmae zoo`: the published checkpoints."""

from __future__ import annotations

import click


@click.group()
def zoo() -> None:
    """Published checkpoints: what there is and how each did."""


@zoo.command("list")
@click.option("--size", type=click.Choice(["small", "base", "large", "huge"]), help="Only this size.")
@click.option("--task", type=click.Choice(["pretrain", "finetune", "distilled"]), help="Only this task.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(size: str | None, task: str | None, as_json: bool) -> None:
    """List the published checkpoints with their recipes and results.

    Results are the publishers'. Names whose source begins with hf:// work as they are wherever --init is
    taken; the others are downloaded by hand. The weights are their authors': mind their licences.
    """
    import dataclasses
    import json

    from vmae.cli.tables import format_table
    from vmae.core.weights.zoo import ZOO

    rows = [e for e in ZOO if size in (None, e.size) and task in (None, e.task)]
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(e) for e in rows], indent=2))
        return
    header = ["name", "size", "data", "recipe", "views", "top-1", "top-5", "source"]
    cells = [
        [
            e.name,
            e.size,
            e.data,
            e.recipe,
            e.views or "-",
            "-" if e.top1 is None else f"{e.top1:.1f}",
            "-" if e.top5 is None else f"{e.top5:.1f}",
            e.where,
        ]
        for e in rows
    ]
    click.echo(format_table(header, cells, left=len(header)))
    for e in rows:
        if e.note:
            click.echo(f"{e.name}: {e.note}")


@zoo.command("fetch")
@click.argument("source")
def fetch(source: str) -> None:
    """Download SOURCE (a name of `vmae zoo list`, or hf://org/name) and print where it is."""
    from vmae.core.weights.zoo import resolve

    click.echo(resolve(source))
