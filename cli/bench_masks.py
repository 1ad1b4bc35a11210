"""`vmae bench masks`: what drawing a step's masks costs the host."""

from __future__ import annotations

import click


@click.command()
@click.option(
    "--clips",
    "totals",
    multiple=True,
    type=click.IntRange(1),
    default=(64, 1024, 2048, 4096),
    show_default=True,
    help="Clips of a step over all processes, repeats counted (repeatable).",
)
@click.option(
    "--own", default=64, show_default=True, type=click.IntRange(1), help="Clips of this process among them."
)
@click.option(
    "--repeats", default=15, show_default=True, type=click.IntRange(1), help="Times each is measured."
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def masks(totals: tuple[int, ...], own: int, repeats: int, as_json: bool) -> None:
    """Measure VideoMAE V2's dual masks of 16x224x224 clips on one CPU thread.

    Before: all clips' masks drawn and sorted by every process. Now: drawn, a process's own kept, those
    sorted; the same indices, checked first.
    """
    import dataclasses
    import json
    import os

    from vmae.cli.tables import format_table
    from vmae.experiments.bench import masks as bench_masks

    found = bench_masks.bench(totals, repeats, own)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(t) for t in found]))
        return
    rows = [[str(t.total), str(t.own), *(f"{v:.2f}" for v in (*t.before_ms, *t.now_ms))] for t in found]
    click.echo(
        format_table(["clips", "own", "before, best cpu ms", "median", "now, best cpu ms", "median"], rows)
    )
    load = ", ".join(f"{v:.1f}" for v in os.getloadavg())
    click.echo(f"{repeats} times each, in turns; machine's load {load}")
