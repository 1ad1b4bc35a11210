"""`vmae sweep`: many trials that differ in one thing, ranked by what matters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmae.cli.options import in_runs_dir
from vmae.cli.sweep_options import SweepOptions, sweep_options
from vmae.cli.training import cache_progress, make_demo_data_if_used

if TYPE_CHECKING:
    from vmae.experiments.cluster import Ahead
    from vmae.experiments.sweeps.spec import Plan
    from vmae.experiments.tracking import Store


@click.command()
@click.argument("name", required=False)
@sweep_options
def sweep(name: str | None, options: SweepOptions) -> None:
    """Run the named sweep NAME, for example `vmae sweep masking_ratio`, or vary any field with --param.

    Without --data it runs on the built-in data set (made in data/demo if it is not there), sized for a CPU.
    With --data and no recipe each trial is pre-trained as `vmae recommend --for pretrain` says.
    Trials are ranked by their last stage (a probe) on held-out videos, never by their own training loss; a
    winner is named where videos and seeds tell it from every other setting.
    Every trial is tracked in MLflow; an interrupted sweep goes on with --resume.
    """
    from vmae.core.errors import InputError
    from vmae.experiments.sweeps import definitions

    if options.list_them:
        _list()
        return
    ahead = None
    if options.resume is None:
        if name is not None:
            definitions.get(name)  # refused before Ray starts
        elif not options.param_texts:
            raise InputError("expected the name of a sweep (see `vmae sweep --list`) or --param, got neither")
        if not options.stage_texts:
            ahead = _ray_ahead(options.address, (options.cpus or 1) * (options.workers_per_trial or 1))

    # From here on torch is imported, while Ray's processes start.
    from vmae.experiments.registry import check_model_name
    from vmae.experiments.sweeps import driver

    if options.model_name is not None:
        check_model_name(options.model_name)
    store = driver.open_store(options.runs_dir)
    if options.resume is not None:
        plan = options.plan_to_resume(store, name)
    else:
        plan = options.plan(store, name)
        make_demo_data_if_used(plan.base)
    run(plan, store, options.model_name, ahead)


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


def equal_epochs_line(plan: Plan) -> str:
    """How long each setting trains at equal cost: `equal flops: 0.5: 21 epochs, 0.9: 42 epochs`."""
    from vmae.experiments.sweeps.status import label_of

    epochs = {label_of(t): t.config(plan.base).train.epochs for t in plan.trials if not t.baseline}
    return f"equal {plan.equal}: " + ", ".join(f"{label} {count} epochs" for label, count in epochs.items())


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
        with driver.freed_unless_begun(store, plan.name):
            check_place(plan)
        with (
            driver.freed_unless_begun(store, plan.name),
            ray_ahead(plan) if ahead is None else nullcontext(ahead) as ray_start,
        ):
            with cache_progress("decode") as progress:
                prepare(plan, store, progress)
            click.echo(
                f"sweep {plan.name} ({plan.title}): {plan.expected_trials} trials "
                f"in {store.shown(store.layout.sweep(plan.name).path)}",
                err=True,
            )
            if plan.equal != "epochs":
                click.echo(equal_epochs_line(plan), err=True)
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
        from vmae.experiments.sweeps.status import label_of
        from vmae.experiments.sweeps.verdict import judge

        best, version = register_best(store, plan, states, model_name)
        say_registered(store, best.name, model_name, version)
        several = len({label_of(s.trial) for s in states if not s.trial.baseline}) > 1
        found = judge(plan, states, store.layout.sweep(plan.name))
        if found is not None and found.winner is None and several:
            click.echo("it has the highest mean and is not told apart from the rest (above)")
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
