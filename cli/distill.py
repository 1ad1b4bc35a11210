"""`vmae distill`: a classifier that learns another one's answers beside the labels."""

from __future__ import annotations

import click

from vmae.cli.finetune import train_head
from vmae.cli.training_options import TrainingOptions, training_options
from vmae.experiments.stages.finetune import STAGE


@click.command()
@click.option(
    "--teacher", metavar="RUN|PATH|hf://ORG/NAME", help="A classifier of the same classes and clips."
)
@click.option(
    "--weight", type=float, help="The teacher's share of the loss, the labels' the rest.  [default: 0.9]"
)
@click.option(
    "--temperature", type=float, help="By which logits are divided before they are compared.  [default: 2]"
)
@click.option(
    "--folds",
    metavar="FILE|K",
    help="Hold out each fold in turn, as vmae finetune does; the teacher must have held it out too.",
)
@click.option("--seeds", type=int, help="With --folds: seeds of each fold.  [default: 1]")
@training_options
def distill(options: TrainingOptions) -> None:
    """Train a classifier on the answers of a larger one, and on the labels.

    As VideoMAE V2 makes its small models of its giant one. Clips, patch and tubelet are the teacher's, and
    where a run is named its lists and its size too: --size, --set model.depth=2 and the like make the student
    smaller, --init starts it from pre-trained weights. It is trained, measured and resumed as vmae finetune's
    runs are.
    """
    from vmae.core.errors import InputError
    from vmae.core.model.classifier import VideoClassifier
    from vmae.core.weights.models import expect_model
    from vmae.experiments.tracking import store_at
    from vmae.experiments.weights import load_model_at

    store = store_at(options.runs_dir)
    if options.teacher is not None:  # refused before any list is read
        expect_model(load_model_at(store, options.teacher)[0], VideoClassifier, options.teacher)
    elif options.resume is None:
        raise InputError("expected --teacher RUN, PATH or hf://org/name; got none")
    train_head(STAGE, options, store, options.workers())
