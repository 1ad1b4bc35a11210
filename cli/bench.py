"""`vmae bench`: measurements side by side in one run. One file per verb, loaded when called."""

from __future__ import annotations

import click

from vmae.cli.lazy import LazyGroup, Verbs

VERBS: Verbs = {}


@click.group(cls=LazyGroup, verbs=VERBS)
def bench() -> None:
    """Measure kernels and the loader, side by side in one run."""
