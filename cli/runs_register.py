"""`vmae runs register`: a run's checkpoint as a version of an MLflow model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmae.cli.options import runs_dir_option
from vmae.cli.runs_common import open_store

if TYPE_CHECKING:
    from vmae.experiments.tracking import Store


@click.command()
@click.argument("run")
@click.argument("name")
@runs_dir_option
@click.pass_context
def register(ctx: click.Context, run: str, name: str, runs_dir: Path | None) -> None:
    """Register the checkpoint of RUN (an id or a name) as a version of the MLflow model NAME.

    It loads with mlflow.pyfunc and predicts from a list of video paths: labels and probabilities of a
    classifier, features of a pre-trained model.
    """
    from vmae.experiments import registry
    from vmae.experiments.runs import find

    store = open_store(ctx, runs_dir)
    found = find(store, run)
    say_registered(store, found.name, name, registry.register(store, found, name))


def say_registered(store: Store, run: str, name: str, version: int) -> None:
    """Print the version and what loads it."""
    click.echo(f"registered {run} as {name} version {version}; load it with:")
    click.echo(f"  mlflow.set_tracking_uri({store.uri!r})")
    click.echo(f"  mlflow.pyfunc.load_model('models:/{name}/{version}').predict(['video.mp4'])")
