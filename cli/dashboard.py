"""`vmae dashboard`: look at reconstructions, sweeps and runs in a browser."""

from __future__ import annotations

from pathlib import Path

import click

from vmae.cli.options import format_option, runs_dir_option


@click.command()
@click.option("--port", type=int, default=8501, show_default=True, help="Port to listen on.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--allow-host",
    "allowed",
    multiple=True,
    metavar="NAME",
    help="Another name that browsers may ask for, of a proxy before it for example (repeatable).",
)
@runs_dir_option
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Offer this checkpoint too, or every one in this folder (repeatable).",
)
@click.option(
    "--data",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Offer this list of videos too (repeatable).",
)
@click.option("--data-root", type=click.Path(path_type=Path), help="Folder that paths in --data start from.")
@format_option
@click.option("--mlflow-url", default="", help="Where `vmae ui` runs, for links to it.")
@click.option("--upload-mb", type=int, default=64, show_default=True, help="Largest upload, MiB.")
def dashboard(
    port: int,
    host: str,
    allowed: tuple[str, ...],
    runs_dir: Path | None,
    checkpoints: tuple[Path, ...],
    data: tuple[Path, ...],
    data_root: Path | None,
    annotation_format: str,
    mlflow_url: str,
    upload_mb: int,
) -> None:
    """Open the dashboard on the runs (Ctrl-C ends it)."""
    import os
    import sys

    from vmae.cli.ports import check_port
    from vmae.core.errors import CheckpointError, InputError
    from vmae.core.video.annotations import read_annotations
    from vmae.core.weights.files import list_files
    from vmae.experiments.layout import NO_MODELS
    from vmae.experiments.tracking import store_at

    if upload_mb < 1:
        raise InputError(f"--upload-mb: expected at least 1, got {upload_mb}")
    if mlflow_url and not mlflow_url.startswith(("http://", "https://")):
        raise InputError(f"--mlflow-url: expected an address with http:// or https://, got '{mlflow_url}'")
    # What the command line names must be usable: better said here than on a page.
    for path in checkpoints:
        if not list_files((str(path),), NO_MODELS):
            raise CheckpointError(
                f"--checkpoint: expected a pre-training checkpoint (.safetensors) or a folder with some, got"
                f" '{path}'" + ("" if path.exists() else ", which does not exist")
            )
    for path in data:
        read_annotations(path, data_root, format=annotation_format)  # type: ignore[arg-type]
    check_port(host, port)
    store = store_at(runs_dir)
    given = [("--host", host), ("--port", str(port)), ("--upload-mb", str(upload_mb))]
    given += [("--allow-host", name) for name in allowed]
    given += [("--checkpoint", str(p.resolve())) for p in checkpoints]
    given += [("--data", str(p.resolve())) for p in data]
    for option, folder in (("--runs-dir", runs_dir), ("--data-root", data_root)):
        if folder is not None:
            given.append((option, str(folder.resolve())))
    given.append(("--format", annotation_format))
    if mlflow_url:
        given.append(("--mlflow-url", mlflow_url))
    click.echo(f"dashboard on {store.runs_dir}: http://{host}:{port}  (Ctrl-C ends it)")
    sys.stdout.flush()
    # The server takes this process's place: whoever started this one ends it, and nothing is left behind.
    command = [sys.executable, "-m", "vmae.dashboard", *(f"{option}={value}" for option, value in given)]
    os.execv(sys.executable, command)
