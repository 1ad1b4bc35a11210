"""How the training verbs show a run: its progress, its end, what it measured."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vmae.cli.options import in_runs_dir

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmae.core.train.task import Report, TrainResult
    from vmae.experiments.config import ExperimentConfig
    from vmae.experiments.distributed import WorkersConfig
    from vmae.experiments.recommend import Recommendation
    from vmae.experiments.stages.stage import Metric, Tested
    from vmae.experiments.tracking import Store


def _make_films_if_used(config: ExperimentConfig) -> None:
    """Write the built-in films where the configuration reads them and they are not there."""
    from vmae.experiments.recipes.demo import DEMO_BOXES, make_demo_films

    if config.data.train_csv == f"{DEMO_BOXES}/train.csv" and (films := make_demo_films()):
        click.echo(f"built-in films: {films} written to {DEMO_BOXES}", err=True)


def make_demo_data_if_used(config: ExperimentConfig) -> None:
    """Write the built-in data set where the configuration reads it and it is not there."""
    from vmae.experiments.recipes.demo import DEMO_DATA

    _make_films_if_used(config)
    if config.data.train_csv != f"{DEMO_DATA}/train.csv":
        return
    from vmae.core.video.demo_data import make_demo_data

    made = make_demo_data(DEMO_DATA)
    if made.made:
        click.echo(f"built-in data set: {made.made} videos written to {DEMO_DATA}", err=True)


Outcome = TypeVar("Outcome")


class Ahead:
    """What a training verb does once its configuration is known to be possible (`jobs.Ahead`): it shows the
    line before a training and its warnings, and chooses how many CPU threads a step has.

    `taken` names the run that clips and lists are taken from. `found` is what `recommend` said, if it was
    asked; a background that it left undecided is tried inside each run's training list, with decoded clips
    and answers in `cache`. Of several runs the first is shown, and all have its threads. Raises InputError
    for labels that leave nothing to tell apart.
    """

    def __init__(
        self,
        found: Recommendation | None,
        *,
        workers: bool = False,
        cache: Path | None = None,
        taken: str = "",
    ) -> None:
        self._speed = None if found is None else found.speed
        self.undecided = found is not None and found.undecided
        self._workers, self._threads, self._cache, self._taken = workers, -1, cache, taken

    def __call__(self, config: ExperimentConfig) -> ExperimentConfig:
        import torch

        from vmae.experiments.advice import look_ahead
        from vmae.experiments.run import default_device
        from vmae.experiments.timing import own_threads

        device = default_device()
        if self._threads < 0:
            self._threads = config.train.threads or (0 if self._workers else own_threads(config, device))
            if self._threads:
                torch.set_num_threads(self._threads)
            if self._taken:
                m, data = config.model, config.data
                click.echo(
                    f"taken from {self._taken}: clips of {m.frames} frames of {m.height}x{m.width}, patch "
                    f"{m.patch_size}, tubelet {m.tubelet_size}, and how they are cut; lists: "
                    f"{data.train_csv}, {data.val_csv or 'none held out'}",
                    err=True,
                )
            said = look_ahead(config, device, known=self._speed)
            click.echo(said.line, err=True)
            for warning in said.warnings:
                click.echo(f"warning: {warning}", err=True)
        if self.undecided and self._cache is not None:
            config = _with_background(config, self._cache)
        return replace(config, train=replace(config.train, threads=config.train.threads or self._threads))


def _with_background(config: ExperimentConfig, cache: Path) -> ExperimentConfig:
    """The configuration with the background that is tried inside its training list."""
    from vmae.experiments.tryout import try_backgrounds

    with cache_progress("decode") as progress:
        tried = try_backgrounds(config, cache, progress)
    if tried is None:
        click.echo(
            f"background {config.model.background}: not tried, the list has too few groups to part it",
            err=True,
        )
        return config
    click.echo(f"background {tried.value}: {tried.reason}", err=True)
    return replace(config, model=replace(config.model, background=tried.value))


def echo_note(text: str) -> None:
    """Something to be said while a run is prepared or under way; safe in a signal's handler."""
    line = f"note: {text}"
    try:
        # A handler may have come in the middle of writing to the stream itself.
        shown = f"\r{line}\x1b[K\n" if sys.stderr.isatty() else f"{line}\n"
        os.write(sys.stderr.fileno(), shown.encode())
    except (OSError, ValueError):
        click.echo(line, err=True)


