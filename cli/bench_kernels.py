"""`vmae bench kernels`: which path each op takes and why, its resources, its speed on this GPU."""

from __future__ import annotations

from typing import Any

import click


@click.command()
@click.option("--aot", is_flag=True, help="Compile the kernels for every GPU family; needs no GPU.")
@click.option("--only", metavar="REGEX", default="attention/short|loss/",
              show_default=True, help="With --aot: which kernels, by name; '' for all.")  # fmt: skip
@click.option("--family", type=click.Choice(["80", "86", "89", "90", "100", "120"]), multiple=True,
              help="With --aot: which GPU family.  [default: all]")  # fmt: skip
@click.option("--calibrate", is_flag=True,
              help="Measure this GPU now for --recipe: what its trainings will choose.")  # fmt: skip
@click.option("--recipe", default="k400_base_pretrain", show_default=True,
              help="With --calibrate: whose step is measured.")  # fmt: skip
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True,
              help="With --calibrate: clips of a micro-batch.")  # fmt: skip
@click.option("--budget", type=click.FloatRange(1), default=60.0, show_default=True,
              help="With --calibrate: seconds, for everything.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def kernels(
    aot: bool,
    only: str,
    family: tuple[str, ...],
    calibrate: bool,
    recipe: str,
    batch: int,
    budget: float,
    as_json: bool,
) -> None:
    """Say which path every kernel op takes here and why; on a GPU, time each against its baselines.

    With --aot, compile ahead of time instead and compare registers, spills and shared memory with the table
    that is checked in; a spill or a passed limit fails.
    """
    import json

    if aot:
        _aot(only, family)
        return
    if calibrate:
        _calibrate(recipe, batch, budget, as_json)
        return
    import torch

    from vmae.cli.tables import format_table
    from vmae.kernels import kernel_status

    status = kernel_status()
    rows: list[dict[str, Any]] = []
    if torch.cuda.is_available():
        import time

        from vmae.experiments.bench.gpu_work import run_ops

        def say(line: str) -> None:
            click.echo(line, err=as_json)

        rows, _ = run_ops("cuda", deadline=time.monotonic() + 240, say=say)
    if as_json:
        click.echo(json.dumps({"status": [vars(s) for s in status], "ops": rows}, indent=1))
        return
    click.echo(format_table(["op", "path", "why"], [[s.op, s.path, s.reason] for s in status], left=3))
    if not rows:
        click.echo("\nno CUDA GPU here, so nothing is timed; --aot compiles the kernels without one")


def _calibrate(recipe: str, batch: int, budget: float, as_json: bool) -> None:
    import json
    from dataclasses import asdict

    import torch

    from vmae.core.errors import InputError
    from vmae.core.numerics import resolve_precision
    from vmae.experiments import recipes
    from vmae.experiments.bench.calibration import calibrate_recipe
    from vmae.experiments.stages import finetune, pretrain

    config = recipes.get(recipe)
    if config.job not in (pretrain.STAGE.name, finetune.STAGE.name):
        raise InputError(f"expected --recipe to pre-train or fine-tune; '{recipe}' is of job {config.job}")
    if not torch.cuda.is_available():
        raise InputError("expected a CUDA GPU for --calibrate, found none (on a CPU nothing is chosen)")
    precision = resolve_precision(config.train.precision, torch.device("cuda"))
    found = calibrate_recipe(
        config,
        rows=batch,
        precision=precision,
        budget_s=budget,
        say=lambda line: click.echo(line, err=as_json),
    )
    if as_json:
        click.echo(json.dumps(asdict(found), indent=1))
    else:
        click.echo(f"{found.measured} sites measured in {found.seconds:.0f} s, kept as {found.fingerprint}")


def _aot(only: str, family: tuple[str, ...]) -> None:
    """In a process of its own: Triton decides at import whether it interprets or compiles."""
    import importlib.util
    import os
    import re
    import subprocess
    import sys

    from vmae.core.errors import InputError

    if importlib.util.find_spec("triton") is None:
        raise InputError("expected Triton to be installed for --aot; it is not (pip install triton)")
    try:
        re.compile(only)
    except re.error as e:
        raise InputError(f"expected a regular expression for --only; got {only!r} ({e})") from e
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "vmae.kernels.aot", "--check", "--only", only]
    for f in family:
        command += ["--family", f]
    code = subprocess.run(command, env=env, check=False).returncode
    if code:
        raise click.exceptions.Exit(code)
