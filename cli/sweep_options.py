"""The options of `vmae sweep` as one object, and the plan that they ask for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vmae.cli.options import Command, ConfigOptions, config_options, runs_dir_option, set_option, with_options
from vmae.experiments import stages
from vmae.experiments.request import resolve_config
from vmae.experiments.stages import pretrain

if TYPE_CHECKING:
    from vmae.experiments.config import ExperimentConfig
    from vmae.experiments.layout import SweepDir
    from vmae.experiments.sweeps.definitions import Definition
    from vmae.experiments.sweeps.resources import Resources
    from vmae.experiments.sweeps.space import Param
    from vmae.experiments.sweeps.spec import Plan
    from vmae.experiments.sweeps.stopping import StoppingConfig
    from vmae.experiments.tracking import Store

LATEST = "(latest)"


@dataclass(frozen=True, kw_only=True)
class SweepOptions(ConfigOptions):
    """What `sweep_options` took from the command line."""

    list_them: bool
    values: str | None
    param_texts: tuple[str, ...]
    search: Any
    samples: int | None
    scheduler: Any
    stop_on: str | None
    budget: str | None
    stage_names: tuple[str, ...]
    seeds: int
    equal: Any
    folds: str | None
    cpus: float | None
    gpus: float | None
    workers_per_trial: int | None
    stage_texts: tuple[str, ...]
    max_concurrent: int | None
    address: str | None
    model_name: str | None
    run_name: str | None
    resume: str | None

    def plan(self, store: Store, name: str | None) -> Plan:
        """The plan of a new sweep, of the definition `name` or of --param alone; InputError for a bad one."""
        from vmae.experiments.folds import check_folds
        from vmae.experiments.recommend import recipe_for
        from vmae.experiments.run import default_device
        from vmae.experiments.sweeps import definitions, driver

        definition = None if name is None else definitions.get(name)
        check_folds(self.folds)
        asked = self._asked(definition)
        sweep_name = "custom" if definition is None else definition.name
        if self.train_csv is None or self.recipe is not None or self.config_file is not None:
            base = asked()
        else:
            # What is refused is refused before time is spent on the list.
            start = recipe_for(pretrain.STAGE.name, gpu=default_device().type == "cuda")
            self._made(definition, asked(start=start), store, sweep_name)
            base = asked(start=self._recommended(self.train_csv))
        self._made(definition, base, store, sweep_name)
        run_name = driver.new_name(store, sweep_name, self.run_name)
        sweep = store.layout.sweep(run_name)
        with driver.freed_unless_begun(store, run_name):
            base, folds = self._over_folds(base, sweep)
            return self._made(definition, base, store, run_name, folds)

    def _made(
        self,
        definition: Definition | None,
        base: ExperimentConfig,
        store: Store,
        run_name: str,
        folds: tuple[int, ...] = (),
    ) -> Plan:
        """The plan whose trials have `base` in common."""
        from vmae.experiments.sweeps.resources import Resources
        from vmae.experiments.sweeps.space import describe
        from vmae.experiments.sweeps.spec import make_plan
        from vmae.experiments.weights import with_teacher_at

        base, stopping = self._stopped_early(with_teacher_at(base, store))
        params = [_placed(param, base, store) for param in self._params(definition, base)]
        return make_plan(
            name=run_name,
            sweep="custom" if definition is None else definition.name,
            title=describe(params) if definition is None else definition.title,
            params=params,
            metric=base.pipeline.metric,
            base=base,
            seeds=self.seeds,
            folds=folds,
            search=self.search,
            samples=self.samples,
            stopping=stopping,
            budget_s=self.budget_s,
            resources=self.on(Resources(gpus=_gpus_here() if self.gpus is None else self.gpus)),
            brings=None if definition is None else definition.brings(base),
            equal=self.equal,
        )

    def plan_to_resume(self, store: Store, name: str | None) -> Plan:
        """The saved plan of the sweep that --resume names, on the resources that are given anew."""
        from vmae.experiments.sweeps.spec import check_resources

        plan = saved_plan(store, name, self.resume or LATEST)
        plan = replace(plan, resources=self.on(plan.resources), budget_s=self.budget_s)
        check_resources(plan)
        return plan

    @property
    def budget_s(self) -> float | None:
        """--budget in seconds."""
        from vmae.core.progress import parse_duration

        return None if self.budget is None else parse_duration(self.budget, "--budget")

    def on(self, resources: Resources) -> Resources:
        """The resources, changed where an option says so."""
        return resources.changed(
            cpus=self.cpus,
            gpus=self.gpus,
            workers=self.workers_per_trial,
            stages=self.stage_texts,
            max_concurrent=self.max_concurrent,
            address=self.address,
        )

    @property
    def _needs_val(self) -> bool:
        """Whether the trials are measured on a held-out list."""
        return self.folds is None and (not self.stage_names or stages.need_held_out(self.stage_names))

    def _asked(self, definition: Definition | None) -> Callable[..., ExperimentConfig]:
        """What makes the configuration that the trials have in common, from a recipe or from `start`."""
        chosen = {} if definition is None else dict(definition.fixed)
        if self.stage_names:
            chosen["pipeline.then"] = ",".join(self.stage_names)
        names = ("recipe", "config_file", "train_csv", "lists", "val_csv", "data_root", "size", "epochs")
        return functools.partial(
            resolve_config,
            **{n: getattr(self, n) for n in names},
            assignments=(*(f"{k}={v}" for k, v in chosen.items()), *self.assignments),
            needs_val=self._needs_val,
        )

    def _stopped_early(self, base: ExperimentConfig) -> tuple[ExperimentConfig, StoppingConfig | None]:
        """With --scheduler: what stops trials, and the base with what that needs measured."""
        from vmae.core.config import override
        from vmae.core.errors import InputError
        from vmae.experiments.sweeps.stopping import StoppingConfig

        if self.scheduler == "none":
            if self.stop_on is not None:
                raise InputError("--stop-on: expected a --scheduler to go with it, got none")
            return base, None
        stopping = StoppingConfig(rule=self.scheduler, metric=pretrain.STOP_ON[self.stop_on or "loss"].name)
        if stopping.metric == pretrain.KNN.name and not base.pipeline.measure_every:
            base = override(base, {"pipeline.measure_every": 1})
        return base, stopping

    def _recommended(self, train_csv: Path) -> ExperimentConfig:
        """What `recommend` says of pre-training on the list, shown with its reasons; the recipe's fine-tuning
        for a trial that has one."""
        from vmae.cli.recommend import describe
        from vmae.experiments.advice import advise
        from vmae.experiments.recommend import recipe_for, with_epochs
        from vmae.experiments.request import held_out_beside, list_format
        from vmae.experiments.run import default_device
        from vmae.experiments.stages import finetune

        device = default_device()
        held_out = None
        if self.folds is None:
            held_out = held_out_beside(train_csv, self.val_csv, self._needs_val)
        advice = advise(
            pretrain.STAGE.name,
            train_csv,
            held_out,
            device=device,
            data_root=self.data_root,
            annotation_format=list_format(self.assignments),
        )
        for line in describe(advice):
            click.echo(line, err=True)
        made, config = recipe_for(finetune.STAGE.name, gpu=device.type == "cuda"), advice.found.config
        if self.epochs is not None:  # what follows the length follows the length that is asked for
            config = with_epochs(config, self.epochs)
        pipeline = replace(config.pipeline, finetune_optim=made.optim, finetune_train=made.train)
        return replace(config, finetune=made.finetune, pipeline=pipeline)

    def _over_folds(
        self, base: ExperimentConfig, sweep: SweepDir
    ) -> tuple[ExperimentConfig, tuple[int, ...]]:
        """With --folds: the lists of every fold in the sweep's folder, and the folds."""
        from vmae.experiments.folds import find_folds, keep_lists

        if self.folds is None:
            return base, ()
        found = find_folds(self.folds, base)
        for line in (found.said, *found.lines()):
            click.echo(line, err=True)
        listed = keep_lists(found, sweep.folds, Path(base.data.train_csv))
        data = replace(base.data, train_csv=str(listed), val_csv="", test_csv="", data_root="")
        return replace(base, data=data), tuple(found.numbers)

    def _params(self, definition: Definition | None, base: ExperimentConfig) -> list[Param]:
        """What varies: the named sweep's field (with other values, if given), then the fields of --param."""
        from vmae.core.errors import InputError
        from vmae.experiments.sweeps.space import Param, parse_params, typed_values

        given = list(parse_params(self.param_texts, base))
        if definition is None:
            if self.values is not None:
                raise InputError("--values: expected the name of a sweep whose field takes them, got none")
            return given
        if any(p.path == definition.path for p in given):
            if self.values is not None:
                raise InputError(f"expected --values or --param for {definition.path}, got both")
            return given
        chosen = definition.values
        if self.values is not None:
            chosen = typed_values(definition.path, self.values, base, definition.brings(base))
        return [Param(path=definition.path, choices=tuple(chosen)), *given]


