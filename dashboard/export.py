"""Keeping what is on the screen: PNG, GIF, MP4 and a link that restores it."""

from __future__ import annotations

import functools
import re

import numpy as np
import streamlit as st

from vmae.core.measure.films import film, film_rows
from vmae.core.model.videomae import VideoMAE
from vmae.dashboard import viewer
from vmae.dashboard.state import ViewState, to_query


def make(kind: str, model: VideoMAE, frames: np.ndarray, *, mask: str, form: str, fps: float) -> bytes:
    """The file's bytes; `kind` is png, gif or mp4."""
    return film(kind, film_rows(viewer.reconstruct_clip(model, frames, mask), [form]), fps)


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
