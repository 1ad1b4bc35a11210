"""`vmae pretrain`: one masked pre-training run."""

from __future__ import annotations

import click

from vmae.cli.options import in_runs_dir
from vmae.cli.training import Ahead, show_training, train
from vmae.cli.training_options import TrainingOptions, training_options
from vmae.experiments.stages.pretrain import STAGE


@click.command()
@training_options
def pretrain(options: TrainingOptions) -> None:
    """Pre-train a video masked autoencoder.

    Without --data it runs on the built-in data set; with --data and no recipe as `vmae recommend` says. The
    run is tracked in MLflow; Ctrl-C saves its state, and --resume RUN_NAME goes on from there to the same
    numbers as an unbroken run.
    """
    from vmae.core.train.watch import HELD_OUT
    from vmae.experiments import jobs
    from vmae.experiments.data import read_list
    from vmae.experiments.tracking import store_at

    workers = options.workers()
    store = store_at(options.runs_dir)
    config, ahead = options.resumed(store, STAGE.name), None
    if config is None:
        config, found = options.config(STAGE.name, "demo_pretrain", store)
        config = jobs.named(store, config, options.run_name)
        ahead = Ahead(found, workers=workers is not None)
    outcome = train(STAGE.name, jobs.pretrain_run, config, store, workers=workers, ahead=ahead)
    where = in_runs_dir(store)
    show_training(STAGE.name, config, outcome.result, where)
    if outcome.eval_loss is not None and HELD_OUT not in outcome.result.metrics:  # it is said already
        click.echo(f"error on held-out videos at ratio {config.evaluation_ratio:g}: {outcome.eval_loss:.4f}")
    click.echo(f"model: {outcome.result.model_path}")
    lists = "" if config.data.val_csv else " --folds 3"
    if any(s.label < 0 for s in read_list(config.data, config.data.train_csv)):
        lists = " --data LABELLED_LIST"
    click.echo(f"\nnext:\n  vmae probe --run {config.name}{lists}{where}\n  vmae dashboard{where}")
