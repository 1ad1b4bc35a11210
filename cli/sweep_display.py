"""How a running and a finished sweep are shown: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

import click

from vmae.cli.options import in_runs_dir
from vmae.cli.tables import format_table, number
from vmae.core.progress import format_duration
from vmae.experiments import stages
from vmae.experiments.stages.pretrain import LOSS
from vmae.experiments.stages.stage import Metric
from vmae.experiments.sweeps.spec import Plan
from vmae.experiments.sweeps.status import (
    DONE,
    FAILED,
    PENDING,
    RUNNING,
    Group,
    TrialState,
    groups,
    label_of,
    time_left_s,
    winner,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vmae.experiments.tracking import Store

_LINES_EVERY_S = 10.0


class Display:
    """Shows trial states about once a second; use as a context manager."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.start = time.monotonic()
        self._finished: set[str] = set()
        self._line_at = 0.0
        self._live = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), refresh_per_second=4, transient=True)

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, states: list[TrialState]) -> None:
        """Draw the table, or print a line every ten seconds and one for each trial that ends."""
        if self._live is not None:
            self._live.update(self._table(states))
            return
        for state in states:
            if state.status in (DONE, FAILED) and state.trial.id not in self._finished:
                self._finished.add(state.trial.id)
                click.echo(f"  {state.trial.id}: {_outcome(state, self.plan.ranked_by)}", err=True)
        if time.monotonic() - self._line_at >= _LINES_EVERY_S:
            self._line_at = time.monotonic()
            click.echo(self._headline(states), err=True)

    def _headline(self, states: list[TrialState]) -> str:
        done = sum(s.status == DONE for s in states)
        left = time_left_s(states, max(1, sum(s.status == RUNNING for s in states)))
        since = format_duration(time.monotonic() - self.start)
        parts = [
            f"[{since}] {done} of {self._expected(states)} trials done",
            f"about {format_duration(left)} left" if left is not None else "time left: not known yet",
        ]
        parts += [
            f"{label_of(s.trial)}: {s.stage} {s.fraction:.0%}" + _loss(s)
            for s in states
            if s.status == RUNNING
        ]
        return "; ".join(parts)

    def _expected(self, states: list[TrialState]) -> int:
        return max(len(states), self.plan.expected_trials)  # a search makes trials as it goes

    def _table(self, states: list[TrialState]) -> RenderableType:
        from rich.console import Group as Lines
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        shown = self.plan.columns()
        headings = [m.heading(self.plan.base) for m in shown]
        for title in ("trial", "seed", "", "stage", *headings, "time"):
            justify = "left" if title in ("trial", "", "stage") else "right"
            table.add_column(title, justify=justify)  # type: ignore[arg-type]
        colours = {DONE: "green", FAILED: "red", RUNNING: "cyan", PENDING: "bright_black"}
        for s in states:
            table.add_row(
                label_of(s.trial),
                str(s.trial.seed),
                ProgressBar(total=1.0, completed=s.fraction, width=24),
                Text(s.stage or s.status, style=colours[s.status]),
                *(m.text(s.metrics.get(m.name)) for m in shown),
                format_duration(s.seconds) if s.seconds else "-",
            )
        return Lines(table, Text(self._headline(states).split("; ")[0] + _left(states), style="dim"))


def _left(states: list[TrialState]) -> str:
    left = time_left_s(states, max(1, sum(s.status == RUNNING for s in states)))
    return f"; about {format_duration(left)} left" if left is not None else ""


def _loss(state: TrialState) -> str:
    loss = stages.metric(f"{state.stage}/loss")
    return f", loss {loss.text(state.metrics[loss.name])}" if loss.name in state.metrics else ""


def _outcome(state: TrialState, metric: Metric) -> str:
    if state.status == FAILED:
        return f"failed: {state.error}"
    parts = [f"{metric.name.partition('/')[0]} {metric.text(state.metrics.get(metric.name))}"]
    if state.stopped:
        parts = ["stopped early"]
    if LOSS.name in state.metrics:
        parts.append(f"loss {LOSS.text(state.metrics[LOSS.name])}")
    parts.append(format_duration(state.seconds))
    return ", ".join(parts)


