"""`vmae sweep ...` without Ray: a program that runs the trials in this process, one after the other."""

from __future__ import annotations

import sys
from typing import Any

import torch

from vmae.cli.sweep import sweep
from vmae.cli.sweep_options import SweepOptions
from vmae.experiments.layout import SweepDir
from vmae.experiments.sweeps.driver import open_store, run_sweep
from vmae.experiments.sweeps.ready import prepare
from vmae.experiments.sweeps.spec import Plan
from vmae.experiments.sweeps.trial import run_trial
from vmae.experiments.tracking import Store


def here(plan: Plan, folder: SweepDir, store: Store, trial_ids: list[str], **rest: Any) -> None:
    """As `tune.tune`."""
    for trial_id in trial_ids:
        run_trial(folder, trial_id, store)


torch.set_num_threads(1)  # as Tune's trials have it
given = sweep.make_context("sweep", sys.argv[1:]).params
name = given.pop("name")
options = SweepOptions.taken(given)
store = open_store(options.runs_dir)
plan = options.plan(store, name)
prepare(plan, store)
run_sweep(plan, store, trials=here)
