"""The Streamlit dashboard: a thin layer over `vmae.experiments.runs` and `vmae.core`."""