def results_table(plan: Plan, found: list[Group]) -> str:
    """The sweep's result: one row for each value, mean and spread over seeds."""
    seeds = max((g.seeds for g in found), default=1)
    title = plan.params[0].rpartition(".")[2] if len(plan.params) == 1 else "values"
    shown = plan.columns()
    header = [title, *(_heading(m, plan) for m in shown), "minutes"]
    epochs = {label_of(t): str(t.config(plan.base).train.epochs) for t in plan.trials if not t.baseline}
    if plan.equal != "epochs":
        header.insert(1, "epochs")
    if seeds > 1:
        header.insert(1, "seeds")
    rows = []
    for g in found:
        row = [
            g.label,
            *([epochs.get(g.label, "-")] if plan.equal != "epochs" else []),
            *(m.text(g.mean.get(m.name), g.spread.get(m.name)) for m in shown),
            number(g.minutes, 1),
        ]
        if seeds > 1:
            row.insert(1, str(g.seeds))
        rows.append(row)
    return format_table(header, rows)


def _heading(metric: Metric, plan: Plan) -> str:
    """What ranks trials of equal cost says so: beside it stands what they have after equal epochs."""
    text = metric.heading(plan.base)
    return f"{text}, equal {plan.equal}" if metric == plan.ranked_by and plan.equal != "epochs" else text


def comparison_table(plan: Plan, states: list[TrialState], found: list[Group]) -> str:
    """Paired differences over seeds: each value to the best (the best to the second) and to the baseline."""
    from vmae.experiments.sweeps.compare import Difference, compare

    metric = plan.ranked_by

    def text(d: Difference | None) -> str:
        if d is None:
            return "-"
        change = metric.difference(d.mean, d.error if d.seeds > 1 else math.nan)
        return f"{change} ({d.higher} of {d.seeds} higher)"

    found_differences = compare(states, found, metric)
    rows = []
    for group in found:
        c = found_differences[group.label]
        rows.append([group.label, c.rival or "-", text(c.to_rival), text(c.to_baseline)])
    unit = "percentage points" if metric.percent else metric.title
    header = ["at the same seeds", "against", unit, "against random weights"]
    return format_table(header, rows, left=2)


def report(plan: Plan, states: list[TrialState], store: Store) -> None:
    """Print the table, what it shows, the figure's path and what to type next."""
    from vmae.experiments.sweeps.verdict import interval_of, judge

    found = groups(states)
    click.echo()
    click.echo(results_table(plan, found))
    metric = plan.ranked_by
    best = winner(found, metric)
    if best is None:
        return
    if plan.seeds > 1:
        click.echo()
        click.echo(comparison_table(plan, states, found))
    stopped = sum(s.stopped for s in states)
    if stopped and plan.stopping is not None:
        click.echo(f"\n{stopped} trials were stopped early by {plan.stopping.rule} ({plan.stopping.metric})")
    click.echo()
    value = best.mean[metric.name]
    what = f"{plan.params[0]} = {best.label}" if len(plan.params) == 1 else best.label
    home = store.layout.sweep(plan.name)
    number = interval_of(best.label, states, home)
    if number is None:
        measured = f"{metric.text(value)} {metric.where or metric.title}"
    else:
        measured = f"{number.text()} on {number.videos} held-out videos"
    line = f"best mean: {what}, {measured}"
    facts = []
    chance = best.mean.get(metric.chance)
    if chance:
        facts.append(f"{value / chance:.1f}x chance ({metric.text(chance)})")
    baseline = next((g for g in found if g.baseline and metric.name in g.mean), None)
    if baseline is not None:
        height = metric.text(baseline.mean[metric.name])
        facts.append(f"the same network with random weights has {height}")
    click.echo("; ".join([line, *facts]))
    _say_agreement(states, metric)
    said = judge(plan, states, home)
    if said is not None:
        click.echo("\n".join([said.line, *said.warnings]))
    click.echo(f"figure: {store.shown(home.figure(plan.sweep))}")
    click.echo("\nnext:")
    click.echo(f"  vmae runs list --sweep {plan.name}{in_runs_dir(store)}")
    click.echo(f"  vmae dashboard{'' if store.remote else in_runs_dir(store)}")


def _say_agreement(states: list[TrialState], metric: Metric) -> None:
    """How well the monitors of pre-training order the trials, where there are enough of them."""
    from vmae.experiments.sweeps.agreement import agreements

    found = agreements(states, metric)
    if found:
        click.echo(
            f"rank correlation with {metric.title} over {found[0].trials} trials: "
            + "; ".join(a.text() for a in found)
        )
