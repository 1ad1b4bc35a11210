"""`vmae serve`: the command that answers requests with a model."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from vmae.cli.options import runs_dir_option


@click.command()
@click.argument("model")
@click.option("--port", type=int, default=5000, show_default=True, help="Where it is to listen.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Which of the machine's addresses.")
@runs_dir_option
def serve(model: str, port: int, host: str, runs_dir: Path | None) -> None:
    """Print the command that serves MODEL, a run or models:/NAME/VERSION, with MLflow's own server.

    Of a run the model's folder is written first (RUN/served). The server takes {"inputs": [...]} at
    /invocations: paths of videos it can read, or their bytes in base64 (docs/export.md).
    """
    from vmae.experiments import registry
    from vmae.experiments.tracking import store_at

    store = store_at(runs_dir)
    words = ["mlflow", "models", "serve", "--env-manager", "local", "--host", host, "--port", str(port)]
    if model.startswith("models:/"):
        click.echo(shlex.join(["env", f"MLFLOW_TRACKING_URI={store.uri}", *words, "-m", model]))
        return
    folder = registry.write_served(store, model)
    click.echo(shlex.join([*words, "-m", str(folder)]))
