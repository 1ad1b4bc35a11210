"""`vmae bench step`: the CPU pre-training step, ours against transformers' and the official, in one run."""

from __future__ import annotations

import click


@click.command()
@click.option("--size", default="small", show_default=True, help="Named model size.")
@click.option("--cell", "cells", multiple=True, metavar="TxHxW:B", help="Clip shape and batch; repeatable.  "
              "[default: 16 frames of 112 and 224 pixels, batches 2 and 8]")  # fmt: skip
@click.option("--precision", "precisions", multiple=True, type=click.Choice(["fp32", "bf16"]),
              help="fp32, or bf16 autocast; repeatable.  [default: both]")  # fmt: skip
@click.option("--repeats", default=7, show_default=True, help="Timed steps of each contender.")
@click.option("--threads", type=int, help="CPU threads.  [default: torch's]")
@click.option(
    "--compiled",
    is_flag=True,
    help="Also ours and transformers' under torch.compile (minutes, a C++ compiler).",
)
@click.option("--official", type=click.Path(), metavar="CLONE",
              help="Also the official code (MCG-NJU/VideoMAE) from this clone; needs timm.")  # fmt: skip
@click.option("--mask-ratio", default=0.9, show_default=True, help="Tube mask.")
@click.option(
    "--memory/--no-memory", default=True, show_default=True, help="Also peak memory, in fresh processes."
)
@click.option("--json", "json_path", type=click.Path(), help="Write every number to this file.")
def step(
    *,
    size: str,
    cells: tuple[str, ...],
    precisions: tuple[str, ...],
    repeats: int,
    threads: int | None,
    compiled: bool,
    official: str | None,
    mask_ratio: float,
    memory: bool,
    json_path: str | None,
) -> None:
    """Forward, backward and fused AdamW of pre-training, against transformers with eager and sdpa attention.

    All take turns step by step in one process; medians are compared, with --compiled the faster of our two
    with the fastest of theirs. They train on the same clips and
    masks; the others get their pixels normalised beforehand, ours normalises uint8 inside the step. In
    brackets: the share of a figure that the step's matrix products alone take here, each at its best. Where
    other processes used the cores meanwhile, it says so. Peak memory is the growth of a fresh process's
    resident set over three steps.
    """
    import json

    import torch

    from vmae.cli.tables import format_table
    from vmae.core.errors import InputError
    from vmae.experiments.bench import cpu_step

    shapes = [cpu_step.parse_shape(c) for c in cells or cpu_step.CELLS]
    if repeats < 1:
        raise InputError(f"expected repeats of at least 1, got {repeats}")
    if threads is not None:
        torch.set_num_threads(threads)
    contenders = [*cpu_step.CONTENDERS, *(cpu_step.COMPILED if compiled else ())]
    contenders += [cpu_step.OFFICIAL] if official else []
    results = []
    for shape in shapes:
        for precision in precisions or ("fp32", "bf16"):
            cell = cpu_step.Cell(
                size=size, precision=precision, mask_ratio=mask_ratio, clone=official or "", **shape
            )
            click.echo(f"{cell.name} ...", err=True)
            results.append(cpu_step.measure(cell, repeats=repeats, memory=memory, contenders=contenders))
    click.echo(format_table(*cpu_step.table(results)))
    mean = cpu_step.geometric_mean(results)
    least = min(r["ratio_to_faster_peer"] for r in results)
    click.echo(
        f"\nspeed-up over the fastest peer, geometric mean of {len(results)} cells: {mean:.2f}x, "
        f"least {least:.2f}x"
    )
    if busy := [r["cell"] for r in results if r["busy"]]:
        click.echo(f"NOT to be believed, other processes were using the cores: {', '.join(busy)}", err=True)
    if json_path:
        found = cpu_step.document(results, size=size, repeats=repeats, mask_ratio=mask_ratio)
        with open(json_path, "w") as f:
            json.dump(found, f, indent=1)
