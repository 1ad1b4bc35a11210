"""Runs in MLflow: the store, its client, and a run's way there (tracker -> spool -> sender)."""

from vmae.experiments.tracking.client import EXPERIMENT, create_store, reachable
from vmae.experiments.tracking.spool import key_of, spooled_metrics
from vmae.experiments.tracking.store import (
    Store,
    TrackingConfig,
    default_runs_dir,
    local_store,
    store_at,
)
from vmae.experiments.tracking.sync import sync
from vmae.experiments.tracking.tracker import Tracker

__all__ = [
    "EXPERIMENT",
    "Store",
    "Tracker",
    "TrackingConfig",
    "create_store",
    "default_runs_dir",
    "key_of",
    "local_store",
    "reachable",
    "spooled_metrics",
    "store_at",
    "sync",
]
