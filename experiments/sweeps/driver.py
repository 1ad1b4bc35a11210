"""Runs a plan's trials with Ray Tune, and goes on where an earlier attempt ended."""

from __future__ import annotations

import contextlib
import errno
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from vmae.core.config import flatten
from vmae.core.errors import InputError, VmaeError, nearest
from vmae.experiments.background import repeated
from vmae.experiments.cluster import Ahead, files_to_see, probe_address, require_fit
from vmae.experiments.files import read_json, write_json
from vmae.experiments.provenance import keep_digest
from vmae.experiments.remote import EVERY_S, Mirror, StorageAway, is_small
from vmae.experiments.sweeps.spec import Plan, StageResources, check_resources
from vmae.experiments.sweeps.status import ALIVE_FILE, DONE, FAILED, TrialState, groups, trial_states, winner
from vmae.experiments.sweeps.trial import cache_dir, run_trial, trial_dir
from vmae.experiments.tracking import SPOOL_NAME, Store, Tracker, create_store, is_of_spool, store_at

MAX_FAILURES = 3
"""How often a trial whose process or node was lost is started again."""
Observe = Callable[[list[TrialState]], None]
"""Called about once a second with every trial's state."""


def sweeps_dir(store: Store) -> Path:
    """Where sweeps keep their folders."""
    return store.runs_dir / "sweeps"


def open_store(runs_dir: Path | str | None, role: str = "driver") -> Store:
    """The store of a run directory; of one on an object store, with its sweeps' small files fetched.

    Who only looks says another `role`: a running driver's own copies must not change under it.
    """
    store = store_at(runs_dir, remote=True, role=role)
    if store.remote:
        mirror = Mirror(store.remote, store.runs_dir)
        mirror.check()
        mirror.pull(sweeps_dir(store), only=is_small, fresh=True)
    return store


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


def check_place(plan: Plan) -> None:
    """Refuse at once what would fail or wait for ever: before Ray starts and the sweep has a folder.

    Raises:
        InputError: a stage that asks for more GPUs than this machine has.
        VmaeError: nothing answers at the address.
    """
    if plan.address is not None:
        probe_address(plan.address)
        return
    import torch

    there = torch.cuda.device_count()
    for stage in (plan.resources_of(name) for name in plan.stages()):
        if stage.gpus * stage.workers > there:
            raise InputError(
                f"expected {stage.workers * stage.gpus:g} GPUs for {stage.stage}, got {there} here "
                "(--gpus, --workers-per-trial, --stage-resources)"
            )


def prepare(plan: Plan, store: Store, progress: Callable[[int, int], None] | None = None) -> None:
    """What trials share, done once before they start: the store, and every video decoded into the cache.

    Raises:
        InputError, VideoError: bad lists, held-out videos or a share of the list that does not fill a batch
            are refused here, before anything is started.
    """
    from vmae.core.video.samples import subset
    from vmae.experiments.run import open_data

    data = open_data(plan.base, cache_dir(store.runs_dir), progress)
    if data.val is None:
        raise InputError("data.val_csv: expected a held-out list (--val FILE) to rank trials by, got none")
    listed = data.train_plain.samples
    tune_batch = plan.base.pipeline.finetune_train.batch_size
    if "finetune" in plan.base.pipeline.then and len(listed) < tune_batch:
        raise InputError(
            f"expected at least one batch of pipeline.finetune_train.batch_size = {tune_batch} clips; the "
            f"training list has {len(listed)}"
        )
    for config in [t.config(plan.base) for t in plan.trials if not t.baseline]:
        kept = len(subset(listed, config.data.train_share, config.train.seed))
        if kept < config.train.batch_size:
            raise InputError(
                f"expected at least one batch of train.batch_size = {config.train.batch_size} clips; "
                f"data.train_share = {config.data.train_share:g} of {len(listed)} videos leaves {kept}"
            )
    if plan.search == "optuna":
        from vmae.experiments.sweeps.search import check_optuna

        check_optuna()
    if store.sqlite_path is None or not store.sqlite_path.exists():
        # A server that does not answer is refused now; a database that is there can wait for its first run.
        create_store(store)


