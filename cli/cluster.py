"""`vmae cluster`: is a Ray cluster fit for the work?"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmae.experiments.cluster import NodeReport


@click.group()
def cluster() -> None:
    """Look at a Ray cluster before giving it work (see docs/clusters.md)."""


@cluster.command()
@click.option(
    "--address",
    default="auto",
    show_default=True,
    help="Ray cluster: auto (the one this machine belongs to), HOST:PORT or ray://HOST:PORT.",
)
@click.option(
    "--data", "train_csv", type=click.Path(path_type=Path), help="Training list that every node must read."
)
@click.option("--val", "val_csv", type=click.Path(path_type=Path), help="Held-out list, likewise.")
@click.option("--data-root", type=click.Path(path_type=Path), help="Folder that the lists' paths start from.")
@click.option("--format", "annotation_format", default="auto", show_default=True, help="Of the lists' lines.")
@click.option("--storage", help="Folder or URI (s3://...) that every node must read and write.")
@click.option("--gpus", type=float, default=0.0, show_default=True, help="GPUs that a trial asks for.")
@click.option("--nodes", type=click.IntRange(min=1), help="How many nodes there should be.")
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Seconds to wait for the head to listen and for --nodes to join.",
)
def check(
    address: str,
    train_csv: Path | None,
    val_csv: Path | None,
    data_root: Path | None,
    annotation_format: str,
    storage: str | None,
    gpus: float,
    nodes: int | None,
    wait: float,
) -> None:
    """Ask every node for its versions, GPUs, and whether it sees the data and the storage.

    One row a node; what is wrong is listed below the table. Exit code 1 where something is, or where fewer
    than --nodes have joined.
    """
    from vmae.core.video.config import DataConfig
    from vmae.experiments import cluster as work

    data = DataConfig(data_root=str(data_root or ""), annotation_format=annotation_format)  # type: ignore[arg-type]
    paths = work.files_to_see(data, str(train_csv or ""), str(val_csv or ""))
    place = storage or ""
    if place and not work.is_uri(place):
        place = str(Path(place).absolute())
    end = time.monotonic() + wait
    work.wait_for_port(address, wait)
    with work.connected(address):
        if nodes is not None:
            work.wait_for_nodes(nodes, end - time.monotonic())
        reports = work.check_cluster(paths=paths, storage=place, gpus_wanted=gpus)
    click.echo(nodes_table(reports))
    missing = nodes is not None and len(reports) < nodes
    if missing:
        click.echo(f"expected {nodes} nodes, got {len(reports)}: the others did not join the head", err=True)
    if missing or any(r.problems for r in reports):
        raise SystemExit(1)


def nodes_table(reports: Sequence[NodeReport]) -> str:
    """One row a node with what it has, `!` where that is a problem, and the problems in words below."""
    from vmae.cli.tables import format_table
    from vmae.experiments.cluster import CHECKS

    rows = []
    for r in reports:
        cells = [("! " if c in r.problems else "") + r.found.get(c, "?") for c in CHECKS]
        rows.append([r.node, r.host, *cells])
    lines = [format_table(["node", "host", *CHECKS], rows, left=2)]
    wrong = [f"{r.node} ({r.host}): {name}: {text}" for r in reports for name, text in r.problems.items()]
    lines += ["", *wrong] if wrong else ["", f"all {len(reports)} nodes are fit"]
    return "\n".join(lines)
