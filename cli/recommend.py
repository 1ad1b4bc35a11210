"""`vmae recommend`: a configuration for a list, this machine and a budget, with its reasons."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmae.cli.options import format_option, require_writable, runs_dir_option
from vmae.cli.training import cache_progress
from vmae.experiments import stages
from vmae.experiments.request import held_out_beside
from vmae.experiments.stages import finetune

if TYPE_CHECKING:
    from vmae.experiments.advice import Advice


@click.command()
@click.argument("csv", metavar="LIST", type=click.Path(path_type=Path))
@click.option(
    "--val", "val_csv", type=click.Path(path_type=Path), help="Held-out list.  [default: val.csv beside LIST]"
)
@click.option("--data-root", type=click.Path(path_type=Path), help="Folder that the lists' paths start from.")
@format_option
@click.option(
    "--for",
    "job",
    type=click.Choice(stages.JOBS),
    default=finetune.STAGE.name,
    show_default=True,
    help="What to train.",
)
@click.option("--budget", help="Time there is: 3m, 1h30m.  [default: 2m30s, more from 400 videos on]")
@click.option(
    "--flip",
    type=click.Choice(["auto", "yes", "no"]),
    default="auto",
    show_default=True,
    help="Does a mirrored video keep its class? auto: not taken for granted.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Configuration file to write.  [default: JOB.yaml here]",
)
@runs_dir_option
def recommend(
    csv: Path,
    val_csv: Path | None,
    data_root: Path | None,
    annotation_format: str,
    job: str,
    budget: str | None,
    flip: str,
    out: Path | None,
    runs_dir: Path | None,
) -> None:
    """Choose how to train on the short videos of LIST, on this machine, in the time there is.

    Prints every choice with its reason, what it is predicted to take, and writes a configuration file that
    can be edited and run. `vmae finetune --data LIST` and `pretrain` do the same without asking.
    """
    from vmae.core.progress import format_duration, parse_duration
    from vmae.experiments.advice import advise, tried
    from vmae.experiments.run import default_device
    from vmae.experiments.tracking import store_at

    val_csv = held_out_beside(csv, val_csv, needed=False)
    out = out or Path(f"{job}.yaml")
    require_writable(out)
    device = default_device()
    advice = advise(
        job,  # type: ignore[arg-type]
        csv,
        val_csv,
        device=device,
        data_root=data_root,
        annotation_format=annotation_format,  # type: ignore[arg-type]
        budget_s=None if budget is None else parse_duration(budget, "--budget"),
        flip=flip,  # type: ignore[arg-type]
    )
    with cache_progress("decode") as progress:
        found = tried(advice.found, store_at(runs_dir).layout.cache, progress)
    advice = replace(advice, found=found)
    for line in describe(advice):
        click.echo(line)
    for warning in advice.outlook.warnings:
        click.echo(f"warning: {warning}", err=True)
    advice.found.config.save(out)
    time, memory = format_duration(advice.found.seconds), advice.found.memory / 2**30
    click.echo(f"\npredicted: {time} and {memory:.1f} GiB, on a machine that is left alone")
    click.echo(f"written: {out}; run it as it is or edited:\n  vmae {job} --config {out}")


def describe(advice: Advice) -> list[str]:
    """The list, the machine and a table of the choices."""
    from vmae.cli.tables import format_table
    from vmae.core.progress import format_duration

    lists, machine = advice.lists, advice.machine
    of = ""
    if lists.class_counts:
        low, high = min(lists.class_counts), max(lists.class_counts)
        of = (
            f" of {lists.classes} classes ({low} to {high} each)"
            if low != high
            else f" of {lists.classes} classes"
        )
    video = f"median {lists.seconds:.1f} s at {lists.fps:g} frames/s, {lists.width}x{lists.height}"
    held_out = f"; {advice.held_out} held out" if advice.held_out else "; none held out"
    where = machine.gpu or f"CPU, {machine.cores} cores"
    rows = [[c.what, c.value, c.reason] for c in advice.found.choices]
    return [
        f"list: {lists.videos} videos{of}, {video}{held_out}",
        f"machine: {where}, {machine.memory / 2**30:.0f} GiB free; budget {format_duration(advice.budget_s)}",
        "",
        format_table(["choice", "value", "because"], rows, left=3),
    ]