def ray_ahead(plan: Plan) -> Ahead:
    """Ray for the plan's trials, to be started before `prepare` and given to `run_sweep`."""
    stages = [plan.resources_of(stage) for stage in plan.stages()]
    return Ahead(plan.address, cpus=max(s.cpus * s.workers for s in stages))


def run_sweep(
    plan: Plan, store: Store, observe: Observe | None = None, ahead: Ahead | None = None
) -> list[TrialState]:
    """Run every trial that has no result yet; return all trials' states.

    `ahead` is a Ray that is being started already (`ray_ahead`); else it is started here.

    The plan is written to its folder first, so that an interrupted sweep can be resumed by name. The
    parent run in the store is one run however often the sweep is resumed.

    Raises:
        KeyboardInterrupt: after trials and Ray have been ended; finished trials stay finished.
        VmaeError: Ray could not be started, or there is no room for the sweep's own files.
    """
    try:
        with _sign_of_life(sweeps_dir(store) / plan.name, store):
            return _run_sweep(plan, store, observe, ahead)
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise VmaeError(
            f"expected room to write in {sweeps_dir(store) / plan.name}, got: {e.strerror}; finished trials "
            f"are kept: make room, then `vmae sweep --resume {plan.name}`"
        ) from e


@contextlib.contextmanager
def _sign_of_life(folder: Path, store: Store) -> Iterator[None]:
    """Say every few seconds that the driver is there, and at the end that it has ended."""
    mirror = Mirror(store.remote, store.runs_dir) if store.remote else None
    path = folder / ALIVE_FILE

    def write(ended: bool) -> None:
        with contextlib.suppress(OSError, StorageAway):
            write_json(path, {"time": time.time(), "ended": ended})
            if mirror is not None:
                mirror.push_file(path)

    write(False)
    try:
        with repeated(lambda: write(False), 5.0, "sweep-alive"):
            yield
    finally:
        write(True)


def _run_sweep(plan: Plan, store: Store, observe: Observe | None, ahead: Ahead | None) -> list[TrialState]:
    folder = sweeps_dir(store) / plan.name
    plan.save(folder)
    mirror = Mirror(store.remote, store.runs_dir) if store.remote else None
    if mirror is not None:
        # What an attempt on another machine could not send.
        mirror.pull(folder, only=lambda name: is_of_spool(name) and "/trials/" not in name)
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
        # The first trials start before MLflow is imported here; theirs wait for this run.
        patience_s=6.0,
    ) as tracker:
        if mirror is not None:
            mirror.push(folder, deep=False)
        unfinished = [s.trial.id for s in trial_states(plan, folder) if s.status != DONE]
        if unfinished or len(plan.trials) < plan.expected_trials:
            with _watching(folder, observe, mirror):
                _tune(plan, folder, store, unfinished, mirror=mirror, ahead=ahead)
            plan = Plan.load(folder)
        states = trial_states(plan, folder)
        best = winner(groups(states), plan.metric)
        if best is not None:
            tracker.log_metrics({f"best/{plan.metric}": best.mean[plan.metric]}, len(states))
            tracker.set_tags({"vmae.best": best.label})
        from vmae.experiments.sweeps.plots import save_figures

        if mirror is not None:
            for trial in plan.trials:
                # The learning curves are drawn from the trials' spools.
                mirror.pull_file(trial_dir(folder, trial.id) / SPOOL_NAME)

        for path in save_figures(plan, states, folder):
            tracker.log_artifact(path, "figures")
            if mirror is not None:
                mirror.push_file(path)
        if any(s.status == FAILED for s in states):
            tracker.set_tags({"vmae.failed": ", ".join(s.trial.id for s in states if s.status == FAILED)})
    if mirror is not None:
        mirror.push(folder, deep=False)
    return states


@contextlib.contextmanager
def _watching(folder: Path, observe: Observe | None, mirror: Mirror | None = None) -> Iterator[None]:
    """Show the trials' states once a second while the body runs, and once at its end."""
    if observe is None:
        yield
        return

    def look() -> None:
        observe(trial_states(Plan.load(folder), folder))

    def fetch_and_look() -> None:
        if mirror is not None:
            with contextlib.suppress(StorageAway):
                mirror.pull(folder / "trials", only=is_small)
        look()

    with repeated(fetch_and_look, 1.0 if mirror is None else EVERY_S, "sweep-watch"):
        yield
    look()


