"""How the training verbs show a run: its progress, its end, what it measured."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmae.core.measure.evaluate import Evaluation
    from vmae.core.train.task import Report, TrainResult
    from vmae.experiments.config import ExperimentConfig
    from vmae.experiments.recommend import Speed
    from vmae.experiments.stages.stage import Tested


def make_demo_data_if_used(config: ExperimentConfig) -> None:
    """Write the built-in data set where the configuration reads it and it is not there."""
    from vmae.experiments.recipes.demo import DEMO_BOXES, DEMO_DATA, make_demo_films

    if config.data.train_csv == f"{DEMO_BOXES}/train.csv":
        if made := make_demo_films():
            click.echo(f"built-in films: {made} written to {DEMO_BOXES}", err=True)
        return
    if config.data.train_csv != f"{DEMO_DATA}/train.csv":
        return
    from vmae.core.video.demo_data import make_demo_data

    made = make_demo_data(DEMO_DATA)
    if made.made:
        click.echo(f"built-in data set: {made.made} videos written to {DEMO_DATA}", err=True)


def show_outlook(config: ExperimentConfig, speed: Speed | None) -> None:
    """The line before a training and its warnings; InputError for labels that leave nothing to tell apart.

    With `speed` (steps were timed) the training runs in the threads that were the fastest.
    """
    import torch

    from vmae.experiments.advice import look_ahead
    from vmae.experiments.run import default_device

    said = look_ahead(config, default_device(), known=speed)
    click.echo(said.line, err=True)
    for warning in said.warnings:
        click.echo(f"warning: {warning}", err=True)
    if speed is not None:
        torch.set_num_threads(speed.threads)


def echo_note(text: str) -> None:
    """Something about the weights that was changed on loading them."""
    click.echo(f"note: {text}", err=True)


def show_training(verb: str, config: ExperimentConfig, result: TrainResult, where: str = "") -> None:
    """The training's end in a line or two; exit code 130 with the way to go on where it was interrupted.

    `where` is what commands to be typed need (`in_runs_dir`).
    """
    from vmae.experiments import recipes

    if result.stopped:
        click.echo(
            f"interrupted after epoch {result.epochs}, state saved. "
            f"Go on with: vmae {verb} --resume {config.name}{where}"
        )
        raise SystemExit(130)
    click.echo(
        f"{config.name}: loss {result.metrics['loss']:.4f} after {result.epochs} epochs, "
        f"{result.clips_per_s:.0f} clips/s"
    )
    line = recipes.loss_comparison(config, 1.0, result.metrics["loss"]) or recipes.why_not_compared(config)
    if line is not None:
        click.echo(line)


def show_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Accuracies over all videos with an interval, on which list, and where the details are."""
    from vmae.core.files import read_json

    facts = read_json(folder / "metrics.json") or {}
    videos = len(evaluation.predictions)
    views = max(p.views for p in evaluation.predictions)
    name, chance = Path(facts.get("list", "")).name, 1 / len(evaluation.confusion)
    click.echo(
        f"top-1 {evaluation.interval().text()}  top-5 {evaluation.top5:.1%}  "
        f"mean class {evaluation.mean_class:.1%}  (chance {chance:.1%}) on {videos} videos of {name}, "
        f"{views} views each"
    )
    if facts.get("chose"):
        click.echo(
            f"{name} chose the epoch, so this number is too good by some points: data.test_csv or --folds "
            "measure on videos that chose nothing"
        )
    if evaluation.unreadable:
        click.echo(f"{evaluation.unreadable} videos could not be read and count as wrong")
    click.echo(f"details: {folder}/predictions.csv, confusion.png")


def show_tested(tested: Tested) -> None:
    """What a test says, and where its files are."""
    for line in tested.lines:
        click.echo(line)
    click.echo(f"details: {tested.files[0].parent}/{', '.join(f.name for f in tested.files)}")


@contextmanager
def training_progress(config: ExperimentConfig) -> Iterator[Report]:
    """A report function that draws the run's progress: loss, rate, clips/s, waiting share, time left.

    After each quarter of the epochs the loss is compared with the recipe's recorded one.
    """
    from vmae.core.progress import Progress, progress
    from vmae.experiments import recipes

    bar: Progress | None = None
    at, quarter = 0, 0

    def report(event: str, data: dict[str, Any]) -> None:
        nonlocal bar, at, quarter
        if event == "start":
            at = data["step"]
            if data["resumed"]:
                click.echo(f"resumed at step {at} of {data['total_steps']}", err=True)
            bar = progress(config.name, data["total_steps"], unit="step", initial=at).__enter__()
            quarter = 4 * at // data["total_steps"]
        elif event == "step" and bar is not None:
            bar.update(
                data["step"] - at,
                epoch=round(data["epoch"], 1),
                loss=data["loss"],
                lr=data["lr"],
                clips_per_s=round(data["clips_per_s"], 0 if data["clips_per_s"] >= 10 else 1),
                data_wait=f"{data['data_wait']:.0%}",
                mem=f"{data['peak_mem_gib']:.1f}GiB",
            )
            at = data["step"]
        elif event == "epoch" and bar is not None:
            share = data["epoch"] / config.train.epochs
            if quarter < int(4 * share) < 4:
                quarter = int(4 * share)
                line = recipes.loss_comparison(config, share, data["loss"])
                if line is not None:
                    bar.note(line)
        elif event == "warning":
            if bar is not None:
                bar.note(f"warning: {data['text']}")
            else:
                click.echo(f"warning: {data['text']}", err=True)

    try:
        yield report
    finally:
        if bar is not None:
            bar.__exit__(None, None, None)


@contextmanager
def cache_progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar fed by `(done, total)` calls, shown only if there is something to wait for."""
    from vmae.core.progress import Progress, progress

    bar: Progress | None = None
    last = 0

    def update(done: int, total: int) -> None:
        nonlocal bar, last
        if bar is None:
            if done >= total:
                return
            bar = progress(title, total, unit="video").__enter__()
        bar.update(done - last)
        last = done
        if done >= total:
            # What follows is not decoding: its time is not counted here.
            bar.__exit__(None, None, None)
            bar = None

    try:
        yield update
    finally:
        if bar is not None:
            bar.__exit__(None, None, None)
