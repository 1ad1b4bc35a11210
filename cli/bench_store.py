"""`vmae bench store`: what reading a store of many runs costs."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("--runs", default=10_000, show_default=True, type=click.IntRange(1), help="Runs in the store.")
@click.option(
    "--repeats", default=5, show_default=True, type=click.IntRange(1), help="Times each is measured."
)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep the store here and use it again.  [default: a temporary folder]",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def store(runs: int, repeats: int, folder: Path | None, as_json: bool) -> None:
    """Measure `vmae runs list` and the dashboard's reading functions on a store of synthetic runs.

    Making 10,000 runs takes about a minute and 1 GB of disk. A folder with a store of yours is never used:
    give one that is new or was made by this command.
    """
    import contextlib
    import dataclasses
    import json
    import os
    import tempfile

    from vmae.cli.tables import format_table
    from vmae.core.errors import InputError
    from vmae.experiments.bench import store as bench_store
    from vmae.experiments.layout import RunsDir

    if os.environ.get("MLFLOW_TRACKING_URI"):
        raise InputError("expected no MLFLOW_TRACKING_URI: this measures an SQLite store of its own")
    if folder is not None and RunsDir(folder).database.exists() and not (folder / ".bench").exists():
        raise InputError(f"--folder: expected a new folder, got {folder}, which holds a store of real runs")
    with tempfile.TemporaryDirectory() if folder is None else contextlib.nullcontext(str(folder)) as home:
        Path(home).mkdir(parents=True, exist_ok=True)
        (Path(home) / ".bench").touch()
        made, found = bench_store.bench(Path(home), runs, repeats)
        assert made.sqlite_path is not None
        size = made.sqlite_path.stat().st_size
    if as_json:
        click.echo(
            json.dumps({"runs": runs, "bytes": size, "timings": [dataclasses.asdict(t) for t in found]})
        )
        return
    rows = [[t.what, f"{t.median_s * 1e3:.0f}", f"{t.cpu_s * 1e3:.0f}", f"{t.peak_mib:.0f}"] for t in found]
    click.echo(format_table(["reading", "wall ms", "cpu ms", "peak MiB"], rows))
    load = ", ".join(f"{v:.1f}" for v in os.getloadavg())
    click.echo(f"{runs} runs, database {size / 2**20:.0f} MiB; medians of {repeats}; machine's load {load}")
