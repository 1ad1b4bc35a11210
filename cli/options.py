"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from vmae.core.video.isolate import Runner

Command = Callable[..., Any]


def runs_dir_option(command: Command) -> Command:
    """`--runs-dir`: the project's run directory."""
    return click.option(
        "--runs-dir",
        type=click.Path(file_okay=False, path_type=Path),
        envvar="VMAE_RUNS",
        help="Run directory: MLflow store, checkpoints, sweeps.  [default: ./runs]",
    )(command)


def set_option(command: Command) -> Command:
    """`--set KEY=VALUE`: override any field of the configuration."""
    return click.option(
        "--set",
        "assignments",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a field, for example --set optim.base_lr=3e-4 (repeatable).",
    )(command)


@contextmanager
def where_to_run(address: str | None) -> Iterator[tuple[Runner, int]]:
    """The runner of `--address` and how many items it should have under way (0: as the cluster has cores)."""
    import os

    if address is None:
        from vmae.core.video.isolate import run_isolated

        yield run_isolated, os.cpu_count() or 1
        return
    from vmae.experiments.cluster import connected
    from vmae.experiments.ray_map import ray_map

    with connected(address):
        yield ray_map, 0
