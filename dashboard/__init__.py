"""The Streamlit dashboard: a thin layer over `vmae.experiments.results` and `vmae.core`."""
