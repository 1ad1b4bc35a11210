"""Keeping what is on the screen: PNG, GIF, MP4 and a link that restores it."""

from __future__ import annotations

import functools
import re

import numpy as np
import streamlit as st

from vmae.core.measure.reconstruct import to_rgb
from vmae.core.model.videomae import VideoMAE
from vmae.dashboard import render, viewer
from vmae.dashboard.state import ViewState, to_query

TARGET_PIXELS = 192
"""Pictures of small models are enlarged to about this height, by whole factors."""


def rows(model: VideoMAE, frames: np.ndarray, mask: str, form: str) -> list[tuple[str, np.ndarray]]:
    """(label, uint8 [T, H, W, 3]) of the pictures that are kept; the labels say what each one uses."""
    made = viewer.reconstruct_clip(model, frames, mask)
    picture = getattr(made, form)[0]
    short = "as trained (true patch statistics)" if form == "as_trained" else "model only"
    if made.target == "raw":
        short = "predicted pixels"
    return [
        ("original", to_rgb(made.original[0])),
        ("encoder sees", to_rgb(made.masked_input[0])),
        (short, to_rgb(picture)),
        (f"error 0..{render.ERROR_MAX:g}", render.error_map(made.original[0], picture)),
    ]


def scale_for(height: int) -> int:
    """Whole factor that brings small pictures near TARGET_PIXELS."""
    return max(1, round(TARGET_PIXELS / height))


def make(kind: str, model: VideoMAE, frames: np.ndarray, *, mask: str, form: str, fps: float) -> bytes:
    """The file's bytes; `kind` is png, gif or mp4."""
    pictures = rows(model, frames, mask, form)
    scale = scale_for(model.grid.height)
    if kind == "png":
        return render.png_bytes(pictures, scale=max(1, scale // 2))
    side = render.side_by_side(pictures, scale=scale)
    return render.gif_bytes(side, fps) if kind == "gif" else render.mp4_bytes(side, fps)


def controls(model: VideoMAE, frames: np.ndarray, mask: str, view: ViewState, fps: float) -> None:
    """The export row; files are made when they are asked for."""
    name = re.sub(
        r"[^\w.-]+", "_", f"vmae_{view.checkpoint}_clip{view.clip}_{view.mask}{view.ratio:g}_s{view.seed}"
    )
    kinds = {"png": "image/png", "gif": "image/gif", "mp4": "video/mp4"}
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.caption("Keep it:", width="content")
        for kind, mime in kinds.items():
            st.download_button(
                kind.upper(),
                functools.partial(make, kind, model, frames, mask=mask, form=view.form, fps=fps),
                file_name=f"{name}.{kind}",
                mime=mime,
                key=f"export_{kind}",
                on_click="ignore",
                icon=":material/download:",
            )
        with st.popover("Link", icon=":material/link:"):
            st.caption(
                "Opens this view again, for everyone who reaches this dashboard (uploads are not kept)."
            )
            st.code(link(view), language=None, wrap_lines=True)


def link(view: ViewState) -> str:
    """The address of this view."""
    from urllib.parse import urlencode

    base = (st.context.url or "").partition("?")[0]
    return f"{base}?{urlencode(to_query(view))}"
