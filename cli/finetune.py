"""`vmae finetune`: train a classifier or another head, from pre-trained or fresh weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmae.cli.finetune_folds import finetune_folds
from vmae.cli.options import in_runs_dir
from vmae.cli.training import Ahead, show_tested, show_training, train
from vmae.cli.training_options import TrainingOptions, training_options
from vmae.experiments import stages
from vmae.experiments.stages.finetune import STAGE

if TYPE_CHECKING:
    from vmae.experiments.config import ExperimentConfig
    from vmae.experiments.distributed import WorkersConfig
    from vmae.experiments.stages.stage import Stage
    from vmae.experiments.tracking import Store


@click.command()
@click.option(
    "--task",
    type=click.Choice(list(stages.TASKS)),
    help="What is learnt: the class of each video, what each person of a key frame does (detection, AVA's "
    f"lists), a number or several (regression), or several labels (multilabel).  [default: {STAGE.task}]",
)
@click.option(
    "--folds",
    metavar="FILE|K",
    help="Hold out each fold in turn, of a csv with the columns path and fold, or of K made of whole groups "
    "(vmae data index --groups --folds); no epoch is chosen. Prints the mean with its interval.",
)
@click.option("--seeds", type=int, help="With --folds: seeds of each fold.  [default: 1]")
@training_options
def finetune(options: TrainingOptions) -> None:
    """Fine-tune a classifier on labelled videos and evaluate it on several views of the held-out ones.

    With --data and no recipe it trains as `vmae recommend` says. With --init the clip's shape, patch and
    tubelet are those of the weights; with --init RUN and no recipe clips are cut as that run cut them and,
    without --data, its lists are used. --resume RUN_NAME goes on with an interrupted run. With --task another
    head is trained and tested, by its recipe's settings.
    """
    from vmae.experiments.tracking import store_at

    workers = options.workers()
    store = store_at(options.runs_dir)
    train_head(_stage(options, store), options, store, workers)


def train_head(stage: Stage, options: TrainingOptions, store: Store, workers: WorkersConfig | None) -> None:
    """Train and test a classifier (or one of each fold), or the head of another task."""
    from vmae.core.errors import InputError
    from vmae.core.progress import progress
    from vmae.experiments import jobs
    from vmae.experiments.folds import has_folds

    classes = stage is STAGE
    if not classes and (options.folds is not None or options.seeds is not None):
        raise InputError(f"--folds: expected --task {STAGE.task}, got {stage.task}")
    if options.seeds is not None and options.folds is None:
        raise InputError("--seeds: expected --folds to go with it, got none")
    config, found = options.resumed(store, stage.name), None
    fresh, taken = config is None, ""
    if config is None:
        # The lists of another task are of another kind: with its own only the clip's shape is the run's.
        shape = _run_of(options, store) if classes or options.train_csv is None else None
        config, found = options.config(stage.name, stage.recipe, store, shape_of=shape)
        config = jobs.named(store, config, options.run_name)
        taken = "" if shape is None else options.shaped_by or ""
    ahead = Ahead(found, workers=workers is not None, cache=store.layout.cache, taken=taken)
    if options.folds is not None or (classes and has_folds(store.layout.run(config.name))):
        spec, seeds = options.folds or "", options.seeds or 1
        finetune_folds(config, store, spec=spec, seeds=seeds, workers=workers, ahead=ahead)
        return
    outcome = train(
        STAGE.name,
        jobs.task_run,
        config,
        store,
        workers=workers,
        test_progress=lambda videos: progress("test", videos, unit="video"),
        ahead=ahead if fresh else None,
    )
    where = in_runs_dir(store)
    show_training(STAGE.name, config, outcome.result, where)
    if outcome.tested is not None:
        show_tested(outcome.tested)
    click.echo(f"model: {outcome.result.best_model_path or outcome.result.model_path}")
    next_ = "predict VIDEO --checkpoint {}" if classes else "evaluate --checkpoint {} --data LIST"
    click.echo(f"\nnext:\n  vmae {next_.format(config.name)}{where}")


def _stage(options: TrainingOptions, store: Store) -> Stage:
    """The stage that --task names, else that of the run to go on with or of the recipe."""
    from vmae.experiments import jobs, recipes
    from vmae.experiments.config import ExperimentConfig

    if options.task is not None:
        return stages.TASKS[options.task]
    if options.resume is not None:
        job = jobs.saved_config(store, options.resume).job
    elif options.config_file is not None:
        job = ExperimentConfig.load(options.config_file).job
    elif options.recipe is not None:
        job = recipes.get(options.recipe).job
    else:
        return STAGE
    found = stages.STAGES[job]
    return found if found.task else STAGE


def _run_of(options: TrainingOptions, store: Store) -> ExperimentConfig | None:
    """The configuration of the run that --init or --teacher names where no recipe says how clips are cut."""
    from vmae.core.errors import InputError
    from vmae.experiments.config import ExperimentConfig

    init = options.shaped_by
    if init is None or options.recipe is not None or options.config_file is not None:
        return None
    made = store.layout.run(init).config
    if Path(init).name != init or not made.is_file():
        if options.train_csv is not None:
            return None  # the weights say the clip's shape, the list the rest
        option = "--teacher" if options.init is None else "--init"
        raise InputError(
            f"{option} {init}: expected a run of this store, which "
            "says how clips are cut, or --recipe NAME beside it (`vmae recipes` lists them, "
            "small_data_transfer is one)"
        )
    return ExperimentConfig.load(made)