@contextmanager
def interruptible(
    verb: str, config: ExperimentConfig, store: Store, go_on: str | None = None
) -> Iterator[None]:
    """Ctrl-C, SIGTERM or SIGHUP inside ends the command with exit code 130 and a line of what is kept.

    `go_on` says how to go on; default: by `vmae VERB --resume`.
    """
    from vmae.core.train.state import list_states
    from vmae.experiments.signals import interrupting

    try:
        with interrupting():
            yield
    except KeyboardInterrupt:
        home = store.layout.run(config.name)
        on = go_on or f"Go on with: vmae {verb} --resume {config.name}{in_runs_dir(store)}"
        if not home.config.exists():
            text = (
                "interrupted before the training: no run was made; nothing is kept of a list that was being "
                "decoded, lists that were decoded to their end are"
            ) + (f". {go_on}" if go_on else "")
        elif home.model.exists():
            text = f"interrupted after the training: the model is kept in {store.shown(home.model)}. {on}"
        elif states := list_states(home.checkpoints):
            text = f"interrupted: the state of {states[-1].name} is kept. {on}"
        else:
            text = f"interrupted before the first checkpoint: nothing is kept but the configuration. {on}"
        click.echo(text)
        raise SystemExit(130) from None


def train(
    verb: str,
    run: Callable[..., Outcome],
    config: ExperimentConfig,
    store: Store,
    *,
    workers: WorkersConfig | None,
    part_of: ExperimentConfig | None = None,
    go_on: str | None = None,
    **how: Any,
) -> Outcome:
    """Do `jobs.pretrain_run` or `jobs.task_run` with its progress shown, and with the built-in videos made.

    `part_of`: what is resumed by `vmae VERB --resume` after Ctrl-C, where it is not this run by itself;
    `go_on` as `interruptible`'s.
    """
    from vmae.experiments import jobs
    from vmae.experiments.locks import given_up
    from vmae.experiments.run import default_device
    from vmae.experiments.weights import with_teacher_at

    with interruptible(verb, part_of or config, store, go_on):
        with given_up(store.layout.run(config.name).path):
            # What is refused is refused before videos are written; the films' label map is looked at.
            _make_films_if_used(config)
            processes = workers.count if workers else 1
            jobs.check_config(with_teacher_at(config, store), default_device(), processes=processes)
            make_demo_data_if_used(config)
        with cache_progress("decode") as cached, training_progress(config) as report:
            shown: Any = {"report": report, "cache_progress": cached, "notes": echo_note}
            return run(config, store, workers=workers, **shown, **how)


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
    said = held_out_line(config, result.history)
    if said is not None:
        click.echo(said)
    line = recipes.loss_comparison(config, 1.0, result.metrics["loss"]) or recipes.why_not_compared(config)
    if line is not None:
        click.echo(line)


def show_tested(tested: Tested) -> None:
    """What a test says, and where its files are."""
    for line in tested.lines:
        click.echo(line)
    click.echo(f"details: {tested.files[0].parent}/{', '.join(f.name for f in tested.files)}")


