"""Curves as text, for terminals: braille dots, two by four to a character."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

Points = Sequence[tuple[float, float]]
_BITS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # [column][row] of a braille cell
_COLOURS = ("blue", "yellow", "green", "magenta", "cyan", "red", "white", "bright_black")


def plot(curves: Sequence[tuple[str, Points]], *, width: int = 72, height: int = 12) -> str:
    """Lines of text that show the curves, their range on the left and a legend below.

    Each curve has a colour (click drops it where the output is no terminal). Values must be finite.
    """
    import click

    xs = [x for _, points in curves for x, _ in points]
    ys = [y for _, points in curves for _, y in points]
    x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
    if y1 == y0:
        y0, y1 = y0 - 0.5, y1 + 0.5
    cells = [[0] * width for _ in range(height)]
    owners = [[0] * width for _ in range(height)]
    for number, (_, points) in enumerate(curves):
        for column, row in _dots(points, (x0, x1), (y0, y1), width * 2, height * 4):
            cells[row // 4][column // 2] |= _BITS[column % 2][row % 4]
            owners[row // 4][column // 2] = number
    names = [f"{y1:.4g}", f"{y0:.4g}"]
    margin = max(len(n) for n in names)
    lines = []
    for row in range(height):
        name = names[0] if row == 0 else names[1] if row == height - 1 else ""
        text = "".join(
            click.style(chr(0x2800 + bits), fg=_COLOURS[owner % len(_COLOURS)]) if bits else " "
            for bits, owner in zip(cells[row], owners[row], strict=True)
        )
        lines.append(f"{name.rjust(margin)} |{text}")
    lines.append(" " * margin + " +" + "-" * width)
    lines.append(" " * (margin + 2) + f"{x0:g}".ljust(width - len(f"{x1:g}")) + f"{x1:g}")
    legend = [
        click.style("━ ", fg=_COLOURS[i % len(_COLOURS)]) + f"{label}: {points[-1][1]:.4g}"
        for i, (label, points) in enumerate(curves)
    ]
    return "\n".join([*lines, *(" " * (margin + 2) + entry for entry in legend)])


def _dots(
    points: Points, xr: tuple[float, float], yr: tuple[float, float], columns: int, rows: int
) -> list[tuple[int, int]]:
    """The dots of a line through the points, as (column, row) with row 0 at the top."""
    span = (xr[1] - xr[0]) or 1.0

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x = (point[0] - xr[0]) / span * (columns - 1)
        return x, (yr[1] - point[1]) / (yr[1] - yr[0]) * (rows - 1)

    places = [place(p) for p in points]
    dots = [(round(x), round(y)) for x, y in places[:1]]
    for (xa, ya), (xb, yb) in pairwise(places):
        steps = max(1, math.ceil(max(abs(xb - xa), abs(yb - ya))))
        for i in range(1, steps + 1):
            dots.append((round(xa + (xb - xa) * i / steps), round(ya + (yb - ya) * i / steps)))
    return dots
