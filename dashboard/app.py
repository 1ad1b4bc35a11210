"""The Streamlit script that `vmae dashboard` runs: pages and navigation, nothing else."""

from __future__ import annotations

import streamlit as st

from vmae.dashboard import page_data, page_features, page_kernels, page_reconstruct, page_runs, page_sweeps
from vmae.dashboard.frame import guarded, page_frame

PAGES = [
    st.Page(guarded(page_reconstruct.page), title="Reconstruct", icon=":material/grid_on:", default=True),
    st.Page(guarded(page_sweeps.page), title="Sweeps", icon=":material/query_stats:", url_path="sweeps"),
    st.Page(guarded(page_runs.page), title="Runs", icon=":material/list:", url_path="runs"),
    st.Page(guarded(page_data.page), title="Data", icon=":material/video_library:", url_path="data"),
    st.Page(
        guarded(page_features.page),
        title="Attention and features",
        icon=":material/hub:",
        url_path="features",
    ),
    st.Page(guarded(page_kernels.page), title="Kernels", icon=":material/memory:", url_path="kernels"),
]

page_frame()
st.navigation(PAGES, position="top").run()
