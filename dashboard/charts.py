"""Figures as Vega-Lite specifications (Streamlit draws them in the page's own colours, light and dark)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

BLUE, ORANGE, GREY = "#2f81f7", "#e8590c", "#8b949e"
Rows = Sequence[dict[str, Any]]


def thin(points: list[tuple[int, float]], most: int = 400) -> list[tuple[int, float]]:
    """At most about `most` points of a curve, its last one among them."""
    every = -(-len(points) // most) or 1
    return [*points[:-1:every], points[-1]] if points else []


def ranking(rows: Rows, *, field: str, metric: str, lines: dict[str, float], percent: bool) -> dict[str, Any]:
    """A sweep's metric against the swept value: mean, spread over seeds, every seed, reference lines.

    `rows` have `value` (text), `order`, `score`, `seed`; `lines` are named heights (chance, random weights).
    """
    x = {
        "field": "value",
        "type": "ordinal",
        "sort": {"field": "order"},
        "title": field,
        "axis": {"labelAngle": 0},
    }
    y_format = ".0%" if percent else ".3~g"
    # In two lines: one is longer than the axis is high.
    title = [part if n == 0 else f"on {part}" for n, part in enumerate(metric.split(" on ", 1))]
    y = {"type": "quantitative", "title": title, "axis": {"format": y_format}, "scale": {"zero": percent}}
    tooltip = [
        {"field": "value", "title": field},
        {"field": "score", "title": metric, "format": ".1%" if percent else ".4~g"},
        {"field": "seed", "title": "seed"},
    ]
    layers: list[dict[str, Any]] = [
        {
            "data": {
                "values": [{"name": f"{k} ({v:.1%})" if percent else k, "y": v} for k, v in lines.items()]
            },
            "mark": {"type": "rule", "strokeDash": [6, 4], "strokeWidth": 1.5},
            "encoding": {
                "y": {"field": "y", "type": "quantitative"},
                "color": {
                    "field": "name",
                    "type": "nominal",
                    "scale": {"range": [ORANGE, GREY, "#8250df"]},
                    "legend": {"title": None, "orient": "bottom", "symbolStrokeWidth": 2},
                },
            },
        },
        {
            "mark": {"type": "errorbar", "extent": "stdev", "ticks": {"size": 12}, "color": BLUE},
            "encoding": {"x": x, "y": {**y, "field": "score"}},
        },
        {
            "mark": {"type": "line", "color": BLUE, "point": {"size": 70, "color": BLUE}},
            "encoding": {"x": x, "y": {**y, "field": "score", "aggregate": "mean"}},
        },
        {
            "mark": {"type": "circle", "size": 34, "opacity": 0.45, "color": BLUE},
            "encoding": {"x": x, "y": {**y, "field": "score"}, "tooltip": tooltip},
        },
    ]
    return {
        "data": {"values": list(rows)},
        "layer": layers if lines else layers[1:],
        "resolve": {"scale": {"color": "independent"}},
        "height": 320,
    }


def curves(rows: Rows, *, colour: str, x: str, y: str, log: bool = False) -> dict[str, Any]:
    """Lines over steps, one for each `run`, coloured by `name`; rows have run, name, step, score."""
    return {
        "data": {"values": list(rows)},
        "mark": {"type": "line", "strokeWidth": 1.8, "interpolate": "linear"},
        "encoding": {
            "x": {
                "field": "step",
                "type": "quantitative",
                "title": x,
                "axis": {"grid": False, "tickMinStep": 1},
            },
            "y": {
                "field": "score",
                "type": "quantitative",
                "title": y,
                "scale": {"zero": False, "type": "log" if log else "linear"},
            },
            "color": {
                "field": "name",
                "type": "nominal",
                "title": colour,
                "sort": None,
                "legend": {"orient": "bottom"},
            },
            "detail": {"field": "run"},
            "tooltip": [{"field": "name"}, {"field": "step"}, {"field": "score", "format": ".4~g"}],
        },
        "height": 320,
    }


def beside(rows: Rows, *, field: str) -> dict[str, Any]:
    """Curves of different data on one scale: how far each value is below its own curve's best.

    Rows have value, order, name (the curve), below (in points, 0 or less) and score in [0, 1].
    """
    return {
        "data": {"values": list(rows)},
        "mark": {"type": "line", "strokeWidth": 2, "point": {"size": 60}},
        "encoding": {
            "x": {
                "field": "value",
                "type": "ordinal",
                "sort": {"field": "order", "op": "min"},
                "title": field,
                "axis": {"labelAngle": 0},
            },
            "y": {"field": "below", "type": "quantitative", "title": "points below own best"},
            "color": {
                "field": "name",
                "type": "nominal",
                "title": None,
                "sort": None,
                "scale": {"range": [BLUE, ORANGE, GREY]},
                "legend": {"orient": "bottom", "labelLimit": 260},
            },
            "tooltip": [
                {"field": "name", "title": "curve"},
                {"field": "value", "title": field},
                {"field": "score", "title": "top-1", "format": ".1%"},
                {"field": "below", "title": "below its best", "format": ".1f"},
            ],
        },
        "height": 280,
    }


def parallel(rows: Rows, *, columns: Sequence[str], colour: str) -> dict[str, Any]:
    """Parallel coordinates: one line a trial, every column scaled to its own range.

    Rows have `trial`, `score` (the colour) and the columns' numbers.
    """
    return {
        "data": {"values": list(rows)},
        "transform": [
            {"fold": list(columns), "as": ["column", "raw"]},
            {"filter": "isValid(datum.raw)"},
            {
                "joinaggregate": [
                    {"op": "min", "field": "raw", "as": "low"},
                    {"op": "max", "field": "raw", "as": "high"},
                ],
                "groupby": ["column"],
            },
            {
                "calculate": "datum.high > datum.low"
                " ? (datum.raw - datum.low) / (datum.high - datum.low) : 0.5",
                "as": "place",
            },
        ],
        "height": 280,
        "layer": [
            {
                "mark": {"type": "line", "opacity": 0.75, "strokeWidth": 2, "point": {"size": 40}},
                "encoding": {
                    "x": {
                        "field": "column",
                        "type": "nominal",
                        "sort": list(columns),
                        "title": None,
                        "axis": {"labelAngle": 0, "domain": False, "grid": True, "labelLimit": 130},
                        "scale": {"type": "point", "padding": 0.25},
                    },
                    "y": {"field": "place", "type": "quantitative", "axis": None},
                    "detail": {"field": "trial"},
                    "color": {
                        "field": "score",
                        "type": "quantitative",
                        "title": colour,
                        "scale": {"scheme": "viridis"},
                        "legend": {"orient": "right", "gradientLength": 160},
                    },
                    "tooltip": [
                        {"field": "trial"},
                        {"field": "column"},
                        {"field": "raw", "title": "value", "format": ".4~g"},
                        {"field": "score", "title": colour, "format": ".4~g"},
                    ],
                },
            },
            *[
                {
                    "transform": [
                        {"aggregate": [{"op": op, "field": "raw", "as": f"end_{op}"}], "groupby": ["column"]}
                    ],
                    "mark": {"type": "text", "fontSize": 10, "color": GREY, "dy": dy},
                    "encoding": {
                        "x": {"field": "column", "type": "nominal", "sort": list(columns)},
                        "y": {"datum": place},
                        "text": {"field": f"end_{op}", "format": ".3~g"},
                    },
                }
                for op, place, dy in (("min", 0, 12), ("max", 1, -12))
            ],
        ],
    }


def bars(rows: Rows, *, x: str, y: str) -> dict[str, Any]:
    """Counts by name; rows have name and count."""
    return {
        "data": {"values": list(rows)},
        "mark": {"type": "bar", "color": BLUE, "cornerRadiusEnd": 2},
        "encoding": {
            "x": {
                "field": "name",
                "type": "nominal",
                "title": x,
                "sort": None,
                "axis": {"labelAngle": -35, "labelOverlap": False},
            },
            "y": {"field": "count", "type": "quantitative", "title": y, "axis": {"tickMinStep": 1}},
            "tooltip": [{"field": "name"}, {"field": "count"}],
        },
        "height": 240,
    }


def scatter(rows: Rows, *, title: str) -> dict[str, Any]:
    """Points coloured by class; rows have x, y, name, label (tooltip) and chosen."""
    return {
        "data": {"values": list(rows)},
        "params": [{"name": "zoom", "select": "interval", "bind": "scales"}],
        "mark": {"type": "point", "filled": True},
        "encoding": {
            "x": {"field": "x", "type": "quantitative", "axis": None, "scale": {"zero": False}},
            "y": {"field": "y", "type": "quantitative", "axis": None, "scale": {"zero": False}},
            "color": {"field": "name", "type": "nominal", "title": title, "scale": {"scheme": "category20"}},
            "size": {"condition": {"test": "datum.chosen", "value": 320}, "value": 46},
            "shape": {"condition": {"test": "datum.chosen", "value": "diamond"}, "value": "circle"},
            "opacity": {"condition": {"test": "datum.chosen", "value": 1}, "value": 0.75},
            "tooltip": [{"field": "label", "title": "clip"}, {"field": "name", "title": title}],
        },
        "height": 440,
    }


def roofline(rows: Rows, bytes_per_s: float, flop_per_s: float) -> dict[str, Any]:
    """Rates under the machine's measured roof; rows have intensity, tflops, op, kind and variant."""
    ridge = flop_per_s / bytes_per_s
    known = [r["intensity"] for r in rows] or [ridge]
    low, high = min(*known, ridge) / 2, max(*known, ridge) * 2
    roof = [{"x": x, "y": min(flop_per_s, bytes_per_s * x) / 1e12} for x in (low, ridge, high)]
    x = {"type": "quantitative", "scale": {"type": "log"}, "title": "FLOP per byte"}
    y = {"type": "quantitative", "scale": {"type": "log"}, "title": "TFLOP/s"}
    return {
        "layer": [
            {
                "data": {"values": roof},
                "mark": {"type": "line", "color": GREY, "strokeWidth": 2},
                "encoding": {"x": {**x, "field": "x"}, "y": {**y, "field": "y"}},
            },
            {
                "data": {"values": [r for r in rows if r["tflops"]]},
                "mark": {"type": "point", "filled": True, "size": 80, "opacity": 0.85},
                "encoding": {
                    "x": {**x, "field": "intensity"},
                    "y": {**y, "field": "tflops"},
                    "color": {
                        "field": "kind",
                        "type": "nominal",
                        "title": None,
                        "scale": {"domain": ["ours", "baseline"], "range": [ORANGE, GREY]},
                        "legend": {"orient": "bottom"},
                    },
                    "shape": {"field": "op", "type": "nominal", "legend": {"orient": "bottom", "columns": 3}},
                    "tooltip": [
                        {"field": "op"},
                        {"field": "what"},
                        {"field": "shape"},
                        {"field": "variant"},
                        {"field": "us", "title": "µs", "format": ".1f"},
                        {"field": "tflops", "title": "TFLOP/s", "format": ".3~g"},
                    ],
                },
            },
        ],
        "height": 380,
    }


