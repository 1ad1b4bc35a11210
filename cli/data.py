"""`vmae data`: make, list, check and re-encode sets of videos. One file per verb, loaded when called."""

from __future__ import annotations

import click

from vmae.cli.lazy import LazyGroup, Verbs

VERBS: Verbs = {
    "demo": ("vmae.cli.data_demo", "demo", "Make a small synthetic data set of moving shapes."),
}


@click.group(cls=LazyGroup, verbs=VERBS)
def data() -> None:
    """Make, list, check and re-encode sets of videos."""
