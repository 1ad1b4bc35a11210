"""`vmae sweeps`: sweeps that were run or are running, read from their folders, from any shell."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmae.cli.lazy import LazyGroup, Verbs
from vmae.cli.options import in_runs_dir, runs_dir_option

if TYPE_CHECKING:
    from vmae.experiments.layout import SweepDir
    from vmae.experiments.sweeps.spec import Plan
    from vmae.experiments.sweeps.status import TrialState

VERBS: Verbs = {
    "list": ("vmae.cli.sweeps", "list_", "List the sweeps of a run directory."),
    "status": ("vmae.cli.sweeps", "status", "Where a sweep is: trials, numbers, time left."),
    "cka": ("vmae.cli.sweeps_cka", "cka", "How alike what its trials have learnt is."),
}


@click.group(cls=LazyGroup, verbs=VERBS)
def sweeps() -> None:
    """Look at sweeps while they run and afterwards."""


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@runs_dir_option
def list_(as_json: bool, runs_dir: Path | None) -> None:
    """List sweeps, the latest first."""
    from vmae.cli.tables import format_table
    from vmae.experiments.sweeps import driver
    from vmae.experiments.sweeps.spec import Plan
    from vmae.experiments.sweeps.status import groups, trial_states, winner

    store = driver.open_store(runs_dir, "reader")
    entries: list[dict[str, object]] = []
    rows: list[list[str]] = []
    for sweep, plan in driver.all_plans(store):
        if not isinstance(plan, Plan):
            entries.append({"name": sweep.name, "state": "damaged", "error": str(plan)})
            rows.append([sweep.name, "damaged", *["-"] * 4])
            click.echo(f"warning: {plan}", err=True)
            continue
        states = trial_states(plan, sweep)
        counts = _counts(states)
        state = _state(states, sweep)
        best = winner(groups(states), plan.ranked_by)
        value = best.mean[plan.metric] if best else None
        entries.append(
            {
                "name": plan.name,
                "sweep": plan.sweep,
                "state": state,
                "trials": len(states),
                **counts,
                "metric": plan.metric,
                "best": best.label if best else None,
                "best_value": value,
            }
        )
        done = f"{counts['done']} of {len(states)}"
        rows.append(
            [
                plan.name,
                state,
                done,
                str(counts["failed"]),
                best.label if best else "-",
                plan.ranked_by.text(value),
            ]
        )
    if as_json:
        click.echo(json.dumps(entries, indent=1))
    elif not entries:
        where = store.shown(store.layout.sweeps)
        click.echo(f"no sweeps yet in {where}; start one with `vmae sweep masking_ratio`")
    else:
        click.echo(format_table(["sweep", "state", "done", "failed", "best", "metric"], rows, left=2))


@click.command()
@click.argument("name")
@click.option("--watch", is_flag=True, help="Show it again every two seconds until it ends (Ctrl-C leaves).")
@click.option("--json", "as_json", is_flag=True, help="As JSON, once.")
@runs_dir_option
def status(name: str, watch: bool, as_json: bool, runs_dir: Path | None) -> None:
    """Show where sweep NAME is. It only reads: the sweep itself is not disturbed."""
    from vmae.experiments.sweeps import driver
    from vmae.experiments.sweeps.spec import Plan
    from vmae.experiments.sweeps.status import trial_states

    store = driver.open_store(runs_dir, "reader")
    sweep = driver.find_sweep(store, name)
    plan = Plan.load(sweep)
    if as_json:
        click.echo(json.dumps(_as_json(plan, trial_states(plan, sweep), sweep), indent=1))
        return
    while True:
        plan = Plan.load(sweep)  # a search adds trials as it goes
        states = trial_states(plan, sweep)
        state = _state(states, sweep)
        if watch:
            click.clear()
        click.echo(_text(plan, states, state, in_runs_dir(store)))
        if not watch or state != "running":
            return
        time.sleep(2.0)
        driver.open_store(runs_dir, "reader")  # of an object store: what is there now


def _counts(states: list[TrialState]) -> dict[str, int]:
    kinds = ("done", "running", "failed", "pending")
    return {kind: sum(s.status == kind for s in states) for kind in kinds}


def _state(states: list[TrialState], sweep: SweepDir) -> str:
    """`done`, `failed`, `running`, or `stopped` where trials are left and no driver is there."""
    from vmae.experiments.sweeps.status import is_running

    counts = _counts(states)
    if counts["done"] == len(states):
        return "done"
    if is_running(sweep):
        return "running"
    return "failed" if counts["done"] + counts["failed"] == len(states) else "stopped"


def _text(plan: Plan, states: list[TrialState], state: str, where: str) -> str:
    from vmae.cli.tables import format_table
    from vmae.core.progress import format_duration
    from vmae.experiments.sweeps.status import label_of, time_left_s

    counts = _counts(states)
    line = f"{plan.name} ({plan.title}): {state}; " + ", ".join(f"{v} {k}" for k, v in counts.items() if v)
    left = time_left_s(states, max(1, counts["running"])) if state == "running" else None
    if left is not None:
        line += f"; about {format_duration(left)} left"
    columns = plan.columns()
    rows = [
        [
            label_of(s.trial),
            str(s.trial.seed),
            s.stage if s.status == "running" else s.status,
            f"{s.fraction:.0%}",
            *(m.text(s.metrics.get(m.name)) for m in columns),
            format_duration(s.seconds) if s.seconds else "-",
        ]
        for s in states
    ]
    header = ["trial", "seed", "state", "", *(m.heading(plan.base) for m in columns), "time"]
    lines = [line, "", format_table(header, rows)]
    lines += [f"failed: {s.trial.id}: {s.error}" for s in states if s.error]
    if state in ("stopped", "failed"):
        lines.append(f"go on with: vmae sweep --resume {plan.name}{where}")
    return "\n".join(lines)


def _as_json(plan: Plan, states: list[TrialState], sweep: SweepDir) -> dict[str, object]:
    return {
        "name": plan.name,
        "sweep": plan.sweep,
        "metric": plan.metric,
        "state": _state(states, sweep),
        **_counts(states),
        "trials": [
            {
                "id": s.trial.id,
                "overrides": s.trial.overrides,
                "seed": s.trial.seed,
                "baseline": s.trial.baseline,
                "status": s.status,
                "stage": s.stage,
                "fraction": s.fraction,
                "seconds": s.seconds,
                "metrics": s.metrics,
                "error": s.error,
            }
            for s in states
        ],
    }