def _placed(param: Param, base: ExperimentConfig, store: Store) -> Param:
    """The parameter, its teachers (`model.target`) named by where they lie, as every trial finds them."""
    from vmae.core.config import override
    from vmae.core.model.target import teacher_of
    from vmae.experiments.weights import with_teacher_at

    def placed(choice: Any) -> Any:
        if teacher_of(str(choice)) is None:
            return choice
        return with_teacher_at(override(base, {param.path: choice}), store).model.target

    return (
        param if param.path != "model.target" else replace(param, choices=tuple(map(placed, param.choices)))
    )


def sweep_options(command: Command) -> Command:
    """The options of `vmae sweep`, handed to it as one `SweepOptions` after its name."""

    @functools.wraps(command)
    def collected(name: str | None, **given: Any) -> Any:
        return command(name, SweepOptions.taken(given))

    return with_options(
        collected,
        click.option("--list", "list_them", is_flag=True, help="Show the named sweeps there are."),
        click.option(
            "--values", help="Values to try instead of the sweep's own, for example 0.5,0.75,0.9,0.95."
        ),
        click.option(
            "--param",
            "param_texts",
            multiple=True,
            metavar="PATH=SPACE",
            help="Vary any field: mask.ratio=0.5,0.75 or optim.base_lr=loguniform(1e-5,1e-3); also "
            "uniform(a,b), randint(a,b) with both ends, choice(a,b,...) (repeatable).",
        ),
        click.option(
            "--search",
            type=click.Choice(["grid", "random", "optuna"]),
            help="How settings are chosen.  [default: random where a field has a distribution, else grid]",
        ),
        click.option("--samples", type=int, help="Settings drawn by random and Optuna.  [default: 16]"),
        click.option(
            "--scheduler",
            type=click.Choice(["none", "asha", "median", "pbt"]),
            default="none",
            show_default=True,
            help="Stop bad trials early (asha, median), or copy weights from good ones (pbt).",
        ),
        click.option(
            "--stop-on",
            type=click.Choice(list(pretrain.STOP_ON)),
            help="What the scheduler compares: the training loss (refused where trials differ in task) or "
            "nearest neighbours on features, measured during training.  [default: loss]",
        ),
        click.option("--budget", metavar="TIME", help="Stop after this time, for example 4h, 90m or 1h30m."),
        click.option(
            "--then",
            "stage_names",
            multiple=True,
            metavar="STAGE",
            help=f"Stage after pre-training: {', '.join(stages.THEN)}, or one of your own as MODULE:OBJECT; "
            "the last one ranks the trials (repeatable).  [default: probe]",
        ),
        config_options,
        click.option(
            "--seeds", type=int, default=1, show_default=True, help="Repeat every trial with this many seeds."
        ),
        click.option(
            "--equal",
            type=click.Choice(["epochs", "flops", "time"]),
            default="epochs",
            show_default=True,
            help="What trials have in common. flops, time: each gets the epochs that cost what the base's do "
            "(matrix products; seconds measured here), its teacher's training included.",
        ),
        click.option(
            "--folds",
            metavar="FILE|K",
            help="Hold out each fold of the training list in turn, of a csv with path and fold, or "
            "of K made of whole groups: every trial is run once a fold and seed.",
        ),
        click.option(
            "--cpus", type=float, help="CPU cores per trial, or of each of its workers.  [default: 1]"
        ),
        click.option(
            "--gpus",
            type=float,
            help="GPUs per trial (or worker), may be a fraction.  [default: 1 where there is one]",
        ),
        click.option(
            "--workers-per-trial",
            type=int,
            help="Ray workers that share each batch of a trial's training, on one node or several.  "
            "[default: 1]",
        ),
        click.option(
            "--stage-resources",
            "stage_texts",
            multiple=True,
            metavar="STAGE:workers=N,cpus=X,gpus=Y",
            help=f"Other resources for a stage: {', '.join(stages.STAGES)}, or your own's name (repeatable).",
        ),
        click.option(
            "--max-concurrent", type=int, help="Trials at a time.  [default: what the machine holds]"
        ),
        click.option(
            "--address",
            help="Ray cluster: auto, HOST:PORT or ray://HOST:PORT; local for this machine.  [default: local]",
        ),
        click.option(
            "--register",
            "model_name",
            metavar="NAME",
            help="Register the best trial's checkpoint as a version of this MLflow model.",
        ),
        click.option("--run-name", help="Name of this sweep.  [default: NAME-1, NAME-2, ...]"),
        click.option(
            "--resume",
            is_flag=False,
            flag_value=LATEST,
            metavar="[RUN_NAME]",
            help="Go on with an interrupted sweep: this one, or the latest of NAME.",
        ),
        set_option,
        runs_dir_option,
    )


def saved_plan(store: Store, name: str | None, resume: str) -> Plan:
    from vmae.core.errors import InputError
    from vmae.experiments.sweeps import definitions, driver
    from vmae.experiments.sweeps.spec import Plan

    if resume in definitions.ALL:
        name, resume = resume, LATEST
    if resume != LATEST:
        return Plan.load(driver.find_sweep(store, resume))
    plans = [p for _, p in driver.all_plans(store)]
    found = [p for p in plans if name is None or (isinstance(p, Plan) and p.sweep == name)]
    if not found:
        raise InputError(
            f"--resume: expected a sweep{f' of {name}' if name else ''} in {store.layout.sweeps}; found none"
        )
    if isinstance(found[0], Plan):
        return found[0]
    raise found[0]


def _gpus_here() -> float:
    import torch

    return 1.0 if torch.cuda.is_available() else 0.0
