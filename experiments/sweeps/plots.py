"""A sweep's figures, the same for the command line, MLflow and the dashboard."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmae.experiments import stages
from vmae.experiments.comparison import Curve, curves_figure
from vmae.experiments.layout import SweepDir
from vmae.experiments.stages.stage import Metric
from vmae.experiments.sweeps.space import task_fields
from vmae.experiments.sweeps.spec import Plan, Trial
from vmae.experiments.sweeps.status import DONE, Group, TrialState, groups, winner
from vmae.experiments.tracking import spooled_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _GREY, _ORANGE = "#1f6feb", "#6e7781", "#bc4c00"
_GRID = "#d0d7de"


def save_figures(plan: Plan, states: list[TrialState], sweep: SweepDir) -> list[Path]:
    """Write the sweep's figures as PNG into its folder; returns the files (none without a finished trial).

    `<sweep>.png`: the ranking metric against the swept value; `<sweep>-curves.png`: learning curves;
    `<sweep>-parallel.png`: parallel coordinates, where several fields are swept.
    """
    if not any(not g.baseline and plan.metric in g.mean for g in groups(states)):
        return []
    figures: dict[str, Figure | None] = {
        "": ranking_figure(plan, states),
        "-curves": learning_curves_figure(plan, states, sweep),
        "-parallel": parallel_figure(plan, states) if len(plan.params) > 1 else None,
    }
    paths = []
    for suffix, figure in figures.items():
        if figure is not None:
            paths.append(sweep.figure(f"{plan.sweep}{suffix}"))
            figure.savefig(paths[-1], dpi=150)
    return paths


def ranking_figure(plan: Plan, states: list[TrialState]) -> Figure:
    """The ranking metric against each swept field: mean and standard deviation over seeds, single seeds as
    dots, the baseline and chance as lines, the winner marked.

    Numbers stand on a numeric axis in the order of their value (logarithmic where they span a factor of 20),
    anything else as categories in the plan's order. With several fields each has a panel, in which a point is
    one setting of all of them.
    """
    from matplotlib.figure import Figure

    found = groups(states)
    ranked = [g for g in found if not g.baseline and plan.metric in g.mean]
    columns = min(3, len(plan.params))
    rows = -(-len(plan.params) // columns)
    size = (7.0, 4.4) if len(plan.params) == 1 else (4.4 * columns, 3.6 * rows + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for number, (ax, param) in enumerate(zip(axes, plan.params, strict=False)):
        _ranking_panel(ax, plan, param, ranked, states)
        if number % columns == 0:
            ax.set_ylabel(plan.ranked_by.label)
        _reference_lines(ax, plan.ranked_by, found)
        _style(ax, plan.ranked_by)
    for ax in axes[len(plan.params) :]:
        ax.set_visible(False)
    top = max([*_heights(plan.ranked_by, found, states), 1e-9])
    for ax in axes if plan.ranked_by.percent else ():
        ax.set_ylim(0, top * 1.18)
    figure.suptitle(plan.title, x=0.01, ha="left", fontsize=11)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False, fontsize=8.5)
    return figure


def learning_curves_figure(plan: Plan, states: list[TrialState], sweep: SweepDir) -> Figure | None:
    """Every trial's curves of loss and accuracy, by epoch, read from the trials' own files; None without one.

    Trials that differ in their seed alone share a colour; numbers are coloured from low to high.
    """
    named: dict[str, list[Curve]] = {}
    for state in states:
        if state.trial.baseline:
            continue
        for metric, points in spooled_metrics(sweep.trial(state.trial.id).spool).items():
            finite = [(s, v) for s, v in points if math.isfinite(v)]
            if stages.metric(metric).curve and len(finite) > 1:
                named.setdefault(metric, []).append(Curve(label=_short_label(state.trial), points=finite))
    if not named:
        return None
    order = {s.trial.id: s.trial.overrides for s in states if not s.trial.baseline}
    scale = _Scale.of([next(iter(o.values())) for o in order.values()]) if len(plan.params) == 1 else None
    colours = {}
    if scale is not None and scale.numeric:
        for overrides in order.values():
            value = next(iter(overrides.values()))
            colours[_text(value)] = _viridis(scale.share(value))
    # Sorted by value, so that the legend reads from low to high.
    sort = {label: number for number, label in enumerate(_labels_in_order(plan, states))}
    panels = [
        (metric, sorted(found, key=lambda c: sort.get(c.label, 0))) for metric, found in sorted(named.items())
    ]
    figure = curves_figure(panels, colours=colours, legend_title=_names(plan))
    changed = task_fields(plan.params)
    if changed and any(not stages.metric(name).comparable for name in named):
        figure.suptitle(
            f"what the pre-training loss measures depends on {', '.join(changed)}: its height does not rank",
            x=0.01,
            ha="left",
            fontsize=9,
            color=_GREY,
        )
    return figure


def parallel_figure(plan: Plan, states: list[TrialState]) -> Figure | None:
    """One vertical axis for each swept field and one for the metric, one line for each setting, coloured by
    the metric, the winner thick; None without a finished trial."""
    from matplotlib.figure import Figure

    found = groups(states)
    ranked = sorted(
        (g for g in found if not g.baseline and plan.metric in g.mean),
        key=lambda g: plan.ranked_by.score_of(g.mean[plan.metric]),
    )
    if not ranked:
        return None
    best = winner(found, plan.ranked_by)
    scales = [_Scale.of([g.overrides[p] for g in ranked]) for p in plan.params]
    scales.append(_Scale.of([g.mean[plan.metric] for g in ranked], linear=True))
    figure = Figure(figsize=(1.9 * len(scales) + 1.6, 4.4), layout="constrained")
    ax = figure.subplots()
    for group in ranked:
        values = [*(group.overrides[p] for p in plan.params), group.mean[plan.metric]]
        heights = [s.share(v) for s, v in zip(scales, values, strict=True)]
        is_best = group is best
        ax.plot(
            range(len(scales)),
            heights,
            color=_viridis(heights[-1]),
            linewidth=3.0 if is_best else 1.2,
            alpha=1.0 if is_best else 0.7,
            marker="o",
            markersize=5 if is_best else 3,
            zorder=3 if is_best else 2,
        )
    for x, scale in enumerate(scales):
        ax.axvline(x, color=_GREY, linewidth=1, zorder=1)
        last = x == len(scales) - 1
        for value in scale.ticks():
            text = plan.ranked_by.text(value) if last else _text(value)
            ax.annotate(
                text,
                (x, scale.share(value)),
                textcoords="offset points",
                xytext=(6 if last else -6, 0),
                ha="left" if last else "right",
                va="center",
                fontsize=8,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
                zorder=4,
            )
    ax.set_xticks(range(len(scales)), [*plan.params, plan.metric], fontsize=9)
    ax.set_yticks([])
    ax.set_xlim(-0.6, len(scales) - 0.4)
    ax.set_ylim(-0.06, 1.06)
    ax.spines[["top", "right", "left", "bottom"]].set_visible(False)
    ax.tick_params(length=0)
    ax.set_title(f"{plan.title}: the thick line is the best", loc="left", fontsize=11)
    return figure


@dataclass(frozen=True)
class _Scale:
    """Where a field's values stand on an axis from 0 to 1: by value, by its logarithm, or as categories."""

    values: tuple[Any, ...]
    numeric: bool
    log: bool

    @classmethod
    def of(cls, values: Sequence[Any], *, linear: bool = False) -> _Scale:
        numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        if not numeric:
            return cls(tuple(dict.fromkeys(map(_text, values))), False, False)
        different = tuple(sorted(set(values)))
        log = not linear and different[0] > 0 and different[-1] / different[0] >= 20
        return cls(different, True, log)

    def place(self, value: Any) -> float:
        """The coordinate on a matplotlib axis (which takes the logarithm itself)."""
        return float(value) if self.numeric else float(self.values.index(_text(value)))

    def share(self, value: Any) -> float:
        """0 at the lowest value (the first category), 1 at the highest; one half where there is one."""
        low, high = self.place(self.values[0]), self.place(self.values[-1])
        at = self.place(value)
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return 0.5 if high == low else (at - low) / (high - low)

    def ticks(self, most: int = 8) -> tuple[Any, ...]:
        """The values themselves, or the ends and the middle where there are many."""
        if len(self.values) <= most:
            return self.values
        return (self.values[0], self.values[len(self.values) // 2], self.values[-1])


def _ranking_panel(ax: Axes, plan: Plan, param: str, ranked: list[Group], states: list[TrialState]) -> None:
    metric = plan.metric
    scale = _Scale.of([g.overrides[param] for g in ranked])
    ordered = sorted(ranked, key=lambda g: scale.place(g.overrides[param]))
    x = [scale.place(g.overrides[param]) for g in ordered]
    y = [g.mean[metric] for g in ordered]
    spread = [0.0 if math.isnan(g.spread[metric]) else g.spread[metric] for g in ordered]
    # A line joins values of one field; with others varying too, or many draws, it would join noise.
    joined = len(plan.params) == 1 and len(x) <= 12 and scale.numeric
    style = {"color": _BLUE, "marker": "o", "linestyle": "-" if joined else "none", "zorder": 3}
    if any(g.seeds > 1 for g in ordered):
        ax.errorbar(x, y, yerr=spread, capsize=4, label="mean ± std of seeds", **style)  # type: ignore[arg-type]
        for place, group in zip(x, ordered, strict=True):
            points = _seed_values(states, group, metric)
            ax.scatter([place] * len(points), points, s=14, color=_BLUE, alpha=0.35, zorder=2)
    else:
        ax.plot(x, y, label="pre-trained, one seed", **style)  # type: ignore[arg-type]
    best = winner(ordered, plan.ranked_by)
    if best is not None:
        index = ordered.index(best)
        ax.annotate(
            f"best: {_text(best.overrides[param])}\n{plan.ranked_by.text(y[index])}",
            (x[index], y[index] + spread[index]),
            textcoords="offset points",
            xytext=(0, 7),
            # At the left edge it would lie on the axis' numbers.
            ha="left" if x[index] == min(x) < max(x) else "center",
            fontsize=9,
            color=_BLUE,
        )
    if scale.log:
        ax.set_xscale("log")
        ax.minorticks_off()
    ticks = scale.ticks(10)
    ax.set_xticks([scale.place(t) for t in ticks], [_text(t) for t in ticks])
    low, high = scale.place(scale.values[0]), scale.place(scale.values[-1])
    if not scale.numeric:
        ax.set_xlim(low - 0.5, high + 0.5)
    elif scale.log:
        ax.set_xlim(low / (high / low) ** 0.08, high * (high / low) ** 0.08)
    elif high > low:
        ax.set_xlim(low - 0.1 * (high - low), high + 0.1 * (high - low))
    ax.set_xlabel(param)


def _reference_lines(ax: Axes, metric: Metric, found: list[Group]) -> None:
    baseline = next((g for g in found if g.baseline and metric.name in g.mean), None)
    if baseline is not None:
        height, spread = baseline.mean[metric.name], baseline.spread[metric.name]
        label = f"{stages.baseline_of(metric)} ({metric.text(height)})"
        ax.axhline(height, color=_ORANGE, linestyle="--", zorder=1, label=label)
        if not math.isnan(spread):
            ax.axhspan(height - spread, height + spread, color=_ORANGE, alpha=0.12, linewidth=0, zorder=0)
    chance = _chance(metric, found)
    if chance is not None:
        label = f"chance ({metric.text(chance)})"
        ax.axhline(chance, color=_GREY, linestyle=":", zorder=1, label=label)


def _style(ax: Axes, metric: Metric) -> None:
    ax.yaxis.set_major_formatter(lambda v, _: metric.tick(v))
    ax.grid(axis="y", color=_GRID, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _heights(metric: Metric, found: list[Group], states: list[TrialState]) -> list[float]:
    """Everything that a ranking panel must have room for."""
    name = metric.name
    ranked = [g for g in found if name in g.mean]
    tops = [g.mean[name] + (0.0 if g.seeds == 1 else g.spread[name]) for g in ranked]
    chance = _chance(metric, found)
    singles = [s.metrics[name] for s in states if name in s.metrics]
    return [*tops, *singles, *([] if chance is None else [chance])]


def _seed_values(states: list[TrialState], group: Group, metric: str) -> list[float]:
    return [
        s.metrics[metric]
        for s in states
        if s.status == DONE
        and not s.trial.baseline
        and s.trial.overrides == group.overrides
        and metric in s.metrics
    ]


def _chance(metric: Metric, found: list[Group]) -> float | None:
    """The value of guessing, where the metric has one."""
    return next((g.mean[metric.chance] for g in found if metric.chance in g.mean), None)


def _labels_in_order(plan: Plan, states: list[TrialState]) -> list[str]:
    """Trial labels, low values first where one number is swept, else in the plan's order."""
    trials = [s.trial for s in states if not s.trial.baseline]
    if len(plan.params) == 1 and trials:
        scale = _Scale.of([next(iter(t.overrides.values())) for t in trials])
        trials.sort(key=lambda t: scale.place(next(iter(t.overrides.values()))))
    return list(dict.fromkeys(map(_short_label, trials)))


def _short_label(trial: Trial) -> str:
    """The trial's values alone: the legend's title names the fields."""
    return ", ".join(_text(v) for v in trial.overrides.values())


def _names(plan: Plan) -> str:
    return ", ".join(plan.params)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _viridis(share: float) -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"](0.9 * share)  # its bright end is hard to see on white
