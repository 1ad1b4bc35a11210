"""The pictures of `docs/results`: accuracies with intervals by setting, monitors against the probe."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vmae.experiments.comparison import COLOURS
from vmae.experiments.results.questions import SETS, Question
from vmae.experiments.results.ranks import Points, Rank
from vmae.experiments.results.table import SweepTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _GREY, _ORANGE, _GREEN = "#1f6feb", "#6e7781", "#bc4c00", "#1a7f37"
_GRID = "#d0d7de"
_DPI = 130
_SHOWN = {"ssv2": "SSv2", "k400": "Kinetics-400"}


def save(figure: Figure, path: Path) -> None:
    """As PNG; the same figure gives the same bytes."""
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})


def question_figure(question: Question, tables: Mapping[str, SweepTable]) -> Figure:
    """A panel for each set: a setting's accuracy with its interval, single seeds as dots, the network with
    random weights and chance as lines; and one of the paper's numbers, where it has some."""
    from matplotlib.figure import Figure

    published = question.published
    panels = len(tables) + bool(published)
    most = max(len(t.settings) for t in tables.values())
    figure = Figure(figsize=(max(3.4, 1.0 + 0.72 * most) * panels, 3.5), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for ax, (name, table) in zip(axes, tables.items(), strict=False):
        _measured(ax, question, table)
        ax.set_title(
            name if name not in SETS else SETS[name].title.partition(":")[0], loc="left", fontsize=10
        )
    if published:
        _published(axes[-1], published)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower left", ncols=4, frameon=False, fontsize=8)
    return figure


def _measured(ax: Axes, question: Question, table: SweepTable) -> None:
    shown = [i for i, s in enumerate(table.settings) if not s.baseline]
    for place, i in enumerate(shown):
        answers = table.answers(i)
        found = answers.interval()
        error = [[100 * (found.mean - found.low)], [100 * (found.high - found.mean)]]
        colour = _BLUE
        if question.versus and str(table.settings[i].overrides.get(question.versus)) == "True":
            colour = _GREY
        first = place == 0
        ax.errorbar(
            [place], [100 * found.mean], yerr=error, color=colour, marker="o", markersize=6, capsize=4,
            linestyle="none", zorder=3, label="mean, 95% interval" if first else None,
        )  # fmt: skip
        each = 100 * answers.table().mean(1)
        if len(each) > 1:
            spread = np.linspace(-0.13, 0.13, len(each))
            ax.scatter(place + 0.24 + spread * 0.5, each, s=13, color=colour, alpha=0.45, linewidth=0,
                       zorder=2, label="each seed" if first else None)  # fmt: skip
    _lines(ax, table)
    labels = [
        textwrap.fill(question.called(table.settings[i].overrides), 12, break_on_hyphens=False) for i in shown
    ]
    ax.set_xticks(range(len(shown)), labels, fontsize=8)
    ax.set_xlim(-0.5, len(shown) - 0.25)
    ax.set_ylim(bottom=0)
    if not question.words:  # which say it in every label
        ax.set_xlabel(", ".join(table.settings[shown[0]].overrides), fontsize=9)
    ax.set_ylabel(f"{table.metric.title}, %", fontsize=9)
    _plain(ax)


def _lines(ax: Axes, table: SweepTable) -> None:
    """Random weights with their interval, and chance."""
    if table.baseline is not None:
        found = table.answers(table.baseline).interval()
        ax.axhline(100 * found.mean, color=_ORANGE, linestyle="--", linewidth=1.2, label="random weights")
        ax.axhspan(100 * found.low, 100 * found.high, color=_ORANGE, alpha=0.1, linewidth=0)
    if table.chance == table.chance:
        ax.axhline(100 * table.chance, color=_GREY, linestyle=":", linewidth=1.2, label="chance")


def _published(ax: Axes, published: Mapping[str, Mapping[str, float]]) -> None:
    """The paper's numbers, each data set from its own lowest: the shape is what can be compared."""
    columns = list(dict.fromkeys(c for row in published.values() for c in row))
    for number, column in enumerate(columns):
        x = [i for i, row in enumerate(published.values()) if column in row]
        y = [row[column] for row in published.values() if column in row]
        ax.plot(x, y, marker="s", markersize=5, color=COLOURS[number + 2], linestyle="-", linewidth=1)
        ax.annotate(_SHOWN.get(column, column), (x[-1], y[-1]), xytext=(7, 0), textcoords="offset points",
                    fontsize=8, color=COLOURS[number + 2], va="center")  # fmt: skip
    ax.set_xticks(range(len(published)), list(published), fontsize=8)
    ax.set_xlim(-0.4, len(published) + 0.1)
    ax.margins(y=0.25)
    ax.set_ylabel("top-1, %", fontsize=9)
    ax.set_title("the paper", loc="left", fontsize=10)
    _plain(ax)


def monitors_figure(points: Mapping[str, Points], ranks: Mapping[str, Sequence[Rank]]) -> Figure:
    """A row a set, a panel a monitor: its value against the probe's accuracy, a dot a pre-training."""
    from matplotlib.figure import Figure

    columns = max(len(r) for r in ranks.values())
    first = next(iter(ranks.values()))  # whose order all rows have
    figure = Figure(figsize=(2.7 * columns, 2.9 * len(points)), layout="constrained")
    axes = figure.subplots(len(points), columns, squeeze=False)
    for row, (on, found) in zip(axes, points.items(), strict=True):
        names = list(dict.fromkeys(found.questions))
        by_name = {r.name: r for r in ranks[on]}
        shown = [by_name.pop(r.name) for r in first if r.name in by_name]
        for ax, rank in zip(row, [*shown, *by_name.values()], strict=False):
            for number, name in enumerate(names):
                chosen = [i for i, q in enumerate(found.questions) if q == name]
                ax.scatter(
                    [found.monitors[rank.name][i] for i in chosen],
                    [100 * found.accuracy[i] for i in chosen],
                    s=16, alpha=0.75, linewidth=0, color=COLOURS[number % len(COLOURS)], label=name,
                )  # fmt: skip
            ax.set_title(f"{rank.title}\n{rank.text()}", loc="left", fontsize=8.5)
            _plain(ax)
        for ax in row[len(ranks[on]) :]:
            ax.set_visible(False)
        row[0].set_ylabel(f"{on}: probe, %", fontsize=9)
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower left", ncols=8, frameon=False, fontsize=8)
    return figure


def _plain(ax: Axes) -> None:
    ax.grid(axis="y", color=_GRID, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(axis="y", labelsize=8)
    ax.tick_params(axis="x", labelsize=8)
