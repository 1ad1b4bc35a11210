"""`vmae bench`: measurements side by side in one run. One file per verb, loaded when called."""

from __future__ import annotations

import click

from vmae.cli.lazy import LazyGroup, Verbs

VERBS: Verbs = {
    "embeddings": (
        "vmae.cli.bench_embeddings",
        "embeddings",
        "A model's features on the tasks of mteb, by its code.",
    ),
    "loader": ("vmae.cli.bench_loader", "loader", "Our loader against the usual way and other readers."),
    "kernels": (
        "vmae.cli.bench_kernels",
        "kernels",
        "Which kernels are active and why; time or compile them.",
    ),
    "masks": ("vmae.cli.bench_masks", "masks", "Drawing a step's masks on the host."),
    "report": ("vmae.cli.bench_report", "report", "Tables and pictures from GPU results."),
    "step": ("vmae.cli.bench_step", "step", "The CPU training step against transformers."),
    "store": ("vmae.cli.bench_store", "store", "Reading a store of 10,000 runs."),
    "windows": (
        "vmae.cli.bench_windows",
        "windows",
        "Overlapping windows, each frame decoded once, against each by itself.",
    ),
}


@click.group(cls=LazyGroup, verbs=VERBS)
def bench() -> None:
    """Measure kernels and the loader, side by side in one run."""
