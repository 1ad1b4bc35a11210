"""`vmae runs`: what was run and what came of it, read from the MLflow store. A file a verb."""

from __future__ import annotations

from pathlib import Path

import click

from vmae.cli.lazy import LazyGroup, Verbs
from vmae.cli.options import runs_dir_option

VERBS: Verbs = {
    "list": ("vmae.cli.runs_list", "list_", "List runs, newest first; filter, sort, choose columns."),
    "show": ("vmae.cli.runs_show", "show", "Show one run: metrics, parameters, checkpoint."),
    "compare": ("vmae.cli.runs_compare", "compare", "What differs between runs, and their curves."),
    "best": ("vmae.cli.runs_best", "best", "Show the run with the best value of a metric."),
    "export": ("vmae.cli.runs_export", "export", "Write runs as csv or parquet."),
    "register": (
        "vmae.cli.runs_register",
        "register",
        "Make a checkpoint a version of an MLflow model.",
    ),
    "delete": ("vmae.cli.runs_delete", "delete", "Delete runs from the store, after asking."),
    "gc": ("vmae.cli.runs_gc", "gc", "Find (and with --delete remove) files of deleted runs."),
    "sync": ("vmae.cli.runs_sync", "sync", "Send what the tracking store missed while it was away."),
}


@click.group(cls=LazyGroup, verbs=VERBS, invoke_without_command=True)
@runs_dir_option
@click.pass_context
def runs(ctx: click.Context, runs_dir: Path | None) -> None:
    """List, show and compare runs. Without a verb: list them."""
    ctx.obj = runs_dir
    if ctx.invoked_subcommand is None:
        from vmae.cli.runs_list import list_

        ctx.invoke(list_)
