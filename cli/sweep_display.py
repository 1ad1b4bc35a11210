"""How a running and a finished sweep are shown: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

import click

from vmae.cli.options import in_runs_dir
from vmae.cli.tables import format_table, number, percent
from vmae.core.progress import format_duration
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
ACCURACY = {
    "probe/top1": "probe accuracy",
    "knn/top1": "kNN accuracy",
    "finetune/top1": "fine-tuned accuracy",
}


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
                click.echo(f"  {state.trial.id}: {_outcome(state, self.plan.metric)}", err=True)
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
        for title in ("trial", "seed", "", "stage", "loss", "error", "probe", "clips/s", "time"):
            justify = "left" if title in ("trial", "", "stage") else "right"
            table.add_column(title, justify=justify)  # type: ignore[arg-type]
        colours = {DONE: "green", FAILED: "red", RUNNING: "cyan", PENDING: "bright_black"}
        for s in states:
            m = s.metrics
            table.add_row(
                label_of(s.trial),
                str(s.trial.seed),
                ProgressBar(total=1.0, completed=s.fraction, width=24),
                Text(s.stage or s.status, style=colours[s.status]),
                number(m.get("pretrain/loss")),
                number(m.get("eval/loss")),
                percent(m.get(self.plan.metric)),
                number(m.get("pretrain/clips_per_s"), 0),
                format_duration(s.seconds) if s.seconds else "-",
            )
        return Lines(table, Text(self._headline(states).split("; ")[0] + _left(states), style="dim"))


def _left(states: list[TrialState]) -> str:
    left = time_left_s(states, max(1, sum(s.status == RUNNING for s in states)))
    return f"; about {format_duration(left)} left" if left is not None else ""


def _loss(state: TrialState) -> str:
    value = state.metrics.get("pretrain/loss")
    return f", loss {value:.3f}" if value is not None and state.stage == "pretrain" else ""


def _outcome(state: TrialState, metric: str) -> str:
    if state.status == FAILED:
        return f"failed: {state.error}"
    parts = [f"{metric.partition('/')[0]} {percent(state.metrics.get(metric))}"]
    if state.stage == "stopped":
        parts = ["stopped early"]
    if "pretrain/loss" in state.metrics:
        parts.append(f"loss {number(state.metrics['pretrain/loss'])}")
    parts.append(format_duration(state.seconds))
    return ", ".join(parts)


def results_table(plan: Plan, found: list[Group]) -> str:
    """The sweep's result: one row for each value, mean and spread over seeds."""
    seeds = max((g.seeds for g in found), default=1)
    title = plan.params[0].rpartition(".")[2] if len(plan.params) == 1 else "values"
    header = [
        title,
        "pre-training loss",
        f"error at {plan.base.evaluation_ratio:g}",
        ACCURACY.get(plan.metric, plan.metric),
        "clips/s",
        "minutes",
    ]
    if seeds > 1:
        header.insert(1, "seeds")
    rows = []
    for g in found:
        row = [
            g.label,
            number(g.mean.get("pretrain/loss"), 3, g.spread.get("pretrain/loss")),
            number(g.mean.get("eval/loss"), 3, g.spread.get("eval/loss")),
            percent(g.mean.get(plan.metric), g.spread.get(plan.metric)),
            number(g.mean.get("pretrain/clips_per_s"), 0),
            number(g.minutes, 1),
        ]
        if seeds > 1:
            row.insert(1, str(g.seeds))
        rows.append(row)
    return format_table(header, rows)


def comparison_table(plan: Plan, states: list[TrialState], found: list[Group]) -> str:
    """Paired differences over seeds: each value to the best (the best to the second) and to the baseline."""
    from vmae.experiments.sweeps.compare import Difference, compare

    def text(d: Difference | None) -> str:
        if d is None:
            return "-"
        spread = f" ±{d.error * 100:.1f}" if d.seeds > 1 else ""
        return f"{d.mean * 100:+.1f}{spread} ({d.higher} of {d.seeds} higher)"

    found_differences = compare(states, found, plan.metric)
    rows = []
    for group in found:
        c = found_differences[group.label]
        rows.append([group.label, c.rival or "-", text(c.to_rival), text(c.to_baseline)])
    header = ["at the same seeds", "against", "percentage points", "against random weights"]
    return format_table(header, rows, left=2)


def report(plan: Plan, states: list[TrialState], store: Store) -> None:
    """Print the table, the winner, the figure's path and what to type next."""
    found = groups(states)
    click.echo()
    click.echo(results_table(plan, found))
    best = winner(found, plan.metric)
    if best is None:
        return
    if plan.seeds > 1:
        click.echo()
        click.echo(comparison_table(plan, states, found))
    stopped = sum(s.stage == "stopped" for s in states)
    if stopped and plan.stopping is not None:
        click.echo(f"\n{stopped} trials were stopped early by {plan.stopping.rule} ({plan.stopping.metric})")
    click.echo()
    accuracy = best.mean[plan.metric]
    what = f"{plan.params[0]} = {best.label}" if len(plan.params) == 1 else best.label
    line = f"best: {what}, {percent(accuracy)} on held-out videos"
    facts = []
    chance = best.mean.get(f"{plan.metric.partition('/')[0]}/chance")
    if chance:
        facts.append(f"{accuracy / chance:.1f}x chance ({percent(chance)})")
    baseline = next((g for g in found if g.baseline and plan.metric in g.mean), None)
    if baseline is not None:
        facts.append(f"the same network with random weights has {percent(baseline.mean[plan.metric])}")
    click.echo("; ".join([line, *facts]))
    click.echo(f"figure: {store.shown(store.layout.sweep(plan.name).figure(plan.sweep))}")
    click.echo("\nnext:")
    click.echo(f"  vmae runs list --sweep {plan.name}{in_runs_dir(store)}")
    click.echo(f"  vmae dashboard{'' if store.remote else in_runs_dir(store)}")
