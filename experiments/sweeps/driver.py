"""Runs a plan's trials, and goes on where an earlier attempt ended."""

from __future__ import annotations

import contextlib
import errno
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from vmae.core.config import flatten
from vmae.core.errors import InputError, VmaeError, nearest
from vmae.core.files import write_json
from vmae.experiments import stages
from vmae.experiments.background import repeated
from vmae.experiments.cluster import Ahead
from vmae.experiments.layout import SweepDir, is_of_sweeps_spool, is_small
from vmae.experiments.locks import check_name, claim_numbered, held
from vmae.experiments.provenance import keep_digest
from vmae.experiments.storage import Storage, StorageAway
from vmae.experiments.sweeps.spec import Plan
from vmae.experiments.sweeps.status import DONE, FAILED, TrialState, groups, trial_states, winner
from vmae.experiments.sweeps.tune import tune
from vmae.experiments.sweeps.verdict import judge
from vmae.experiments.tracking import Store, Tracker, store_at, tags

Observe = Callable[[list[TrialState]], None]
"""Called about once a second with every trial's state."""
_ALIVE_EVERY_S = 5.0


def open_store(runs_dir: Path | str | None, role: str = "driver") -> Store:
    """The store of a run directory; of one on an object store, with its sweeps' small files fetched.

    Who only looks says another `role`: a running driver's own copies must not change under it.
    """
    store = store_at(runs_dir, remote=True, role=role)
    storage = store.storage()
    storage.check()
    storage.pull(store.layout.sweeps, only=is_small, fresh=True)
    return store


def new_name(store: Store, sweep: str, asked: str | None = None) -> str:
    """A fresh name for a sweep, claimed wherever its files are kept: `asked`, or `masking_ratio-1`, `-2`, ...

    Raises:
        InputError: the name asked for is taken, or is not a plain one.
    """
    storage = store.storage()
    if asked is None:
        return claim_numbered(store.layout.sweeps, sweep, storage.claim)
    check_name("--run-name", asked)
    if not storage.claim(store.layout.sweep(asked).path):
        raise InputError(
            f"--run-name: expected a new name, got '{asked}', which exists; go on with it by --resume {asked}"
        )
    return asked


@contextlib.contextmanager
def freed_unless_begun(store: Store, name: str) -> Iterator[None]:
    """Where the body fails before the sweep has a plan, its name is free again; lists of folds go with it."""
    sweep = store.layout.sweep(name)
    with store.storage().given_up(sweep.path, above=2):
        try:
            yield
        except BaseException:
            if not sweep.plan.exists():
                shutil.rmtree(sweep.folds.path, ignore_errors=True)
            raise


def find_sweep(store: Store, name: str) -> SweepDir:
    """The folder of a sweep by name; InputError names the nearest."""
    sweep = store.layout.sweep(name)
    if sweep.plan.exists():
        return sweep
    known = [s.name for s in store.layout.all_sweeps()]
    raise InputError(
        f"expected the name of a sweep in {store.layout.sweeps}, got '{name}'{nearest(name, known)}"
        + (f"; there are: {', '.join(known)}" if known else ": there are none yet")
    )


def all_plans(store: Store) -> list[tuple[SweepDir, Plan | VmaeError]]:
    """Every sweep with its plan, or with why that cannot be read; the latest first."""
    found: list[tuple[SweepDir, Plan | VmaeError]] = []
    for sweep in sorted(store.layout.all_sweeps(), key=lambda s: s.plan.stat().st_mtime, reverse=True):
        try:
            found.append((sweep, Plan.load(sweep)))
        except VmaeError as e:
            found.append((sweep, e))
    return found


