"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

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
