"""`vmae sweeps cka`: how alike what a sweep's trials have learnt is."""

from __future__ import annotations

from pathlib import Path

import click

from vmae.cli.options import runs_dir_option


@click.command()
@click.argument("name")
@runs_dir_option
def cka(name: str, runs_dir: Path | None) -> None:
    """Compare the encoders of sweep NAME's finished trials with one another.

    Centred kernel alignment of their features of the held-out videos: 1 where two encoders say the same up
    to rotation and scale, about 0 where they share nothing. Writes cka.csv and cka.png to the sweep's folder.
    """
    from vmae.cli.tables import format_table
    from vmae.core.progress import progress
    from vmae.experiments.sweeps import alike, driver
    from vmae.experiments.sweeps.spec import Plan

    store = driver.open_store(runs_dir, "reader")
    sweep = driver.find_sweep(store, name)
    plan = Plan.load(sweep)
    with progress("features", len(plan.trials), unit="trial") as bar:
        found = alike.alike(plan, sweep, lambda done, total: bar.update(1))
    rows = [
        [trial, *(f"{v:.2f}" for v in row)] for trial, row in zip(found.trials, found.matrix, strict=True)
    ]
    click.echo(f"linear CKA of features of {found.videos} held-out videos")
    click.echo(format_table(["trial", *found.trials], rows))
    for file in alike.save(found, sweep):
        click.echo(f"wrote {store.shown(file)}")