@contextmanager
def training_progress(config: ExperimentConfig) -> Iterator[Report]:
    """A report function that draws the run's progress: time left, clips/s, loss, what was measured on
    held-out videos and the best epoch by it, epoch, waiting share, rate.

    After each quarter of the epochs the loss is compared with the recipe's recorded one.
    """
    from vmae.core.progress import Progress, progress
    from vmae.experiments import recipes

    bar: Progress | None = None
    at, quarter = 0, 0
    held_out: dict[str, Any] = {}
    epochs: list[dict[str, float]] = []

    def report(event: str, data: dict[str, Any]) -> None:
        nonlocal bar, at, quarter, held_out
        if event == "start":
            at = data["step"]
            if data["resumed"]:
                click.echo(f"resumed at step {at} of {data['total_steps']}", err=True)
            epochs[:] = data["history"]
            held_out = held_out_fields(config, epochs)
            bar = progress(config.name, data["total_steps"], unit="step", initial=at).__enter__()
            quarter = 4 * at // data["total_steps"]
        elif event == "step" and bar is not None:
            rate = data["clips_per_s"]
            fields = {"clips/s": round(rate, 0 if rate >= 10 else 1), "loss": data["loss"], **held_out}
            fields |= {"epoch": round(data["epoch"], 1), "wait": f"{data['data_wait']:.0%}"}
            mem = f"{data['peak_mem_gib']:.1f}GiB"
            bar.update(data["step"] - at, **fields, lr=data["lr"], mem=mem)
            at = data["step"]
        elif event == "epoch" and bar is not None:
            epochs.append(data)
            held_out = held_out_fields(config, epochs)
            bar.update(0, **held_out)
            share = data["epoch"] / config.train.epochs
            if quarter < int(4 * share) < 4:
                quarter = int(4 * share)
                line = recipes.loss_comparison(config, share, data["loss"])
                if line is not None:
                    bar.note(line)
        elif event == "kernels":
            took = f" ({data['measured']} measured in {data['seconds']:.0f} s)" if data["measured"] else ""
            click.echo(f"kernels, as this machine measured them{took}:", err=True)
            for line in data["lines"]:
                click.echo(f"  {line}", err=True)
        elif event == "mode":
            text = f"a step runs {data['mode']}: {data['why']}"
            bar.note(text) if bar is not None else click.echo(text, err=True)
        elif event == "warning":
            if bar is not None:
                bar.note(f"warning: {data['text']}")
            else:
                click.echo(f"warning: {data['text']}", err=True)

    try:
        yield report
    finally:
        if bar is not None:
            bar.__exit__(*sys.exc_info())


def held_out_fields(config: ExperimentConfig, epochs: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """For a bar: the newest number on held-out videos, and which epoch's was the best; empty without one."""
    found = _held_out(config, epochs)
    if found is None:
        return {}
    metric, best, last = found
    return {"held-out": f"{metric.text(last[1])} (best {metric.text(best[1])} @{best[0]:g})"}


def held_out_line(config: ExperimentConfig, epochs: Sequence[Mapping[str, float]]) -> str | None:
    """For the end of a training: what the bar said last, in words."""
    from vmae.experiments import stages

    found = _held_out(config, epochs)
    if found is None:
        return None
    metric, best, last = found
    listed = Path(config.data.val_csv).name
    line = (
        f"{metric.title} on {listed}: {metric.text(last[1])} after epoch {last[0]:g}, "
        f"best {metric.text(best[1])} after epoch {best[0]:g} of {config.train.epochs}"
    )
    normalised = (config.model.target, config.model.loss) == ("normalized", "mse")
    of_variance = stages.STAGES[config.job].masked and not metric.percent and normalised
    return f"{line} (1.0 is predicting each patch's mean)" if of_variance else line


def _held_out(
    config: ExperimentConfig, epochs: Sequence[Mapping[str, float]]
) -> tuple[Metric, tuple[float, float], tuple[float, float]] | None:
    """The stage's curve on held-out videos, where epochs have it: (epoch, value) of the best and the last."""
    from vmae.experiments import stages
    from vmae.experiments.run import metric_of_epoch

    for metric in stages.STAGES[config.job].metrics:
        if not metric.curve or not metric.where:
            continue
        measured = [
            (e["epoch"], value)
            for e in epochs
            for key, value in e.items()
            if metric_of_epoch(config.job, key) == metric.name
        ]
        if measured:
            return metric, max(measured, key=lambda m: metric.score_of(m[1])), measured[-1]
    return None


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
