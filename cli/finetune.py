"""`vmae finetune`: train a classifier, from pre-trained or fresh weights."""

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
    show_evaluation,
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
def finetune(
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
    """Fine-tune a classifier on labelled videos and evaluate it on several views of the held-out ones.

    With --init RUN and no recipe, clips are cut as that run cut them and its lists are used. The best epoch
    on the held-out list is kept and evaluated; --resume RUN_NAME goes on with an interrupted run.
    """
    from vmae.core.errors import InputError
    from vmae.core.progress import progress
    from vmae.experiments import finetuning, jobs
    from vmae.experiments.config import ExperimentConfig
    from vmae.experiments.tracking import store_at

    workers = workers_config(num_workers, gpus_per_worker, cpus_per_worker, address)
    store = store_at(runs_dir)
    if resume is not None:
        if assignments or config_file or recipe or train_csv or epochs is not None or init:
            raise InputError("expected --resume alone: a resumed run keeps its own configuration")
        config = jobs.saved_config(store, resume)
    else:
        source = None
        if init is not None and recipe is None and config_file is None:
            made = jobs.run_dir(store, init) / "config.yaml" if Path(init).name == init else None
            source = ExperimentConfig.load(made) if made is not None and made.is_file() else None
            if source is None:
                raise InputError(
                    f"--init {init}: expected a run of this store, which says how clips are cut, or --recipe "
                    "NAME beside it (`vmae recipes` lists them, small_data_transfer is one)"
                )
        config = resolve_config(
            recipe=recipe if recipe or config_file else "demo_finetune",
            config_file=config_file,
            train_csv=train_csv,
            val_csv=val_csv,
            data_root=data_root,
            size=size,
            epochs=epochs,
            init=init,
            resize_patch_embed=resize_patch_embed,
            assignments=assignments,
            shape_of=source,
        )
        if config.job != "finetune":
            raise InputError(f"expected a fine-tuning recipe, got '{config.recipe}' (job {config.job})")
        config = jobs.named(store, config, run_name)
    make_demo_data_if_used(config)
    with cache_progress("decode") as cached, training_progress(config.name) as report:
        outcome = finetuning.finetune_run(
            config,
            store,
            report=report,
            cache_progress=cached,
            test_progress=lambda videos: progress("test", videos, unit="video"),
            workers=workers,
            notes=lambda text: click.echo(f"note: {text}", err=True),
        )
    if outcome.result.stopped:
        click.echo(
            f"interrupted after epoch {outcome.result.epochs}, state saved. "
            f"Go on with: vmae finetune --resume {config.name}"
        )
        raise SystemExit(130)
    click.echo(
        f"{config.name}: loss {outcome.result.metrics['loss']:.4f} after {outcome.result.epochs} epochs, "
        f"{outcome.result.clips_per_s:.0f} clips/s"
    )
    if outcome.evaluation is not None:
        show_evaluation(outcome.evaluation, outcome.folder / "evaluation")
    click.echo(f"model: {outcome.result.best_model_path or outcome.result.model_path}")
    click.echo(f"\nnext:\n  vmae predict VIDEO --checkpoint {config.name}")
