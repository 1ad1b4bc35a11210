"""`vmae recommend`: a configuration for a list, this machine and a budget, with its reasons."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmae.cli.options import format_option, in_runs_dir, require_writable, runs_dir_option
from vmae.cli.training import cache_progress
from vmae.experiments import stages
from vmae.experiments.request import held_out_beside
from vmae.experiments.stages import finetune

if TYPE_CHECKING:
    import torch

    from vmae.experiments.advice import Advice
    from vmae.experiments.tracking import Store


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
@click.option(
    "--try-pretraining",
    "trial",
    is_flag=False,
    flag_value="10m",
    metavar="[TIME]",
    help="Also try inside LIST whether pre-training on it first pays, in about this time (10m without one); "
    "where it does, write both configurations.",
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
    trial: str | None,
    budget: str | None,
    flip: str,
    out: Path | None,
    runs_dir: Path | None,
) -> None:
    """Choose how to train on the short videos of LIST, on this machine, in the time there is.

    Prints every choice with its reason, what it is predicted to take, and writes a configuration file that
    can be edited and run. `vmae finetune --data LIST` and `pretrain` do the same without asking.

    With --try-pretraining LIST is parted three ways by whole groups; on two parts at a time a classifier is
    trained from fresh weights, and another, in the same time, after pre-training on them; the third part
    measures both. What was found is remembered and told by later calls.
    """
    from vmae.cli.try_pretraining import try_pretraining
    from vmae.core.errors import InputError
    from vmae.core.progress import parse_duration
    from vmae.experiments import own_pretraining
    from vmae.experiments.advice import advise, tried
    from vmae.experiments.run import default_device
    from vmae.experiments.tracking import store_at

    val_csv = held_out_beside(csv, val_csv, needed=False)
    out = out or Path(f"{job}.yaml")
    first = out.with_name("pretrain.yaml") if trial is not None else None
    require_writable(out, *([first] if first else []))
    trial_s = None if trial is None else parse_duration(trial, "--try-pretraining")
    if trial_s is not None and job != finetune.STAGE.name:
        raise InputError(f"--try-pretraining: expected --for {finetune.STAGE.name}, got {job}")
    if first == out:
        raise InputError(f"--out: expected another name than {out}, which the pre-training gets")
    device, store = default_device(), store_at(runs_dir)
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
        found = tried(advice.found, store.layout.cache, progress)
    advice = replace(advice, found=found)
    verdict: own_pretraining.Verdict | None
    if trial_s is not None:
        verdict = try_pretraining(advice, store, trial_s, device)
    else:
        verdict, first = own_pretraining.remembered(found.config, store.layout), None
    found = own_pretraining.with_verdict(found, verdict, done=first is not None)
    advice = replace(advice, found=found)
    for line in describe(advice):
        click.echo(line)
    for warning in advice.outlook.warnings:
        click.echo(f"warning: {warning}", err=True)
    if first is not None and verdict is not None and verdict.offered:
        _write_both(advice, first, out, store, device, flip)
    else:
        _write(advice, out)


def _write(advice: Advice, out: Path) -> None:
    from vmae.core.progress import format_duration

    config = advice.found.config
    config.save(out)
    time, memory = format_duration(advice.found.seconds), advice.found.memory / 2**30
    click.echo(f"\npredicted: {time} and {memory:.1f} GiB, on a machine that is left alone")
    click.echo(f"written: {out}; run it as it is or edited:\n  vmae {config.job} --config {out}")


def _write_both(
    advice: Advice, first: Path, then: Path, store: Store, device: torch.device, flip: str
) -> None:
    """The pre-training, and the fine-tuning from it."""
    from vmae.core.progress import format_duration
    from vmae.experiments.own_pretraining import both

    name, number = "own", 1
    while store.layout.run(name).path.exists():
        number += 1
        name = f"own-{number}"
    pretraining, finetuning = both(advice, name, device, flip)  # type: ignore[arg-type]
    pretraining.save(first)
    finetuning.save(then)
    where = in_runs_dir(store)
    click.echo(
        f"\npredicted: {format_duration(advice.budget_s)} for both together, on a machine that is left alone"
    )
    click.echo(
        f"written: {first}, {then} (from the run {name}); run them as they are or edited:\n"
        f"  vmae {pretraining.job} --config {first} --run-name {name}{where}\n"
        f"  vmae {finetuning.job} --config {then}{where}"
    )


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
