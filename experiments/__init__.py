"""Runs of the method: configuration, tracking, sweeps and their results."""
