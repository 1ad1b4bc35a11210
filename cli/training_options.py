"""The options of the training verbs, as one object."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vmae.cli.options import Command, config_options, init_options, runs_dir_option, set_option, with_options
from vmae.experiments.request import resolve_config

if TYPE_CHECKING:
    from vmae.experiments.config import ExperimentConfig
    from vmae.experiments.distributed import WorkersConfig
    from vmae.experiments.tracking import Store


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

    return with_options(
        collected,
        config_options,
        init_options,
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
    )
