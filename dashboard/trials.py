"""A sweep's trials as rows, for tables and figures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from vmae.experiments import stages
from vmae.experiments.runs import Run
from vmae.experiments.stages.stage import Metric
from vmae.experiments.tracking import tags

OURS = "ours"

CURVES = tuple(f"{job}/{name}" for job in stages.JOBS for name in ("step_loss", "loss"))
"""The first of these that a run has is its learning curve."""


def curve_index(names: list[str]) -> int:
    """Where the usual learning curve stands in a list of metrics; without one an accuracy, or what is not the
    machine's."""
    scores = [n for n in names if stages.metric(n).score]
    own = [n for n in names if not n.startswith("system/")]
    return names.index(next(n for n in (*CURVES, *scores, *own, *names) if n in names))


def training_loss(run: Run) -> float | None:
    """The last training loss of a run, whichever stage it ended in."""
    return next((run.metrics[c] for c in CURVES[1::2] if c in run.metrics), None)


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """One trial: what was varied, how it went."""

    run: Run
    value: str
    """The swept value, or several as `name=value`; `random weights` for the baseline."""
    order: float
    """Place on the axis: the number where the value is one."""
    seed: str
    baseline: bool
    score: float | None


def swept_fields(parent: Run, trials: list[Run]) -> list[str]:
    """The parameters that a sweep varies: as its parent run says, or those that differ between trials."""
    said = parent.params.get("sweep.params", "")
    fields = [f.strip() for f in said.split(",") if f.strip()]
    if fields:
        return fields
    names = sorted({n for t in trials for n in t.params} - {"train.seed", "name"})
    return [n for n in names if len({t.params.get(n) for t in trials}) > 1]


def trial_rows(parent: Run, trials: list[Run]) -> list[TrialRow]:
    """Trials of a sweep in the order of their values, the baseline last."""
    fields = swept_fields(parent, trials)
    metric = stages.ranked_by(parent.tags).name
    rows = []
    for number, run in enumerate(trials):
        baseline = run.tags.get(tags.BASELINE) == "true"
        values = [_plain(run.params.get(f, "")) for f in fields]
        text = (
            values[0]
            if len(values) == 1
            else ", ".join(f"{f.rpartition('.')[2]}={v}" for f, v in zip(fields, values, strict=True))
        )
        rows.append(
            TrialRow(
                run=run,
                value="random weights" if baseline else text or run.name,
                order=_number(values[0])
                if len(values) == 1 and _number(values[0]) is not None
                else float(number),  # type: ignore[arg-type]
                seed=run.params.get("train.seed", "0"),
                baseline=baseline,
                score=run.metrics.get(metric),
            )
        )
    return sorted(rows, key=lambda r: (r.baseline, r.order))


def reference_lines(rows: list[TrialRow], metric: Metric) -> dict[str, float]:
    """Heights to compare a sweep with: the same network with random weights, and chance."""
    lines: dict[str, float] = {}
    scratch = [r.score for r in rows if r.baseline and r.score is not None]
    if scratch:
        lines["random weights"] = sum(scratch) / len(scratch)
    known = (r.run.metrics[metric.chance] for r in rows if metric.chance in r.run.metrics)
    chance = next(known, None)
    if chance is not None:
        lines["chance"] = chance
    return lines


def published_rows(definition: str) -> list[dict[str, Any]]:
    """The paper's table for a named sweep: value, data set, score in [0, 1]; empty where there is none."""
    from vmae.experiments.sweeps.definitions import ALL

    make = ALL.get(definition)
    if make is None:
        return []
    names = {"ssv2": "Something-Something V2", "k400": "Kinetics-400"}
    return [
        {
            "value": value,
            "order": float(i),
            "run": column,
            "name": names.get(column, column),
            "score": score / 100,
        }
        for i, (value, columns) in enumerate(make().published.items())
        for column, score in columns.items()
    ]


def beside_published(rows: list[TrialRow], published: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Our curve (means over seeds) and the published ones as points of one figure, see `charts.beside`.

    Values of both stand on one axis in the order of their numbers, ours first where they are words.
    """
    curves: dict[str, dict[str, float]] = {}
    places: dict[str, float] = {}
    for row in rows:
        if row.score is not None and not row.baseline:
            curves.setdefault(OURS, {})
            places.setdefault(row.value, row.order)
    for value in places:
        scores = [r.score for r in rows if r.value == value and r.score is not None and not r.baseline]
        curves[OURS][value] = sum(scores) / len(scores)
    for point in published:
        value = str(point["value"])
        curves.setdefault(f"published: {point['name']}", {})[value] = point["score"]
        number = _number(value)
        places.setdefault(value, number if number is not None else 1e6 + point["order"])
    return [
        {
            "name": name,
            "value": value,
            "order": places[value],
            "score": score,
            "below": 100 * (score - max(curve.values())),
        }
        for name, curve in curves.items()
        for value, score in curve.items()
    ]


def _plain(text: str) -> str:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
