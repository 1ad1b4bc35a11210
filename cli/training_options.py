"""The options of the training verbs, as one object."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import click

from vmae.cli.options import (
    Command,
    ConfigOptions,
    config_options,
    init_options,
    runs_dir_option,
    set_option,
    with_options,
)
from vmae.experiments.request import held_out_beside, list_format, resolve_config

if TYPE_CHECKING:
    from vmae.experiments.config import ExperimentConfig
    from vmae.experiments.distributed import WorkersConfig
    from vmae.experiments.recommend import Flip, Recommendation
    from vmae.experiments.tracking import Store


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(ConfigOptions):
    """What `training_options` took from the command line."""

    init: str | None
    resize_patch_embed: bool
    budget: str | None
    flip: Flip | None
    run_name: str | None
    resume: str | None
    threads: int | None
    num_workers: int | None
    gpus_per_worker: float
    cpus_per_worker: float
    address: str
    checkpoint_artifacts: str | None
    folds: str | None = None
    seeds: int | None = None
    task: str | None = None
    teacher: str | None = None
    weight: float | None = None
    temperature: float | None = None

    @property
    def shaped_by(self) -> str | None:
        """The model whose clips are taken: the initial one, else the teacher."""
        return self.init or self.teacher

    def resumed(self, store: Store, verb: str) -> ExperimentConfig | None:
        """The configuration of the run that --resume names, None without it.

        InputError where an option would change it, or where it is no run of this verb.
        """
        from vmae.core.errors import InputError
        from vmae.experiments import jobs, stages

        if self.resume is None:
            return None
        free = ("task", "resume", "runs_dir", "num_workers", "gpus_per_worker", "cpus_per_worker", "address")
        for f in fields(self):
            if f.name not in free and getattr(self, f.name) not in (None, False, (), {}):
                raise InputError("expected --resume alone: a resumed run keeps its own configuration")
        config = jobs.saved_config(store, self.resume)
        if config.job != verb:
            other = stages.STAGES[config.job]
            goes_on = f"finetune --task {other.task}" if other.task else other.name
            raise InputError(
                f"--resume: expected a {verb} run, got '{self.resume}'; vmae {goes_on} --resume goes on"
            )
        return config

    def config(
        self, verb: str, recipe: str, store: Store, shape_of: ExperimentConfig | None = None
    ) -> tuple[ExperimentConfig, Recommendation | None]:
        """The configuration asked for, and what `recommend` said, if it was asked.

        With a list and no recipe it is what `recommend` says; `recipe` is what it starts from where neither
        is named. InputError where it is for another verb, or where --set names what this one does not use.
        """
        from vmae.core.config import parse_assignments
        from vmae.core.errors import InputError, VmaeError
        from vmae.experiments import stages
        from vmae.experiments.folds import check_folds

        stage = stages.STAGES[verb]
        for key in parse_assignments(self.assignments):
            if key.startswith(stage.unused):
                called = verb if stage.advised else f"finetune --task {stage.task}"
                raise InputError(f"--set {key}: vmae {called} does not use it")
        named = bool(self.recipe or self.config_file)
        taken = None
        if self.shaped_by is not None and shape_of is None and not self.resize_patch_embed:
            from vmae.experiments.weights import clip_of_init

            taken, text = clip_of_init(store, self.shaped_by)
            click.echo(text, err=True)
        own, needs_val = self.recipe if named else recipe, self._needs_val(verb)
        names = ("config_file", "train_csv", "val_csv", "data_root", "size", "epochs", "init")
        given = {n: getattr(self, n) for n in (*names, "resize_patch_embed", "checkpoint_artifacts")}
        options = {"train.threads": self.threads}
        options |= {f"finetune.distill.{n}": getattr(self, n) for n in ("teacher", "weight", "temperature")}
        asked_for = (f"{key}={value}" for key, value in options.items() if value is not None)
        given |= {"assignments": (*self.assignments, *asked_for), "lists": self.lists}
        start, found = None, None
        check_folds(self.folds)
        if self.train_csv is not None and not named and stages.STAGES[verb].advised:
            try:
                found = self._recommended(verb, store, shape_of, taken)
            except VmaeError:
                # What is refused whatever the list is like is said before what the list lacks.
                from vmae.core.train.pretrain import check_objective

                asked = resolve_config(
                    recipe=own, **given, shape_of=shape_of, start=None, taken=taken, needs_val=False
                )
                check_objective(asked.mask, asked.model)
                raise
            start, shape_of = found.config, None
        elif self.budget is not None or self.flip is not None:
            raise InputError("expected --budget and --flip with --data and without --recipe or --config")
        config = resolve_config(
            recipe=own,
            **given,
            shape_of=shape_of,
            start=start,
            taken=None if start is not None else taken,
            needs_val=needs_val,
        )
        if config.job != verb:
            raise InputError(
                f"expected a recipe for vmae {verb}, got '{config.recipe}', which is for vmae {config.job}"
            )
        if found is not None and "model.background" in parse_assignments(self.assignments):
            found = replace(found, undecided=False)
        return config, found

    def _needs_val(self, verb: str) -> bool:
        """Not with folds, and not for what learns without labels."""
        from vmae.experiments import stages

        return self.folds is None and stages.STAGES[verb].labels

    def _recommended(
        self, verb: str, store: Store, shape_of: ExperimentConfig | None, taken: dict[str, Any] | None
    ) -> Recommendation:
        """What `recommend` says of the list, shown with its reasons; an initial model's clip stays."""
        from vmae.cli.recommend import describe
        from vmae.core.progress import parse_duration
        from vmae.experiments import jobs, own_pretraining, stages
        from vmae.experiments.advice import advise
        from vmae.experiments.recommend import recipe_for, with_epochs
        from vmae.experiments.run import default_device

        assert self.train_csv is not None
        device, needs_val = default_device(), self._needs_val(verb)
        given = {n: getattr(self, n) for n in ("train_csv", "val_csv", "data_root", "init")}
        base = functools.partial(
            resolve_config,
            recipe=None,
            start=recipe_for(verb, gpu=device.type == "cuda"),
            shape_of=shape_of,
            taken=taken,
            needs_val=needs_val,
            **given,
        )
        # What is refused is refused before time is spent on the list.
        jobs.check_config(base(size=self.size, epochs=self.epochs, assignments=self.assignments), device)
        kept = shape_of is not None or taken is not None
        start = base(size=None, epochs=None, assignments=()) if kept else None
        advice = advise(
            verb,
            self.train_csv,
            None if self.folds is not None else held_out_beside(self.train_csv, self.val_csv, needs_val),
            device=device,
            data_root=self.data_root,
            annotation_format=list_format(self.assignments),
            budget_s=None if self.budget is None else parse_duration(self.budget, "--budget"),
            flip=self.flip or "auto",
            start=start,
            keep_cut=shape_of is not None,
        )
        found = advice.found
        if stages.STAGES[verb].labels and not found.config.init:
            verdict = own_pretraining.remembered(found.config, store.layout)
            found = own_pretraining.with_verdict(found, verdict)
        for line in describe(replace(advice, found=found)):
            click.echo(line, err=True)
        if self.epochs is not None:  # what follows the length follows the length that is asked for
            found = replace(found, config=with_epochs(found.config, self.epochs))
        return found

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
        return command(TrainingOptions.taken(given))

    return with_options(
        collected,
        config_options,
        init_options,
        click.option(
            "--budget", help="Without --recipe: time there is, 3m or 1h30m.  [default: as vmae recommend]"
        ),
        click.option(
            "--flip",
            type=click.Choice(["auto", "yes", "no"]),
            help="Without --recipe: does a mirrored video keep its class?  [default: auto, not assumed]",
        ),
        click.option("--run-name", help="Name of the run.  [default: the recipe's, numbered]"),
        click.option(
            "--resume", metavar="RUN_NAME", help="Go on with an interrupted run, with its own configuration."
        ),
        click.option(
            "--threads",
            type=click.IntRange(min=0),
            help="CPU threads of a step.  [default: OMP_NUM_THREADS, else the fastest measured]",
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
