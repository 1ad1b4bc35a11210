"""A sweep's figures, the same for the command line, MLflow and the dashboard."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from vmae.experiments.sweeps.spec import Plan
from vmae.experiments.sweeps.status import DONE, Group, TrialState, groups, winner

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLUE, _GREY, _ORANGE = "#1f6feb", "#6e7781", "#bc4c00"


def save_figures(plan: Plan, states: list[TrialState], folder: Path) -> list[Path]:
    """Write the sweep's figures as PNG into its folder; returns the files (none without a finished trial)."""
    found = groups(states)
    if not any(not g.baseline for g in found):
        return []
    path = folder / f"{plan.sweep}.png"
    figure = ranking_figure(plan, states)
    figure.savefig(path, dpi=150)
    return [path]


def ranking_figure(plan: Plan, states: list[TrialState]) -> Figure:
    """The ranking metric against the swept value: mean and spread over seeds, single seeds as dots, the
    baseline and chance as lines, the winner marked."""
    from matplotlib.figure import Figure

    metric = plan.metric
    found = groups(states)
    ranked = [g for g in found if not g.baseline and metric in g.mean]
    best = winner(found, metric)
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    x = list(range(len(ranked)))
    y = [g.mean[metric] for g in ranked]
    spread = [0.0 if math.isnan(g.spread[metric]) else g.spread[metric] for g in ranked]
    if any(g.seeds > 1 for g in ranked):
        axes.errorbar(
            x, y, yerr=spread, color=_BLUE, marker="o", capsize=4, label="mean ± standard deviation", zorder=3
        )
        for position, group in zip(x, ranked, strict=True):
            points = _seed_values(states, group, metric)
            axes.scatter([position] * len(points), points, s=14, color=_BLUE, alpha=0.35, zorder=2)
    else:
        axes.plot(x, y, color=_BLUE, marker="o", label="pre-trained", zorder=3)
    lines: list[tuple[float, str, str, str]] = []
    baseline = next((g for g in found if g.baseline and metric in g.mean), None)
    if baseline is not None:
        lines.append((baseline.mean[metric], "same network, random weights", _ORANGE, "--"))
    chance = _chance(ranked)
    if chance is not None:
        lines.append((chance, "chance", _GREY, ":"))
    for height, label, colour, style in lines:
        axes.axhline(height, color=colour, linestyle=style, label=f"{label} ({height:.1%})", zorder=1)
    if best is not None:
        index = ranked.index(best)
        axes.annotate(
            f"best: {best.label}\n{y[index]:.1%}",
            (x[index], y[index]),
            textcoords="offset points",
            xytext=(0, 10),
            ha="center",
            fontsize=9,
            color=_BLUE,
        )
    heights = [a + b for a, b in zip(y, spread, strict=True)] + [h for h, *_ in lines]
    axes.set_ylim(0, max(heights) * 1.25)
    axes.set_xticks(x, [g.label for g in ranked])
    if len(ranked) > 1:
        axes.set_xlim(-0.4, len(ranked) - 0.6)
    axes.set_xlabel(", ".join(plan.params).replace("mask.ratio", "mask ratio"))
    axes.set_ylabel(_METRIC_TITLES.get(metric, metric))
    axes.yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    axes.set_title(plan.title, loc="left", fontsize=11)
    axes.grid(axis="y", color="#d0d7de", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    return figure


_METRIC_TITLES = {
    "probe/top1": "probe accuracy on held-out videos",
    "finetune/top1": "accuracy on held-out videos, fine-tuned",
}


def _seed_values(states: list[TrialState], group: Group, metric: str) -> list[float]:
    return [
        s.metrics[metric]
        for s in states
        if s.status == DONE and not s.trial.baseline and s.trial.overrides == group.overrides
    ]


def _chance(ranked: list[Group]) -> float | None:
    return next((v for g in ranked for k, v in g.mean.items() if k.endswith("/chance")), None)
