"""The two things the browser does by itself: a player of pictures in step, and the viewer built on it.

Both are plain HTML, CSS and JavaScript beside this file, without a build step and without a call to the
outside. The data they get are JSON; `version` tells the browser whether anything changed.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

from vmae.dashboard import render

_HERE = Path(__file__).parent


def _read(*names: str) -> str:
    return "\n".join((_HERE / name).read_text() for name in names)


@functools.cache
def _viewer() -> Any:
    return st.components.v2.component(
        "vmae_viewer",
        html=_read("viewer.html"),
        css=_read("player.css", "viewer.css"),
        js=_read("player.js", "viewer.js"),
    )


@functools.cache
def _player() -> Any:
    return st.components.v2.component(
        "vmae_player",
        html=_read("player.html"),
        css=_read("player.css"),
        js=_read("player.js")
        + "\nexport default function (component) { return mount(Player, component); }\n",
    )


def show_viewer(data: dict[str, Any], *, key: str, on_mask: Callable[[], None]) -> None:
    """Mount the viewer; `on_mask` is called after a stroke of the brush (see `viewer.stroke_mask`)."""
    _viewer()(key=key, data=data, on_mask_change=on_mask)


def show_player(data: dict[str, Any], *, key: str, on_pick: Callable[[], None] | None = None) -> None:
    """Mount a player; `on_pick` is called after a click on a clickable panel (see `picked`)."""
    _player()(key=key, data=data, on_pick_change=on_pick or _nothing)


def player_data(
    panels: Sequence[tuple[str, str, str, bool]],
    *,
    shape: tuple[int, int, int],
    fps: float,
    per_row: int,
    indices: np.ndarray | None = None,
    start: int = 0,
    cells: tuple[int, int] = (1, 1),
) -> dict[str, Any]:
    """What a player gets.

    Args:
        panels: (title, note, sprite sheet, clickable) of each picture.
        shape: frames, height and width of every sheet.
        fps: frames a second at speed 1.
        per_row: panels side by side.
        indices: frame numbers in the file, shown beside the frame.
        start: the frame shown first.
        cells: columns and rows that a clickable panel is chosen from with the keyboard.
    """
    frames, height, width = shape
    return with_version(
        {
            "frames": frames,
            "height": height,
            "width": width,
            "columns": render.sheet_columns(frames, width),
            "fps": fps,
            "perRow": per_row,
            "start": start,
            "cells": list(cells),
            "indices": None if indices is None else [int(i) for i in indices],
            "panels": [{"title": t, "note": n, "sheet": s, "clickable": c} for t, n, s, c in panels],
        }
    )


def with_version(data: dict[str, Any]) -> dict[str, Any]:
    """The data with a digest of themselves."""
    return {**data, "version": hashlib.sha256(repr(data).encode()).hexdigest()[:16]}


def picked(value: Any, panels: int) -> tuple[int, float, float, int] | None:
    """(panel, x, y in [0, 1), frame) of a click as the browser sent it; None for anything that is not one."""
    if not isinstance(value, dict):
        return None
    panel, x, y, frame = (value.get(k) for k in ("panel", "x", "y", "frame"))
    if not isinstance(panel, int) or not isinstance(frame, int) or not 0 <= panel < panels or frame < 0:
        return None
    if not all(isinstance(v, int | float) and 0 <= v < 1 for v in (x, y)):
        return None
    return panel, float(x), float(y), frame  # type: ignore[arg-type]


def _nothing() -> None:
    pass
