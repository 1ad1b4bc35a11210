"""The Streamlit script that `vmae dashboard` runs: pages and navigation, nothing else."""

from __future__ import annotations

import streamlit as st

from vmae.dashboard.frame import page_frame, page_of

PAGES = [
    st.Page(page_of("reconstruct"), title="Reconstruct", icon=":material/grid_on:", default=True),
    st.Page(page_of("sweeps"), title="Sweeps", icon=":material/query_stats:", url_path="sweeps"),
    st.Page(page_of("runs"), title="Runs", icon=":material/list:", url_path="runs"),
    st.Page(page_of("detection"), title="Detection", icon=":material/person_search:", url_path="detection"),
    st.Page(page_of("data"), title="Data", icon=":material/video_library:", url_path="data"),
    st.Page(page_of("features"), title="Attention and features", icon=":material/hub:", url_path="features"),
    st.Page(page_of("kernels"), title="Kernels", icon=":material/memory:", url_path="kernels"),
]

page_frame()
st.navigation(PAGES, position="top").run()
