"""Several runs side by side: what differs, what came of it, and the curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmae.core.errors import InputError, nearest
from vmae.experiments import stages
from vmae.experiments.runs import Run, history
from vmae.experiments.tracking import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#1f6feb", "#bc4c00", "#1a7f37", "#8250df", "#bf3989", "#9a6700", "#0e7490", "#6e7781")
"""Eight colours that stay apart on white; with more curves they repeat with another dash."""
DASHES = ("-", "--", ":", "-.")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One run's values of a metric: (step, value) in the order of steps."""

    label: str
    points: list[tuple[int, float]]


def labels(runs: Sequence[Run]) -> list[str]:
    """A run's name, with the start of its id where two of the runs share one."""
    names = [r.name for r in runs]
    return [r.name if names.count(r.name) == 1 else f"{r.name} {r.run_id[:8]}" for r in runs]


def differing_params(runs: Sequence[Run]) -> list[tuple[str, list[str | None]]]:
    """The parameters that are not the same in all runs: (name, one value for each run), by name."""
    names = sorted({k for r in runs for k in r.params} - {"name"})
    rows = [(k, [r.params.get(k) for r in runs]) for k in names]
    return [(k, values) for k, values in rows if len(set(values)) > 1]


def metric_rows(runs: Sequence[Run], *, system: bool = False) -> list[tuple[str, list[float | None]]]:
    """The latest value of every metric that some run has, by name; the machine's only with `system`."""
    names = sorted({k for r in runs for k in r.metrics if system or not k.startswith("system/")})
    return [(k, [r.metrics.get(k) for r in runs]) for k in names]


def curves(store: Store, runs: Sequence[Run], metric: str) -> list[Curve]:
    """The runs' curves of a metric; runs without it, or with non-finite values only, are left out.

    Raises:
        InputError: no run has the metric; names the nearest that one has.
    """
    known = sorted({m for r in runs for m in r.metrics})
    if metric not in known:
        raise InputError(
            f"expected a metric that one of the runs has, got '{metric}'{nearest(metric, known)}"
        )
    found = []
    for run, label in zip(runs, labels(runs), strict=True):
        points = history(store, run.run_id, metric) if metric in run.metrics else []
        finite = [(s, v) for s, v in points if math.isfinite(v)]
        if finite:
            found.append(Curve(label=label, points=finite))
    return found


def curve_metrics(store: Store, runs: Sequence[Run]) -> list[str]:
    """The metrics worth a curve: losses and accuracies with at least two points in some run."""
    names = sorted({m for r in runs for m in r.metrics if stages.metric(m).curve})
    return [
        name
        for name in names
        if any(len(history(store, r.run_id, name)) > 1 for r in runs if name in r.metrics)
    ]


def curves_figure(
    panels: Sequence[tuple[str, Sequence[Curve]]],
    *,
    colours: Mapping[str, Any] | None = None,
    legend_title: str | None = None,
) -> Figure:
    """One panel for each metric, the same colour for the same label in all of them.

    `colours` gives labels their colour; the others get one of COLOURS.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    order = list(dict.fromkeys(c.label for _, found in panels for c in found))
    figure = Figure(figsize=(6.4 * columns, 3.8 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for ax, (metric, found) in zip(axes, panels, strict=False):
        for curve in found:
            index = order.index(curve.label)
            ax.plot(
                [s for s, _ in curve.points],
                [v for _, v in curve.points],
                color=(colours or {}).get(curve.label, COLOURS[index % len(COLOURS)]),
                linestyle="-" if colours else DASHES[index // len(COLOURS) % len(DASHES)],
                linewidth=1.5,
                marker="o" if len(curve.points) < 2 else None,
                label=curve.label,
            )
        ax.set_title(metric, loc="left", fontsize=11)
        ax.set_xlabel(step_name(metric))
        ax.grid(color="#d0d7de", linewidth=0.6)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    if 1 < len(order) <= 20:
        handles = {h.get_label(): h for ax in axes for h in ax.get_lines()}
        figure.legend(
            handles=[handles[label] for label in order],
            loc="outside lower center",
            ncols=min(6, max(1, 90 * columns // (8 + max(map(len, order))))),
            frameon=False,
            fontsize=9,
            title=legend_title,
            title_fontsize=9,
        )
    return figure


def step_name(metric: str) -> str:
    """What a metric's steps count."""
    if metric.startswith("system/"):
        return "seconds"
    word = metric.rpartition("/")[2]
    per_step = word.startswith("step_") or word in ("lr", "grad_norm", "data_wait_share", "peak_mem_gib")
    return "optimiser step" if per_step else "epoch"