def _tune(
    plan: Plan,
    folder: Path,
    store: Store,
    trial_ids: list[str],
    work: Callable[..., Any] = run_trial,
    mirror: Mirror | None = None,
    ahead: Ahead | None = None,
) -> None:
    """Hand the trials to Ray Tune and wait; `timing.json` says what that cost this process.

    `work` runs one trial; a measurement of the machinery passes one that does nothing.
    """
    entered = time.time()
    cpus = plan.cpus_per_trial
    resources: dict[str, float] = {"cpu": cpus}
    if plan.gpus_per_trial:
        resources["gpu"] = plan.gpus_per_trial
    if plan.staged:
        # The trial's process leads its stages and holds nothing. A stage takes all it needs at once and gives
        # it back when it ends: trials can wait for each other, but never all of them for ever.
        # (Tune insists on something: one byte.)
        resources = {"cpu": 0, "memory": 1}

    def trainable(config: dict[str, Any]) -> None:
        import torch

        torch.set_num_threads(1 if plan.staged else max(1, int(cpus)))
        try:
            work(folder, config["trial"], store, emit=_report)
        except StorageAway:
            raise
        except VmaeError:
            # What the configuration or the data refuses, another attempt refuses too: it is in the trial's
            # progress.json. Anything else (a lost node, a full disk) is worth another attempt.
            return

    with ray_ahead(plan) if ahead is None else contextlib.nullcontext(ahead) as ray_start:
        # Most of a second, in which Ray's processes start.
        from ray import tune

        if plan.address is None:
            _take_waiting_workers()
        ray_start.wait()
        ray_there = time.time()
        slots = _slots(plan)
        if plan.address is not None:
            _preflight(plan, store)
        missing = (plan.expected_trials - len(plan.trials)) + len(trial_ids)
        tuner = tune.Tuner(
            tune.with_resources(trainable, resources),
            param_space={"trial": tune.grid_search(trial_ids)} if plan.search != "optuna" else {},
            tune_config=tune.TuneConfig(
                num_samples=missing if plan.search == "optuna" else 1,
                search_alg=_searcher(folder, trial_ids, mirror) if plan.search == "optuna" else None,
                max_concurrent_trials=(plan.max_concurrent or slots) if plan.staged else plan.max_concurrent,
                time_budget_s=plan.budget_s,
                reuse_actors=True,
                trial_dirname_creator=lambda t: f"{t.config['trial']}-{t.trial_id}",
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(folder) if mirror is None else f"{mirror.root}/sweeps/{plan.name}",
                storage_filesystem=None if mirror is None else mirror.fs,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            ),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            start, cpu = time.monotonic(), time.process_time()
            tuner.fit()
        facts = {
            "command": psutil.Process().create_time(),
            "entered": entered,
            "ray_start_s": ray_start.seconds,
            "ray_there": ray_there,
            "tune_s": time.monotonic() - start,
            "tune_cpu_s": time.process_time() - cpu,
            "trials": missing,
        }
        write_json(folder / "timing.json", facts)
        if mirror is not None:
            mirror.pull(folder / "trials", only=is_small)
        if plan.budget_s is None or time.monotonic() - start < plan.budget_s:
            _mark_lost(Plan.load(folder), folder)
            if mirror is not None:
                for path in folder.glob("trials/*/progress.json"):
                    mirror.push_file(path)


def _take_waiting_workers() -> None:
    """Let Tune's trials run in the processes that a Ray of this machine's own has waiting for work.

    Tune gives its actors a runtime environment (a few variables copied from this process), which no waiting
    process has, so each first trial would pay for a new one: 0.9 s on two cores. Ray's processes are this
    one's children here and have those variables anyway. Ray has no public switch for it; where another
    version keeps the names elsewhere, trials start as before.
    """
    with contextlib.suppress(ImportError, AttributeError):
        from ray.tune.execution import class_cache

        class_cache.DEFAULT_ENV_VARS.clear()
        class_cache.ENV_VARS_TO_PROPAGATE.clear()


def _slots(plan: Plan) -> int:
    """How many trials the connected Ray can run side by side, each at its hungriest stage; at least one."""
    import ray

    there = ray.cluster_resources()
    slots = [
        there.get(kind, 0.0) / (each * stage.workers)
        for stage in (plan.resources_of(name) for name in plan.stages())
        for kind, each in (("CPU", stage.cpus), ("GPU", stage.gpus))
        if each
    ]
    return max(1, int(min(slots) + 1e-6))


def _preflight(plan: Plan, store: Store) -> None:
    """Raise ClusterUnfit where a node could not run a trial of the plan."""
    data = plan.base.data
    reports = require_fit(
        paths=files_to_see(data.train_csv, data.val_csv, data.data_root),
        storage=store.remote or str(store.runs_dir),
        gpus_wanted=max(plan.resources_of(stage).gpus for stage in plan.stages()),
    )
    hosts = {r.host for r in reports}
    if len(hosts) > 1 and store.sqlite_path is not None:
        raise InputError(
            f"expected a tracking server for trials on {len(hosts)} machines (MLFLOW_TRACKING_URI), got "
            f"{store.uri}: SQLite on shared storage loses writes"
        )


def _report(metrics: dict[str, float]) -> None:
    from ray import tune

    tune.report(dict(metrics))


def _mark_lost(plan: Plan, folder: Path) -> None:
    """Write down that a trial ended without a result or an error of its own: its processes were killed."""
    for state in trial_states(plan, folder):
        if state.status not in (DONE, FAILED):
            path = trial_dir(folder, state.trial.id) / "progress.json"
            kept = read_json(path) or {"fraction": 0.0, "metrics": {}, "seconds": 0.0}
            text = f"its process ended {kept.get('attempts', 0)} times without an error of its own (killed?)"
            write_json(path, {**kept, "stage": "failed", "error": text})


def _searcher(folder: Path, trial_ids: list[str], mirror: Mirror | None = None) -> Any:
    """Ray Tune's view of a growing plan: first its unfinished trials, then new settings as slots get free."""
    from ray.tune.search import Searcher

    from vmae.experiments.sweeps.search import next_setting

    class PlanSearcher(Searcher):
        def __init__(self) -> None:
            super().__init__(metric=None, mode=None)
            self.waiting = list(trial_ids)

        def suggest(self, trial_id: str) -> dict[str, Any] | None:
            if not self.waiting:
                plan = Plan.load(folder)
                if mirror is not None:
                    mirror.pull(folder / "trials", only=is_small)
                overrides = next_setting(plan, folder)
                if overrides is None:
                    return Searcher.FINISHED  # type: ignore[return-value]
                grown = plan.with_setting(overrides)
                # Written before the trial starts: its process reads the plan, and a resumed sweep finds it.
                grown.save(folder)
                if mirror is not None:
                    mirror.push_file(folder / "plan.json")
                self.waiting = [t.id for t in grown.trials[len(plan.trials) :]]
            return {"trial": self.waiting.pop(0)}

        def on_trial_complete(
            self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
        ) -> None:
            """Nothing is kept here: results are read from the trials' files."""

    return PlanSearcher()


def with_resources(
    plan: Plan,
    cpus: float | None,
    gpus: float | None,
    concurrent: int | None,
    address: str | None = None,
    workers: int | None = None,
    stage_resources: tuple[StageResources, ...] = (),
) -> Plan:
    """The plan with other resources (a resumed sweep may run on another machine or cluster).

    `address` "local" means a Ray of this machine's own.
    Raises InputError where they do not fit the plan (`spec.check_resources`).
    """
    where = plan.address if address is None else address
    changed = replace(
        plan,
        workers_per_trial=plan.workers_per_trial if workers is None else workers,
        stage_resources=stage_resources or plan.stage_resources,
        cpus_per_trial=plan.cpus_per_trial if cpus is None else cpus,
        gpus_per_trial=plan.gpus_per_trial if gpus is None else gpus,
        max_concurrent=plan.max_concurrent if concurrent is None else concurrent,
        address=None if where == "local" else where,
    )
    check_resources(changed)
    return changed
