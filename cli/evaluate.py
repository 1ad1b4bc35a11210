"""`vmae evaluate`: accuracy of a classifier over several views of each video."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from vmae.cli.options import address_options, fitness_shown, runs_dir_option, set_option
from vmae.cli.training import show_tested
from vmae.experiments import stages
from vmae.experiments.stages.finetune import STAGE


@click.command()
@click.option(
    "--checkpoint",
    required=True,
    help="Fine-tuned model: a run's name, a path, a name of `vmae zoo list`, or hf://org/name.",
)
@click.option(
    "--data", "test_csv", type=click.Path(path_type=Path), help="Test list.  [default: the run's held-out]"
)
@click.option("--data-root", type=click.Path(path_type=Path), help="Folder that the list's paths start from.")
@click.option("--segments", type=int, help="Temporal views of each video.  [default: the run's]")
@click.option("--crops", type=int, help="Spatial crops of each temporal view.  [default: the run's]")
@click.option("--json", "as_json", is_flag=True, help="The numbers as JSON.")
@click.option(
    "--task",
    type=click.Choice(list(stages.TASKS)),
    help="What the model was trained for.  [default: as its run]",
)
@address_options
@set_option
@runs_dir_option
def evaluate(
    checkpoint: str,
    test_csv: Path | None,
    data_root: Path | None,
    segments: int | None,
    crops: int | None,
    as_json: bool,
    task: str | None,
    address: str | None,
    gpus: float,
    assignments: tuple[str, ...],
    runs_dir: Path | None,
) -> None:
    """Evaluate a classifier: softmax averaged over segments x crops views of each video; or a detector.

    Writes predictions.csv (one line a video, keyed by its full path), confusion.png and metrics.json. A video
    that cannot be read stops it (--set data.bad_eval=count: counts it as wrong). Run the same command again
    to go on where it was killed. With --address a classifier's videos are shared by a
    cluster's nodes (a detector and other heads are measured in one process).
    """
    from vmae.core.config import override, parse_assignments
    from vmae.core.errors import InputError
    from vmae.core.files import read_record
    from vmae.core.progress import progress
    from vmae.experiments import evaluation
    from vmae.experiments.tracking import store_at

    store = store_at(runs_dir)
    config = evaluation.evaluation_config(store, checkpoint)
    changes: dict[str, object] = {}
    if test_csv is not None:
        changes["data.test_csv"] = str(test_csv)
    if data_root is not None:
        changes["data.data_root"] = str(data_root)
    for key, value in (("segments", segments), ("crops", crops)):
        if value is not None:
            changes[f"data.{key}"] = value
    if task is not None:
        changes["job"] = stages.TASKS[task].name
    config = override(config, {**changes, **parse_assignments(assignments)})
    showing: Any = {"progress": lambda videos: progress("evaluate", videos, unit="video")}
    if stages.STAGES[config.job].test in (None, STAGE.test):
        with fitness_shown():
            tested, home = evaluation.evaluate_run(
                config, store, checkpoint, address=address, gpus=gpus, **showing
            )
    elif address is not None:
        got = stages.STAGES[config.job].task
        raise InputError(f"--address: expected a model of task {STAGE.task}, got one of {got}")
    else:
        tested, home = evaluation.test_run(config, store, checkpoint, **showing)
    if as_json:
        facts = read_record(home.metrics) or {}
        click.echo(json.dumps({**facts, **tested.numbers, "folder": str(home.path)}))
        return
    show_tested(tested)
