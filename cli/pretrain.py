"""`vmae pretrain`: one masked pre-training run."""

from __future__ import annotations

from pathlib import Path

import click

from vmae.cli.options import runs_dir_option, set_option
from vmae.cli.training import (
    cache_progress,
    config_options,
    init_options,
    make_demo_data_if_used,
    resolve_config,
    training_progress,
    workers_config,
    workers_options,
)


@click.command()
@config_options
@init_options
@click.option("--run-name", help="Name of the run.  [default: the recipe's, numbered]")
@click.option(
    "--resume", metavar="RUN_NAME", help="Go on with an interrupted run, with its own configuration."
)
@workers_options
@set_option
@runs_dir_option
def pretrain(
    recipe: str | None,
    config_file: Path | None,
    train_csv: Path | None,
    val_csv: Path | None,
    data_root: Path | None,
    size: str | None,
    epochs: int | None,
    init: str | None,
    resize_patch_embed: bool,
    run_name: str | None,
    resume: str | None,
    num_workers: int | None,
    gpus_per_worker: float,
    cpus_per_worker: float,
    address: str,
    assignments: tuple[str, ...],
    runs_dir: Path | None,
) -> None:
    """Pre-train a video masked autoencoder.

    Without --data it runs on the built-in data set. The run is tracked in MLflow; Ctrl-C saves its state, and
    --resume RUN_NAME goes on from there to the same numbers as an unbroken run.
    """
    from vmae.core.errors import InputError
    from vmae.experiments import jobs, recipes
    from vmae.experiments.tracking import store_at

    workers = workers_config(num_workers, gpus_per_worker, cpus_per_worker, address)
    store = store_at(runs_dir)
    if resume is not None:
        if assignments or config_file or recipe or train_csv or epochs is not None or init:
            raise InputError("expected --resume alone: a resumed run keeps its own configuration")
        config = jobs.saved_config(store, resume)
    else:
        config = resolve_config(
            recipe=recipe,
            config_file=config_file,
            train_csv=train_csv,
            val_csv=val_csv,
            data_root=data_root,
            size=size,
            epochs=epochs,
            init=init,
            resize_patch_embed=resize_patch_embed,
            assignments=assignments,
        )
        config = jobs.named(store, config, run_name)
    make_demo_data_if_used(config)
    with cache_progress("decode") as cached, training_progress(config.name) as report:
        outcome = jobs.pretrain_run(
            config,
            store,
            report=report,
            cache_progress=cached,
            workers=workers,
            notes=lambda text: click.echo(f"note: {text}", err=True),
        )
    if outcome.result.stopped:
        click.echo(
            f"interrupted after epoch {outcome.result.epochs}, state saved. "
            f"Go on with: vmae pretrain --resume {config.name}"
        )
        raise SystemExit(130)
    click.echo(
        f"{config.name}: loss {outcome.result.metrics['loss']:.4f} after {outcome.result.epochs} epochs, "
        f"{outcome.result.clips_per_s:.0f} clips/s"
    )
    line = recipes.loss_comparison(config.recipe, 1.0, outcome.result.metrics["loss"])
    if line is not None:
        click.echo(line)
    if outcome.eval_loss is not None:
        click.echo(f"error on held-out videos at ratio {config.evaluation_ratio:g}: {outcome.eval_loss:.4f}")
    click.echo(f"model: {outcome.result.model_path}")
    click.echo(f"\nnext:\n  vmae probe --run {config.name}\n  vmae dashboard")