def ratios(rows: Rows) -> dict[str, Any]:
    """Horizontal bars around 1; rows have name, shape, ratio."""
    y = {"field": "case", "type": "nominal", "sort": None, "title": None, "axis": {"labelLimit": 320}}
    return {
        "data": {"values": list(rows)},
        "transform": [{"calculate": "datum.name + '  ' + datum.shape", "as": "case"}],
        "layer": [
            {
                "mark": {"type": "bar", "cornerRadiusEnd": 2},
                "encoding": {
                    "y": y,
                    "x": {"field": "ratio", "type": "quantitative", "title": "best baseline / ours (time)"},
                    "color": {"condition": {"test": "datum.ratio >= 1", "value": ORANGE}, "value": GREY},
                    "tooltip": [{"field": "case"}, {"field": "ratio", "format": ".2f"}],
                },
            },
            {
                "mark": {"type": "text", "align": "left", "dx": 4, "color": GREY},
                "encoding": {
                    "y": y,
                    "x": {"field": "ratio", "type": "quantitative"},
                    "text": {"field": "ratio", "format": ".2f"},
                },
            },
            {"mark": {"type": "rule", "color": GREY}, "encoding": {"x": {"datum": 1}}},
        ],
        "height": {"step": 22},
    }


def confusion(rows: Rows, *, order: Sequence[str]) -> dict[str, Any]:
    """A confusion matrix whose cells can be clicked (selection `cell`): rows have label, predicted, count and
    share (of the label's); `order` is that of the classes."""
    size = max(260, min(560, 26 * len(order) + 60))
    axis = {"labelLimit": 110, "labelOverlap": False, "ticks": False, "domain": False}
    x = {"field": "predicted", "type": "nominal", "sort": list(order), "title": "predicted"}
    y = {"field": "label", "type": "nominal", "sort": list(order), "title": "label", "axis": axis}
    tooltip = [{"field": "label"}, {"field": "predicted"}, {"field": "count"}]
    layers: list[dict[str, Any]] = [
        {
            "params": [
                {
                    "name": "cell",
                    "select": {"type": "point", "fields": ["label", "predicted"], "toggle": False},
                }
            ],
            "mark": {"type": "rect", "cursor": "pointer"},
            "encoding": {
                "color": {
                    "field": "share",
                    "type": "quantitative",
                    "scale": {"domain": [0, 1], "scheme": "blues"},
                    "legend": None,
                },
                "stroke": {"condition": {"param": "cell", "empty": False, "value": ORANGE}, "value": None},
                "strokeWidth": {"value": 2.5},
                "tooltip": tooltip,
            },
        }
    ]
    if len(order) <= 30:
        layers.append(
            {
                "transform": [{"filter": "datum.count > 0"}],
                "mark": {"type": "text", "fontSize": 11},
                "encoding": {
                    "text": {"field": "count"},
                    "color": {
                        "condition": {"test": "datum.share > 0.5", "value": "white"},
                        "value": "#1f2328",
                    },
                    "tooltip": tooltip,
                },
            }
        )
    return {
        "data": {"values": list(rows)},
        "encoding": {"x": {**x, "axis": {**axis, "labelAngle": -45}}, "y": y},
        "layer": layers,
        "height": size,
    }
