"""Where stages work: in this process, their training on Ray workers, or each as asked for on a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vmae.core.config import from_dict, to_dict
from vmae.core.errors import TransientError
from vmae.core.train.task import TrainResult
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.distributed import WorkersConfig, fetched_init, train_on_workers
from vmae.experiments.layout import RunDir, RunsDir
from vmae.experiments.process import Process
from vmae.experiments.stages.stage import Numbers, Stage, Work
from vmae.experiments.storage import Storage
from vmae.experiments.sweeps.resources import Resources


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a stage gave: its numbers, and of one that trains how its training ended."""

    numbers: Numbers
    result: TrainResult | None = None


def saved(result: TrainResult, work: Work) -> TrainResult:
    """A training's result; TransientError where its last weights, or its state when stopped, are lost."""
    if not result.unsaved:
        return result
    what = "the interrupted run's state" if result.stopped else "the run's last weights"
    raise TransientError(
        f"{work.home.path}: expected {what} to be saved, got: {result.unsaved}; --resume goes on from its "
        "last good checkpoint"
    )


class Here:
    """Stages work in this process."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.process = Process(RunsDir(storage.local).cache)

    def run(self, stage: Stage, work: Work) -> Done:
        """Train, if the stage does (or go on with what is there), then measure, unless it was stopped."""
        result = None
        numbers: Numbers = {}
        if stage.trains:
            result = self.train(stage, work)
            numbers = {f"{stage.name}/loss": result.metrics["loss"], **stage.numbers(result)}
        if stage.run is not None and (result is None or not result.stopped):
            numbers |= self.measure(stage, work)
        return Done(numbers=numbers, result=result)

    def train(self, stage: Stage, work: Work) -> TrainResult:
        """The stage's training alone. Raises TransientError where what it ended with could not be saved."""
        assert stage.train is not None
        return saved(stage.train(self.process.context(work)), work)

    def measure(self, stage: Stage, work: Work) -> Numbers:
        """What the stage measures."""
        assert stage.run is not None
        return stage.run(self.process.context(work))


class OnWorkers(Here):
    """Stages train on Ray workers, and measure in this process."""

    def __init__(self, storage: Storage, workers: WorkersConfig) -> None:
        super().__init__(storage)
        self._workers = workers

    def train(self, stage: Stage, work: Work) -> TrainResult:
        return saved(train_on_workers(stage, work, self._workers, self.storage), work)


class Apart(Here):
    """Each stage asks the cluster that this process has joined for resources of its own: it trains on Ray
    workers, which end with it, and measures in a Ray task."""

    def __init__(self, storage: Storage, resources: Resources) -> None:
        super().__init__(storage)
        self._resources = resources

    def train(self, stage: Stage, work: Work) -> TrainResult:
        own = self._resources.of(stage)
        workers = WorkersConfig(count=own.workers, cpus_per_worker=own.cpus, gpus_per_worker=own.gpus)
        return saved(train_on_workers(stage, work, workers, self.storage), work)

    def measure(self, stage: Stage, work: Work) -> Numbers:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        own = self._resources.of(stage)
        task = ray.remote(_measured).options(
            num_cpus=own.cpus,
            num_gpus=own.gpus,
            max_retries=3,
            # Out of the trial's own placement, which holds nothing.
            scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=None),  # type: ignore[arg-type]
        )
        home = work.home.path.relative_to(self.storage.local).as_posix()
        promise = task.remote(stage, to_dict(work.config), self.storage, home, max(1, int(own.cpus)))
        measured: Numbers = ray.get(promise)
        return measured


def _measured(stage: Stage, config: dict[str, Any], theirs: Storage, home: str, threads: int) -> Numbers:
    """In a Ray task: what a stage measures, with the models that are needed fetched, and its files kept."""
    import torch

    torch.set_num_threads(threads)
    with theirs.own_copy(f"{home.replace('/', '-')}-{stage.name}") as storage:
        own = RunDir(storage.local / home)
        storage.pull(own.model, fresh=True)
        settings = fetched_init(from_dict(ExperimentConfig, config), theirs, storage)
        found = Here(storage).measure(stage, Work(config=settings, home=own))
        storage.push(own.path)
    return found
