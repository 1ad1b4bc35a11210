"""`vmae sweep`: many trials that differ in one thing, ranked by what matters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vmae.cli.options import in_runs_dir, runs_dir_option, set_option
from vmae.cli.training import cache_progress, config_options, make_demo_data_if_used, resolve_config
from vmae.experiments import stages
from vmae.experiments.stages import pretrain

if TYPE_CHECKING:
    from vmae.experiments.cluster import Ahead
    from vmae.experiments.config import ExperimentConfig
    from vmae.experiments.sweeps.definitions import Definition
    from vmae.experiments.sweeps.space import Param
    from vmae.experiments.sweeps.spec import Plan
    from vmae.experiments.tracking import Store

LATEST = "(latest)"


@click.command()
@click.argument("name", required=False)
@click.option("--list", "list_them", is_flag=True, help="Show the named sweeps there are.")
@click.option("--values", help="Values to try instead of the sweep's own, for example 0.5,0.75,0.9,0.95.")
@click.option(
    "--param",
    "param_texts",
    multiple=True,
    metavar="PATH=SPACE",
    help="Vary any field: mask.ratio=0.5,0.75 or optim.base_lr=loguniform(1e-5,1e-3); also uniform(a,b), "
    "randint(a,b) with both ends, choice(a,b,...) (repeatable).",
)
@click.option(
    "--search",
    type=click.Choice(["grid", "random", "optuna"]),
    help="How settings are chosen.  [default: random where a field has a distribution, else grid]",
)
@click.option("--samples", type=int, help="Settings drawn by random and Optuna.  [default: 16]")
@click.option(
    "--scheduler",
    type=click.Choice(["none", "asha", "median", "pbt"]),
    default="none",
    show_default=True,
    help="Stop bad trials early (asha, median), or copy weights from good ones (pbt).",
)
@click.option(
    "--stop-on",
    type=click.Choice(list(pretrain.STOP_ON)),
    help="What the scheduler compares: the training loss (refused where trials differ in task) or nearest "
    "neighbours on features, measured during training.  [default: loss]",
)
@click.option("--budget", metavar="TIME", help="Stop after this time, for example 4h, 90m or 1h30m.")
@click.option(
    "--then",
    "stage_names",
    multiple=True,
    metavar="STAGE",
    help=f"Stage after pre-training: {', '.join(stages.THEN)}, or one of your own as MODULE:OBJECT; the last "
    "one ranks the trials (repeatable).  [default: probe]",
)
@config_options
@click.option(
    "--seeds", type=int, default=1, show_default=True, help="Repeat every trial with this many seeds."
)
@click.option("--cpus", type=float, help="CPU cores per trial, or of each of its workers.  [default: 1]")
@click.option(
    "--gpus",
    type=float,
    help="GPUs per trial (or worker), may be a fraction.  [default: 1 where there is one]",
)
@click.option(
    "--workers-per-trial",
    type=int,
    help="Ray workers that share each batch of a trial's training, on one node or several.  [default: 1]",
)
@click.option(
    "--stage-resources",
    "stage_texts",
    multiple=True,
    metavar="STAGE:workers=N,cpus=X,gpus=Y",
    help=f"Other resources for a stage: {', '.join(stages.STAGES)}, or your own's name (repeatable).",
)
@click.option("--max-concurrent", type=int, help="Trials at a time.  [default: what the machine holds]")
@click.option(
    "--address",
    help="Ray cluster: auto, HOST:PORT or ray://HOST:PORT; local for this machine.  [default: local]",
)
@click.option(
    "--register",
    "model_name",
    metavar="NAME",
    help="Register the best trial's checkpoint as a version of this MLflow model.",
)
@click.option("--run-name", help="Name of this sweep.  [default: NAME-1, NAME-2, ...]")
@click.option(
    "--resume",
    is_flag=False,
    flag_value=LATEST,
    metavar="[RUN_NAME]",
    help="Go on with an interrupted sweep: this one, or the latest of NAME.",
)
@set_option
@runs_dir_option
def sweep(
    name: str | None,
    list_them: bool,
    values: str | None,
    param_texts: tuple[str, ...],
    search: str | None,
    samples: int | None,
    scheduler: str,
    stop_on: str | None,
    budget: str | None,
    stage_names: tuple[str, ...],
    recipe: str | None,
    config_file: Path | None,
    train_csv: Path | None,
    val_csv: Path | None,
    data_root: Path | None,
    size: str | None,
    epochs: int | None,
    seeds: int,
    cpus: float | None,
    gpus: float | None,
    workers_per_trial: int | None,
    stage_texts: tuple[str, ...],
    max_concurrent: int | None,
    address: str | None,
    model_name: str | None,
    run_name: str | None,
    resume: str | None,
    assignments: tuple[str, ...],
    runs_dir: Path | None,
) -> None:
    """Run the named sweep NAME, for example `vmae sweep masking_ratio`, or vary any field with --param.

    Without --data it runs on the built-in data set (made in data/demo if it is not there), sized for a CPU.
    Trials are ranked by their last stage (a probe) on held-out videos, never by their own training loss.
    Every trial is tracked in MLflow; an interrupted sweep goes on with --resume.
    """
    from vmae.core.errors import InputError
    from vmae.core.progress import parse_duration
    from vmae.experiments.sweeps import definitions

    if list_them:
        _list()
        return
    definition = definitions.get(name) if name is not None and resume is None else None
    if resume is None and name is None and not param_texts:
        raise InputError("expected the name of a sweep (see `vmae sweep --list`) or --param, got neither")
    ahead = None if resume or stage_texts else _ray_ahead(address, (cpus or 1) * (workers_per_trial or 1))

    # From here on torch is imported, while Ray's processes start.
    from vmae.core.config import override
    from vmae.experiments.registry import check_model_name
    from vmae.experiments.sweeps import driver
    from vmae.experiments.sweeps.resources import Resources
    from vmae.experiments.sweeps.space import describe
    from vmae.experiments.sweeps.spec import check_resources, make_plan
    from vmae.experiments.sweeps.stopping import StoppingConfig

    if model_name is not None:
        check_model_name(model_name)
    store = driver.open_store(runs_dir)
    wanted: dict[str, Any] = {
        "cpus": cpus,
        "gpus": gpus,
        "workers": workers_per_trial,
        "stages": stage_texts,
        "max_concurrent": max_concurrent,
        "address": address,
    }
    budget_s = None if budget is None else parse_duration(budget, "--budget")
    if resume is not None:
        plan = _plan_to_resume(store, name, resume)
        plan = replace(plan, resources=plan.resources.changed(**wanted), budget_s=budget_s)
        check_resources(plan)
    else:
        chosen = dict(definition.fixed) if definition is not None else {}
        if stage_names:
            chosen["pipeline.then"] = ",".join(stage_names)
        base = resolve_config(
            recipe=recipe,
            config_file=config_file,
            train_csv=train_csv,
            val_csv=val_csv,
            data_root=data_root,
            size=size,
            epochs=epochs,
            assignments=(*(f"{k}={v}" for k, v in chosen.items()), *assignments),
        )
        stopping = None
        if scheduler != "none":
            stopping = StoppingConfig(
                rule=scheduler,  # type: ignore[arg-type]
                metric=pretrain.STOP_ON[stop_on or "loss"].name,
            )
            if stopping.metric == pretrain.KNN.name and not base.pipeline.measure_every:
                base = override(base, {"pipeline.measure_every": 1})
        elif stop_on is not None:
            raise InputError("--stop-on: expected a --scheduler to go with it, got none")
        params = _params(definition, base, values, param_texts)
        title = definition.title if definition is not None else describe(params)
        sweep_name = definition.name if definition is not None else "custom"
        run_name = run_name or driver.new_name(store, sweep_name)
        if store.layout.sweep(run_name).plan.exists():
            raise InputError(
                f"--run-name: expected a new name, got '{run_name}', which exists; "
                f"go on with it by --resume {run_name}"
            )
        plan = make_plan(
            name=run_name,
            sweep=sweep_name,
            title=title,
            params=params,
            metric=base.pipeline.metric,
            base=base,
            seeds=seeds,
            search=search,  # type: ignore[arg-type]
            samples=samples,
            stopping=stopping,
            budget_s=budget_s,
            resources=Resources().changed(**wanted | {"gpus": _gpus(gpus)}),
        )
        make_demo_data_if_used(base)
    run(plan, store, model_name, ahead)


def _ray_ahead(address: str | None, cpus: float) -> Ahead | None:
    """Ray, starting while the plan is made: only in a process that ends with this command.

    A command that is refused then leaves with its half-started Ray instead of waiting for it.
    """
    context = click.get_current_context()
    if not context.find_root().obj:
        return None
    from vmae.experiments.cluster import Ahead, probe_address

    if address == "local":
        address = None
    if address is not None:
        probe_address(address)
    return context.with_resource(Ahead(address, cpus=cpus, leave=True))


def run(plan: Plan, store: Store, model_name: str | None = None, ahead: Ahead | None = None) -> None:
    """Prepare, run and report a plan; exit code 1 when a trial failed, 130 when interrupted.

    With `model_name` the best trial's checkpoint becomes a version of that MLflow model. `ahead` is a Ray
    that is being started already.
    """
    from contextlib import nullcontext

    from vmae.cli.sweep_display import Display, report
    from vmae.experiments.cluster import ClusterUnfit
    from vmae.experiments.sweeps import driver
    from vmae.experiments.sweeps.ready import check_place, prepare
    from vmae.experiments.sweeps.spec import Plan
    from vmae.experiments.sweeps.status import DONE, FAILED
    from vmae.experiments.sweeps.tune import ray_ahead

    try:
        check_place(plan)
        with ray_ahead(plan) if ahead is None else nullcontext(ahead) as ray_start:
            with cache_progress("decode") as progress:
                prepare(plan, store, progress)
            click.echo(
                f"sweep {plan.name} ({plan.title}): {plan.expected_trials} trials "
                f"in {store.shown(store.layout.sweep(plan.name).path)}",
                err=True,
            )
            with Display(plan) as display:
                states = driver.run_sweep(plan, store, display.show, ray_start)
    except ClusterUnfit as e:
        from vmae.cli.cluster import nodes_table

        click.echo(nodes_table(e.reports), err=True)
        raise
    except KeyboardInterrupt:
        if not store.layout.sweep(plan.name).plan.exists():
            raise
        click.echo(
            f"\ninterrupted: finished trials are kept. Go on with: vmae sweep --resume {plan.name}"
            + in_runs_dir(store),
            err=True,
        )
        raise SystemExit(130) from None
    plan = Plan.load(store.layout.sweep(plan.name))
    report(plan, states, store)
    if model_name is not None:
        from vmae.cli.runs_register import say_registered
        from vmae.experiments.registry import register_best

        best, version = register_best(store, plan, states, model_name)
        say_registered(store, best.name, model_name, version)
    left = plan.expected_trials - sum(s.status in (DONE, FAILED) for s in states)
    if left:
        click.echo(
            f"\nthe budget is spent; {left} of {plan.expected_trials} trials are not finished. "
            f"Go on with: vmae sweep --resume {plan.name}{in_runs_dir(store)}",
            err=True,
        )
    failed = [s for s in states if s.status == FAILED]
    if failed:
        for state in failed:
            click.echo(f"failed: {state.trial.id}: {state.error}", err=True)
        raise SystemExit(1)


def _list() -> None:
    from vmae.cli.tables import format_table
    from vmae.experiments.sweeps import definitions

    rows = []
    for make in definitions.ALL.values():
        d = make()
        rows.append([d.name, d.path, ",".join(str(v) for v in d.values), d.title])
    click.echo(format_table(["sweep", "field", "values", "what it asks"], rows, left=4))
    click.echo("\nRun one with `vmae sweep NAME`; other values with --values.")


def _plan_to_resume(store: Store, name: str | None, resume: str) -> Plan:
    from vmae.core.errors import InputError
    from vmae.experiments.sweeps import definitions, driver
    from vmae.experiments.sweeps.spec import Plan

    if resume in definitions.ALL:
        name, resume = resume, LATEST
    if resume != LATEST:
        return Plan.load(driver.find_sweep(store, resume))
    found = [s for s in store.layout.all_sweeps() if name is None or Plan.load(s).sweep == name]
    if not found:
        raise InputError(
            f"--resume: expected a sweep{f' of {name}' if name else ''} in {store.layout.sweeps}; found none"
        )
    return Plan.load(max(found, key=lambda s: s.plan.stat().st_mtime))


def _gpus(asked: float | None) -> float:
    if asked is not None:
        return asked
    import torch

    return 1.0 if torch.cuda.is_available() else 0.0


def _params(
    definition: Definition | None, base: ExperimentConfig, values: str | None, texts: tuple[str, ...]
) -> list[Param]:
    """What varies: the named sweep's field (with other values, if given), then the fields of --param."""
    from vmae.core.errors import InputError
    from vmae.experiments.sweeps.space import Param, parse_params, typed_values

    given = list(parse_params(texts, base))
    if definition is None:
        if values is not None:
            raise InputError("--values: expected the name of a sweep whose field takes them, got none")
        return given
    if any(p.path == definition.path for p in given):
        if values is not None:
            raise InputError(f"expected --values or --param for {definition.path}, got both")
        return given
    chosen = definition.values if values is None else typed_values(definition.path, values, base)
    return [Param(path=definition.path, choices=tuple(chosen)), *given]
