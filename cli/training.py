"""What the training verbs share: the configuration they start from and how a run is shown."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vmae.cli.options import runs_dir_option, set_option
from vmae.experiments.request import resolve_config

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmae.core.measure.evaluate import Evaluation
    from vmae.core.train.task import Report, TrainResult
    from vmae.experiments.config import ExperimentConfig
    from vmae.experiments.distributed import WorkersConfig
    from vmae.experiments.tracking import Store

Command = Callable[..., Any]


def config_options(command: Command) -> Command:
    """`--recipe`, `--config`, `--data`, `--val`, `--data-root`, `--size`, `--epochs`."""
    options = [
        click.option(
            "--recipe", help="Named recipe to start from (`vmae recipes`).  [default: the built-in data's]"
        ),
        click.option(
            "--config", "config_file", type=click.Path(path_type=Path), help="YAML of an earlier run."
        ),
        click.option(
            "--data", "train_csv", type=click.Path(path_type=Path), help="Training list, `path label`."
        ),
        click.option(
            "--val",
            "val_csv",
            type=click.Path(path_type=Path),
            help="Held-out list.  [default: val.csv beside --data]",
        ),
        click.option(
            "--data-root", type=click.Path(path_type=Path), help="Folder that the lists' paths start from."
        ),
        click.option("--size", help="Model size: tiny, small, base, large, huge, giant."),
        click.option("--epochs", type=int, help="Training epochs."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def init_options(command: Command) -> Command:
    """`--init`, `--resize-patch-embed`."""
    options = [
        click.option(
            "--init",
            help="Weights to start from: a run's name, a path, a name of `vmae zoo list`, or hf://org/name.  "
            "[default: the recipe's, else fresh weights]",
        ),
        click.option(
            "--resize-patch-embed",
            is_flag=True,
            help="Resample the patch weights of --init where the model has another patch or tubelet size.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """What `training_options` took from the command line."""

    recipe: str | None
    config_file: Path | None
    train_csv: Path | None
    val_csv: Path | None
    data_root: Path | None
    size: str | None
    epochs: int | None
    init: str | None
    resize_patch_embed: bool
    run_name: str | None
    resume: str | None
    num_workers: int | None
    gpus_per_worker: float
    cpus_per_worker: float
    address: str
    checkpoint_artifacts: str | None
    assignments: tuple[str, ...]
    runs_dir: Path | None

    def resumed(self, store: Store, verb: str) -> ExperimentConfig | None:
        """The configuration of the run that --resume names, None without it.

        InputError where an option would change it, or where it is no run of this verb.
        """
        from vmae.core.errors import InputError
        from vmae.experiments import jobs

        if self.resume is None:
            return None
        free = ("resume", "runs_dir", "num_workers", "gpus_per_worker", "cpus_per_worker", "address")
        for f in fields(self):
            if f.name not in free and getattr(self, f.name) not in (None, False, ()):
                raise InputError("expected --resume alone: a resumed run keeps its own configuration")
        config = jobs.saved_config(store, self.resume)
        if config.job != verb:
            raise InputError(
                f"--resume: expected a {verb} run, got '{self.resume}'; vmae {config.job} --resume goes on"
            )
        return config

    def config(self, verb: str, recipe: str, shape_of: ExperimentConfig | None = None) -> ExperimentConfig:
        """The configuration asked for; `recipe` is what it starts from where none is named.

        InputError where it is for another verb, or where --set names what this one does not use.
        """
        from vmae.core.config import parse_assignments
        from vmae.core.errors import InputError
        from vmae.experiments import stages

        for key in parse_assignments(self.assignments):
            if key.startswith(stages.STAGES[verb].unused):
                raise InputError(f"--set {key}: vmae {verb} does not use it")
        own = self.recipe if self.recipe or self.config_file else recipe
        names = ("config_file", "train_csv", "val_csv", "data_root", "size", "epochs", "init")
        given = {n: getattr(self, n) for n in (*names, "resize_patch_embed", "checkpoint_artifacts")}
        config = resolve_config(recipe=own, **given, assignments=self.assignments, shape_of=shape_of)
        if config.job != verb:
            raise InputError(
                f"expected a recipe for vmae {verb}, got '{config.recipe}', which is for vmae {config.job}"
            )
        return config

    def workers(self) -> WorkersConfig | None:
        """The workers asked for; None: train in this process."""
        from vmae.core.errors import InputError
        from vmae.experiments.cluster import probe_address
        from vmae.experiments.distributed import WorkersConfig

        if self.num_workers is None:
            if self.gpus_per_worker or self.address:
                raise InputError("expected --workers N with --gpus-per-worker or --address, got none")
            return None
        if self.address:
            probe_address(self.address)
        return WorkersConfig(
            count=self.num_workers,
            gpus_per_worker=self.gpus_per_worker,
            cpus_per_worker=self.cpus_per_worker,
            address=self.address,
        )


def training_options(command: Command) -> Command:
    """The options of a training verb, handed to it as one `TrainingOptions`."""

    @functools.wraps(command)
    def collected(**given: Any) -> Any:
        return command(TrainingOptions(**given))

    options: list[Callable[[Command], Command]] = [
        click.option("--run-name", help="Name of the run.  [default: the recipe's, numbered]"),
        click.option(
            "--resume", metavar="RUN_NAME", help="Go on with an interrupted run, with its own configuration."
        ),
        click.option(
            "--workers",
            "num_workers",
            type=int,
            help="Train on this many Ray workers.  [default: in this process, without Ray]",
        ),
        click.option("--gpus-per-worker", type=float, default=0.0, help="GPUs of each worker."),
        click.option("--cpus-per-worker", type=float, default=1.0, help="CPUs of each worker."),
        click.option(
            "--address", default="", help="Ray cluster to train on: auto, HOST:PORT or ray://HOST:PORT."
        ),
        click.option(
            "--checkpoint-artifacts",
            type=click.Choice(["link", "upload", "none"]),
            help="Checkpoints in MLflow: a file that says where they are, the weights too, or nothing.  "
            "[default: the recipe's, link]",
        ),
        set_option,
        runs_dir_option,
    ]
    wrapped: Command = collected
    for option in reversed(options):
        wrapped = option(wrapped)
    return config_options(init_options(wrapped))


def make_demo_data_if_used(config: ExperimentConfig) -> None:
    """Write the built-in data set where the configuration reads it and it is not there."""
    from vmae.experiments.recipes.demo import DEMO_DATA

    if config.data.train_csv != f"{DEMO_DATA}/train.csv":
        return
    from vmae.core.video.demo_data import make_demo_data

    made = make_demo_data(DEMO_DATA)
    if made.made:
        click.echo(f"built-in data set: {made.made} videos written to {DEMO_DATA}", err=True)


def echo_note(text: str) -> None:
    """Something about the weights that was changed on loading them."""
    click.echo(f"note: {text}", err=True)


def show_training(verb: str, config: ExperimentConfig, result: TrainResult) -> None:
    """The training's end in a line or two; exit code 130 with the way to go on where it was interrupted."""
    from vmae.experiments import recipes

    if result.stopped:
        click.echo(
            f"interrupted after epoch {result.epochs}, state saved. "
            f"Go on with: vmae {verb} --resume {config.name}"
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
