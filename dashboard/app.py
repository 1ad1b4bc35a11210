"""The Streamlit script that `vmae dashboard` runs: pages and navigation, nothing else."""

from __future__ import annotations

import streamlit as st

from vmae.dashboard import page_reconstruct
from vmae.dashboard.frame import guarded, page_frame

PAGES = [
    st.Page(guarded(page_reconstruct.page), title="Reconstruct", icon=":material/grid_on:", default=True),
]

page_frame()
st.navigation(PAGES, position="top").run()
