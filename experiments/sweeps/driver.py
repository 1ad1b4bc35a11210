"""Runs a plan's trials with Ray Tune, and goes on where an earlier attempt ended."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from vmae.core.config import flatten
from vmae.core.errors import InputError, VmaeError, nearest
from vmae.experiments.provenance import keep_digest
from vmae.experiments.sweeps.spec import Plan
from vmae.experiments.sweeps.status import DONE, FAILED, TrialState, groups, trial_states, winner
from vmae.experiments.sweeps.trial import cache_dir, run_trial
from vmae.experiments.tracking import Store, Tracker, create_store

Observe = Callable[[list[TrialState]], None]
"""Called about once a second with every trial's state."""


def sweeps_dir(store: Store) -> Path:
    """Where sweeps keep their folders."""
    return store.runs_dir / "sweeps"


def new_name(store: Store, sweep: str) -> str:
    """A fresh name for a sweep: `masking_ratio-1`, `-2`, ..."""
    taken = {p.name for p in sweeps_dir(store).glob(f"{sweep}-*")} if sweeps_dir(store).is_dir() else set()
    number = 1
    while f"{sweep}-{number}" in taken:
        number += 1
    return f"{sweep}-{number}"


def find_sweep(store: Store, name: str) -> Path:
    """The folder of a sweep by name; InputError names the nearest."""
    folder = sweeps_dir(store) / name
    if (folder / "plan.json").exists():
        return folder
    known = sorted(p.parent.name for p in sweeps_dir(store).glob("*/plan.json"))
    raise InputError(
        f"expected the name of a sweep in {sweeps_dir(store)}, got '{name}'{nearest(name, known)}"
        + (f"; there are: {', '.join(known)}" if known else ": there are none yet")
    )


def prepare(plan: Plan, store: Store, progress: Callable[[int, int], None] | None = None) -> None:
    """What trials share, done once before they start: the store, and every video decoded into the cache.

    Raises:
        InputError, VideoError: bad lists or held-out videos are refused here, before anything is started.
    """
    from vmae.experiments.run import open_data

    open_data(plan.base, cache_dir(store.runs_dir), progress)
    create_store(store)


def run_sweep(plan: Plan, store: Store, observe: Observe | None = None) -> list[TrialState]:
    """Run every trial that has no result yet; return all trials' states.

    The plan is written to its folder first, so that an interrupted sweep can be resumed by name. The
    parent run in the store is one run however often the sweep is resumed.

    Raises:
        KeyboardInterrupt: after trials and Ray have been ended; finished trials stay finished.
        VmaeError: Ray could not be started.
    """
    folder = sweeps_dir(store) / plan.name
    plan.save(folder)
    with Tracker(
        store,
        folder,
        name=plan.name,
        key=plan.key,
        kind="sweep",
        params=flatten(plan.base) | {"sweep.params": ", ".join(plan.params)},
        tags={
            "vmae.sweep": plan.name,
            "vmae.definition": plan.sweep,
            "vmae.metric": plan.metric,
            **keep_digest(plan.base, folder),
        },
    ) as tracker:
        # Trials look their parent up in the store: it must be there before the first of them starts.
        tracker.flush()
        unfinished = [s.trial.id for s in trial_states(plan, folder) if s.status != DONE]
        if unfinished:
            with _watching(plan, folder, observe):
                _tune(plan, folder, store, unfinished)
        states = trial_states(plan, folder)
        best = winner(groups(states), plan.metric)
        if best is not None:
            tracker.log_metrics({f"best/{plan.metric}": best.mean[plan.metric]}, len(states))
            tracker.set_tags({"vmae.best": best.label})
        from vmae.experiments.sweeps.plots import save_figures

        for path in save_figures(plan, states, folder):
            tracker.log_artifact(path, "figures")
        if any(s.status == FAILED for s in states):
            tracker.set_tags({"vmae.failed": ", ".join(s.trial.id for s in states if s.status == FAILED)})
    return states


@contextlib.contextmanager
def _watching(plan: Plan, folder: Path, observe: Observe | None) -> Iterator[None]:
    """Show the trials' states once a second while the body runs, and once at its end."""
    if observe is None:
        yield
        return
    show = observe
    stop = threading.Event()
    failures: list[BaseException] = []

    def loop() -> None:
        try:
            while not stop.wait(1.0):
                show(trial_states(plan, folder))
        except BaseException as e:
            failures.append(e)

    thread = threading.Thread(target=loop, name="sweep-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if failures:
        raise failures[0]
    show(trial_states(plan, folder))


def _tune(plan: Plan, folder: Path, store: Store, trial_ids: list[str]) -> None:
    """Hand the trials to Ray Tune and wait."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Ctrl-C must reach us as KeyboardInterrupt: Tune's own handler would swallow it and save for minutes.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray
        from ray import tune

    for name in ("ray", "ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    cpus = max(plan.cpus_per_trial, 0.01)
    resources: dict[str, float] = {"cpu": cpus}
    if plan.gpus_per_trial:
        resources["gpu"] = plan.gpus_per_trial

    def trainable(config: dict[str, Any]) -> None:
        import torch

        torch.set_num_threads(max(1, int(cpus)))
        run_trial(folder, config["trial"], store, emit=lambda metrics: tune.report(dict(metrics)))

    try:
        ray.init(
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
            object_store_memory=200 * 2**20,
            # A trial that asks for more CPUs than there are would wait for ever.
            num_cpus=max(os.cpu_count() or 1, int(-(-cpus // 1))),
        )
    except Exception as e:
        raise VmaeError(f"expected Ray to start on this machine, got: {str(e).splitlines()[0]}") from e
    try:
        tuner = tune.Tuner(
            tune.with_resources(trainable, resources),
            param_space={"trial": tune.grid_search(trial_ids)},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=plan.max_concurrent,
                trial_dirname_creator=lambda t: f"{t.config['trial']}-{t.trial_id}",
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(folder),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=2),
            ),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tuner.fit()
    finally:
        # Second Ctrl-C while we clean up would leave processes behind.
        with _ignoring_sigint():
            ray.shutdown()


@contextlib.contextmanager
def _ignoring_sigint() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def with_resources(plan: Plan, cpus: float | None, gpus: float | None, concurrent: int | None) -> Plan:
    """The plan with other resources (a resumed sweep may run on another machine)."""
    return replace(
        plan,
        cpus_per_trial=plan.cpus_per_trial if cpus is None else cpus,
        gpus_per_trial=plan.gpus_per_trial if gpus is None else gpus,
        max_concurrent=plan.max_concurrent if concurrent is None else concurrent,
    )