def run_sweep(
    plan: Plan,
    store: Store,
    observe: Observe | None = None,
    ahead: Ahead | None = None,
    trials: Callable[..., None] = tune,
) -> list[TrialState]:
    """Run every trial that has no result yet; return all trials' states.

    `ahead` is a Ray that is being started already (`ray_ahead`); else it is started here. `trials` runs the
    unfinished ones to their results, as `tune` does.

    The plan is written to its folder first, so that an interrupted sweep can be resumed by name. The
    parent run in the store is one run however often the sweep is resumed.

    Raises:
        KeyboardInterrupt: after trials and Ray have been ended; finished trials stay finished.
        VmaeError: Ray could not be started, or there is no room for the sweep's own files.
    """
    sweep, storage = store.layout.sweep(plan.name), store.storage()
    try:
        with held(sweep.working, f"sweep '{plan.name}'"), _sign_of_life(sweep, storage):
            return _run_sweep(plan, sweep, store, storage, observe, partial(trials, ahead=ahead))
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise VmaeError(
            f"expected room to write in {sweep.path}, got: {e.strerror}; finished trials "
            f"are kept: make room, then `vmae sweep --resume {plan.name}`"
        ) from e


@contextlib.contextmanager
def _sign_of_life(sweep: SweepDir, storage: Storage) -> Iterator[None]:
    """Say every few seconds that the driver is there, and at the end that it has ended."""

    def write(ended: bool) -> None:
        with contextlib.suppress(OSError, StorageAway):
            write_json(sweep.alive, {"time": time.time(), "ended": ended})
            storage.push_file(sweep.alive)

    write(False)
    try:
        with repeated(lambda: write(False), _ALIVE_EVERY_S, "sweep-alive"):
            yield
    finally:
        write(True)


def _run_sweep(
    plan: Plan,
    sweep: SweepDir,
    store: Store,
    storage: Storage,
    observe: Observe | None,
    trials: Callable[..., None],
) -> list[TrialState]:
    plan = plan.begun(sweep)
    plan.save(sweep)
    # What an attempt on another machine could not send.
    storage.pull(sweep.path, only=is_of_sweeps_spool)
    with Tracker(
        store,
        sweep.path,
        name=plan.name,
        key=plan.key,
        kind=tags.SWEEPS,
        params=flatten(plan.base) | {"sweep.params": ", ".join(plan.params)},
        tags={
            tags.SWEEP: plan.name,
            tags.DEFINITION: plan.sweep,
            **stages.ranking_tags(plan.ranked_by),
            **keep_digest(plan.base, sweep),
        },
        # The first trials start before MLflow is imported here; theirs wait for this run.
        patience_s=6.0,
    ) as tracker:
        storage.push(sweep.path, deep=False)
        unfinished = [s.trial.id for s in trial_states(plan, sweep) if s.status != DONE]
        if unfinished or len(plan.trials) < plan.expected_trials:
            with _watching(sweep, storage, observe):
                trials(plan, sweep, store, unfinished, storage=storage)
            plan = Plan.load(sweep)
        states = trial_states(plan, sweep)
        _conclude(plan, sweep, states, storage, tracker)
    storage.push(sweep.path, deep=False)
    return states


def _conclude(
    plan: Plan, sweep: SweepDir, states: list[TrialState], storage: Storage, tracker: Tracker
) -> None:
    """What the sweep's own run says in the end: the best setting, the figures, the trials that failed."""
    best = winner(groups(states), plan.ranked_by)
    if best is not None:
        tracker.log_metrics({f"{stages.BEST}{plan.metric}": best.mean[plan.metric]}, len(states))
        said = judge(plan, states, sweep)
        tracker.set_tags({tags.BEST: best.label, tags.VERDICT: said.line if said is not None else ""})
    from vmae.experiments.sweeps.plots import save_figures

    for trial in plan.trials:
        # The learning curves are drawn from the trials' spools.
        storage.pull_file(sweep.trial(trial.id).spool)
    for path in save_figures(plan, states, sweep):
        tracker.log_artifact(path, "figures")
        storage.push_file(path)
    if any(s.status == FAILED for s in states):
        tracker.set_tags({tags.FAILED: ", ".join(s.trial.id for s in states if s.status == FAILED)})


@contextlib.contextmanager
def _watching(sweep: SweepDir, storage: Storage, observe: Observe | None) -> Iterator[None]:
    """Show the trials' states once a second while the body runs, and once at its end."""
    if observe is None:
        yield
        return

    def look() -> None:
        observe(trial_states(Plan.load(sweep), sweep))

    def fetch_and_look() -> None:
        with contextlib.suppress(StorageAway):
            storage.pull(sweep.trials, only=is_small)
        look()

    with repeated(fetch_and_look, storage.every_s, "sweep-watch"):
        yield
    look()
