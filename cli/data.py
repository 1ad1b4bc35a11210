"""`vmae data`: make, list, check and re-encode sets of videos. One file per verb, loaded when called."""

from __future__ import annotations

import click

from vmae.cli.lazy import LazyGroup, Verbs

VERBS: Verbs = {
    "index": ("vmae.cli.data_index", "index", "Write train, val and test lists of a data set's layout."),
    "check": ("vmae.cli.data_check", "check", "Decode every file of a list and report what is bad."),
    "optimize": ("vmae.cli.data_optimize", "optimize", "Re-encode a list of videos for fast random access."),
    "demo": ("vmae.cli.data_demo", "demo", "Make a small synthetic data set of moving shapes."),
}


@click.group(cls=LazyGroup, verbs=VERBS)
def data() -> None:
    """Make, list, check and re-encode sets of videos."""
