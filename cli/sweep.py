"""`vmae sweep`: many trials that differ in one thing, ranked by what matters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vmae.cli.options import runs_dir_option, set_option
from vmae.cli.training import cache_progress, config_options, make_demo_data_if_used, resolve_config

if TYPE_CHECKING:
    from vmae.experiments.config import ExperimentConfig
    from vmae.experiments.sweeps.spec import Definition, Plan
    from vmae.experiments.tracking import Store

LATEST = "(latest)"


@click.command()
@click.argument("name", required=False)
@click.option("--list", "list_them", is_flag=True, help="Show the named sweeps there are.")
@click.option("--values", help="Values to try instead of the sweep's own, for example 0.5,0.75,0.9,0.95.")
@config_options
@click.option(
    "--seeds", type=int, default=1, show_default=True, help="Repeat every trial with this many seeds."
)
@click.option("--cpus", type=float, help="CPU cores per trial.  [default: 1]")
@click.option(
    "--gpus", type=float, help="GPUs per trial, may be a fraction.  [default: 1 where there is one]"
)
@click.option("--max-concurrent", type=int, help="Trials at a time.  [default: what the machine holds]")
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
    max_concurrent: int | None,
    run_name: str | None,
    resume: str | None,
    assignments: tuple[str, ...],
    runs_dir: Path | None,
) -> None:
    """Run the named sweep NAME, for example `vmae sweep masking_ratio`.

    Without --data it runs on the built-in data set (made in data/demo if it is not there), sized for a CPU.
    Trials are ranked by a probe on held-out videos, never by their own training loss. Every trial is tracked
    in MLflow; an interrupted sweep goes on with --resume.
    """
    from vmae.core.errors import InputError
    from vmae.experiments.sweeps import definitions, driver
    from vmae.experiments.tracking import store_at

    if list_them:
        _list()
        return
    store = store_at(runs_dir)
    if resume is not None:
        plan = _plan_to_resume(store, name, resume)
        plan = driver.with_resources(plan, cpus, gpus, max_concurrent)
    else:
        if name is None:
            raise InputError("expected the name of a sweep (see `vmae sweep --list`), got none")
        definition = definitions.get(name)
        base = resolve_config(
            recipe=recipe,
            config_file=config_file,
            train_csv=train_csv,
            val_csv=val_csv,
            data_root=data_root,
            size=size,
            epochs=epochs,
            assignments=assignments,
        )
        make_demo_data_if_used(base)
        plan = _new_plan(definition, base, store, values, seeds, cpus, _gpus(gpus), max_concurrent, run_name)
    run(plan, store)


def run(plan: Plan, store: Store) -> None:
    """Prepare, run and report a plan; exit code 1 when a trial failed, 130 when interrupted."""
    from vmae.cli.sweep_display import Display, report
    from vmae.experiments.sweeps import driver
    from vmae.experiments.sweeps.status import FAILED

    try:
        with cache_progress("decode") as progress:
            driver.prepare(plan, store, progress)
        click.echo(
            f"sweep {plan.name} ({plan.title}): {len(plan.trials)} trials "
            f"in {driver.sweeps_dir(store) / plan.name}",
            err=True,
        )
        with Display(plan) as display:
            states = driver.run_sweep(plan, store, display.show)
    except KeyboardInterrupt:
        if not (driver.sweeps_dir(store) / plan.name / "plan.json").exists():
            raise
        click.echo(
            f"\ninterrupted: finished trials are kept. Go on with: vmae sweep --resume {plan.name}", err=True
        )
        raise SystemExit(130) from None
    report(plan, states, store)
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
    plans = [p.parent for p in driver.sweeps_dir(store).glob("*/plan.json")]
    plans = [p for p in plans if name is None or Plan.load(p).sweep == name]
    if not plans:
        raise InputError(
            f"--resume: expected a sweep{f' of {name}' if name else ''} in {driver.sweeps_dir(store)}; "
            "found none"
        )
    return Plan.load(max(plans, key=lambda p: (p / "plan.json").stat().st_mtime))


def _gpus(asked: float | None) -> float:
    if asked is not None:
        return asked
    import torch

    return 1.0 if torch.cuda.is_available() else 0.0


def _new_plan(
    definition: Definition,
    base: ExperimentConfig,
    store: Store,
    values: str | None,
    seeds: int,
    cpus: float | None,
    gpus: float,
    max_concurrent: int | None,
    run_name: str | None,
) -> Plan:
    from vmae.core.errors import InputError
    from vmae.experiments.sweeps import driver
    from vmae.experiments.sweeps.spec import make_plan

    chosen: list[Any] = list(definition.values)
    if values is not None:
        chosen = [v.strip() for v in values.split(",") if v.strip()]
        chosen = [_typed(base, definition.path, v) for v in chosen]
    name = run_name or driver.new_name(store, definition.name)
    if (driver.sweeps_dir(store) / name / "plan.json").exists():
        raise InputError(
            f"--run-name: expected a new name, got '{name}', which exists; go on with it by --resume {name}"
        )
    return make_plan(
        name=name,
        sweep=definition.name,
        title=definition.title,
        space={definition.path: chosen},
        metric=definition.metric,
        base=base,
        seeds=seeds,
        cpus_per_trial=1.0 if cpus is None else cpus,
        gpus_per_trial=gpus,
        max_concurrent=max_concurrent,
    )


def _typed(base: ExperimentConfig, path: str, text: str) -> Any:
    """A value from the command line, read by its field's type."""
    from vmae.core.config import flatten, override

    return flatten(override(base, {path: text}))[path]
