"""A plan's trials as Ray Tune runs them."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable
from typing import Any

import psutil

from vmae.core.errors import TransientError, VmaeError
from vmae.core.files import read_record, write_json
from vmae.experiments.cluster import Ahead
from vmae.experiments.layout import SweepDir, is_small
from vmae.experiments.storage import Storage
from vmae.experiments.sweeps.ready import check_nodes
from vmae.experiments.sweeps.spec import Plan
from vmae.experiments.sweeps.status import DONE, FAILED, trial_states
from vmae.experiments.sweeps.trial import run_trial
from vmae.experiments.tracking import Store

MAX_FAILURES = 3
"""How often a trial whose process or node was lost is started again."""
Work = Callable[..., Any]
"""Runs one trial, as `run_trial` does; a measurement of the machinery passes one that does nothing."""


def ray_ahead(plan: Plan) -> Ahead:
    """Ray for the plan's trials, to be started before `prepare` and given to `run_sweep`."""
    wanted = map(plan.resources.of, plan.stages())
    return Ahead(plan.resources.address, cpus=max(w.cpus * w.workers for w in wanted))


def tune(
    plan: Plan,
    sweep: SweepDir,
    store: Store,
    trial_ids: list[str],
    *,
    work: Work = run_trial,
    storage: Storage | None = None,
    ahead: Ahead | None = None,
) -> None:
    """Hand the trials to Ray Tune and wait; `sweep.timing` says what that cost this process."""
    entered = time.time()
    storage = storage or store.storage()
    with ray_ahead(plan) if ahead is None else contextlib.nullcontext(ahead) as ray_start:
        # Most of a second, in which Ray's processes start.
        import ray.tune  # noqa: F401

        if plan.resources.address is None:
            _take_waiting_workers()
        ray_start.wait()
        ray_there = time.time()
        if plan.resources.address is not None:
            check_nodes(plan, store)
        tuner = _tuner(plan, sweep, store, trial_ids, work, storage)
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
            "trials": _missing(plan, trial_ids),
        }
        write_json(sweep.timing, facts)
        storage.pull(sweep.trials, only=is_small)
        if plan.budget_s is None or time.monotonic() - start < plan.budget_s:
            _mark_lost(Plan.load(sweep), sweep, storage)


def _missing(plan: Plan, trial_ids: list[str]) -> int:
    return plan.expected_trials - len(plan.trials) + len(trial_ids)


def _tuner(
    plan: Plan, sweep: SweepDir, store: Store, trial_ids: list[str], work: Work, storage: Storage
) -> Any:
    from ray import tune

    searched = plan.search == "optuna"
    concurrent = plan.resources.max_concurrent
    if plan.resources.staged:
        concurrent = concurrent or _slots(plan)
    return tune.Tuner(
        tune.with_resources(_trainable(plan, sweep, store, work), _resources(plan)),
        param_space={} if searched else {"trial": tune.grid_search(trial_ids)},
        tune_config=tune.TuneConfig(
            num_samples=_missing(plan, trial_ids) if searched else 1,
            search_alg=_searcher(sweep, trial_ids, storage) if searched else None,
            max_concurrent_trials=concurrent,
            time_budget_s=plan.budget_s,
            reuse_actors=True,
            trial_dirname_creator=lambda t: f"{t.config['trial']}-{t.trial_id}",
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=storage.place(sweep.path),
            storage_filesystem=storage.fs,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
        ),
    )


def _resources(plan: Plan) -> dict[str, float]:
    if plan.resources.staged:
        # The trial's process leads its stages and holds nothing. A stage takes all it needs at once and gives
        # it back when it ends: trials can wait for each other, but never all of them for ever.
        # (Tune insists on something: one byte.)
        return {"cpu": 0, "memory": 1}
    gpus = {"gpu": plan.resources.gpus} if plan.resources.gpus else {}
    return {"cpu": plan.resources.cpus, **gpus}


def _trainable(plan: Plan, sweep: SweepDir, store: Store, work: Work) -> Callable[[dict[str, Any]], None]:
    threads = 1 if plan.resources.staged else max(1, int(plan.resources.cpus))

    def trainable(config: dict[str, Any]) -> None:
        import torch

        torch.set_num_threads(threads)
        try:
            work(sweep, config["trial"], store, emit=_report)
        except TransientError:
            raise
        except VmaeError:
            # What the configuration or the data refuses, another attempt refuses too: it is in the trial's
            # progress.json. Anything else (a lost node) is worth another attempt.
            return

    return trainable


def _report(metrics: dict[str, float]) -> None:
    from ray import tune

    tune.report(dict(metrics))


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
        for stage in map(plan.resources.of, plan.stages())
        for kind, each in (("CPU", stage.cpus), ("GPU", stage.gpus))
        if each
    ]
    return max(1, int(min(slots) + 1e-6))


def _mark_lost(plan: Plan, sweep: SweepDir, storage: Storage) -> None:
    """Write down that a trial ended without a result or an error of its own: its processes were killed."""
    for state in trial_states(plan, sweep):
        if state.status not in (DONE, FAILED):
            path = sweep.trial(state.trial.id).progress
            kept = read_record(path) or {"fraction": 0.0, "metrics": {}, "seconds": 0.0}
            text = f"its process ended {kept.get('attempts', 0)} times without an error of its own (killed?)"
            write_json(path, {**kept, "stage": "failed", "error": text})
            storage.push_file(path)


def _searcher(sweep: SweepDir, trial_ids: list[str], storage: Storage) -> Any:
    """Ray Tune's view of a growing plan: first its unfinished trials, then new settings as slots get free."""
    from ray.tune.search import Searcher

    from vmae.experiments.sweeps.search import next_setting

    class PlanSearcher(Searcher):
        def __init__(self) -> None:
            super().__init__(metric=None, mode=None)
            self.waiting = list(trial_ids)

        def suggest(self, trial_id: str) -> dict[str, Any] | None:
            if not self.waiting:
                plan = Plan.load(sweep)
                storage.pull(sweep.trials, only=is_small)
                overrides = next_setting(plan, sweep)
                if overrides is None:
                    return Searcher.FINISHED  # type: ignore[return-value]
                grown = plan.with_setting(overrides)
                # Written before the trial starts: its process reads the plan, and a resumed sweep finds it.
                grown.save(sweep)
                storage.push_file(sweep.plan)
                self.waiting = [t.id for t in grown.trials[len(plan.trials) :]]
            return {"trial": self.waiting.pop(0)}

        def on_trial_complete(
            self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
        ) -> None:
            """Nothing is kept here: results are read from the trials' files."""

    return PlanSearcher()
