"""One run on several processes or nodes, by Ray Train's TorchTrainer.

Ray starts the workers, joins them in a `torch.distributed` group and restarts them when one dies; the
training loop is the one that runs alone (`vmae.core.train.loop`), and its checkpoints in the run's folder are
what a restart continues from. So the folder (and the data) must be on storage that every node sees under the
same path; of a run directory on an object store each worker fetches its own copy, and rank 0's is copied back
at every checkpoint.
What rank 0 reports is appended to `events.jsonl` in that folder; the process that started the run follows the
file, and shows and tracks it.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from vmae.core.config import from_dict, to_dict
from vmae.core.errors import InputError, VmaeError
from vmae.core.files import read_json, write_json
from vmae.core.train.task import TrainResult
from vmae.experiments.background import repeated
from vmae.experiments.cluster import connected
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.layout import RunDir, RunsDir
from vmae.experiments.process import Process
from vmae.experiments.stages.stage import Stage, Watch, Work
from vmae.experiments.storage import Storage, StorageAway

_HEARING_S = 300.0


@dataclass(frozen=True, kw_only=True)
class WorkersConfig:
    """Who trains: `count` processes, each with so many CPUs and GPUs, on this machine or on a Ray cluster."""

    count: int = 2
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
    address: str = ""
    """Of a running cluster (`auto`, `host:port`, `ray://host:port`); empty: start Ray here."""
    max_failures: int = 3
    """Times that the workers are started again after one died."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputError(f"--workers: expected at least 1, got {self.count}")
        if self.gpus_per_worker < 0 or self.cpus_per_worker <= 0:
            raise InputError(
                "--gpus-per-worker, --cpus-per-worker: expected 0 or more and more than 0, got "
                f"{self.gpus_per_worker:g} and {self.cpus_per_worker:g}"
            )


def train_on_workers(stage: Stage, work: Work, workers: WorkersConfig, storage: Storage) -> TrainResult:
    """A stage's training on Ray workers, in `work.home` below `storage.local`; blocks until it is done.

    It may be called in a Ray worker itself (a sweep's trial): its own workers are then asked of the same
    cluster.

    The watch hears of rank 0's events and pictures, here. When it says so, the workers save their state and
    stop: some steps later, or where the watch decides by each epoch as soon as one process alone would, for
    each epoch then waits until the one before was heard of.
    Raises VmaeError with the first line of a worker's error when the run failed.
    """
    home, wanted = work.home, workers.count * workers.cpus_per_worker
    with connected(workers.address or None, cpus=wanted + 0.5):
        home.path.mkdir(parents=True, exist_ok=True)
        for path in (home.stop, home.result, home.events, home.heard):
            storage.delete(path)
        storage.push(home.path)
        trainer = _trainer(stage, work, workers, storage)
        errors: list[BaseException] = []

        def fit() -> None:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    trainer.fit()
            except BaseException as e:
                errors.append(e)

        thread = threading.Thread(target=fit, name="ray-train", daemon=True)
        thread.start()
        events = _Events(home, work.watch, storage)
        while thread.is_alive():
            thread.join(0.2)
            events.fetch()
            events.deliver()
            events.pass_on_stop()
        storage.pull(home.path, fresh=True)
        events.deliver()
        if errors or not home.result.exists():
            text = str(errors[0]).strip() if errors else "the workers left no result"
            raise VmaeError(f"expected the workers to finish, got: {cause_of(text)}") from (
                errors[0] if errors else None
            )
        return _result_from(home.path, read_json(home.result))


def _trainer(stage: Stage, work: Work, workers: WorkersConfig, storage: Storage) -> Any:
    from ray import train
    from ray.train.torch import TorchTrainer

    resources = {"CPU": workers.cpus_per_worker}
    if workers.gpus_per_worker:
        resources["GPU"] = workers.gpus_per_worker
    return TorchTrainer(
        _worker,
        train_loop_config={
            "stage": stage,
            "config": to_dict(work.config),
            "storage": storage,
            "home": work.home.path.relative_to(storage.local).as_posix(),
            "threads": max(1, int(workers.cpus_per_worker)),
            "awaited": work.watch.decides,
        },
        scaling_config=train.ScalingConfig(
            num_workers=workers.count,
            use_gpu=workers.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        run_config=train.RunConfig(
            name="train",
            storage_path=storage.place(work.home.ray),
            storage_filesystem=storage.fs,
            failure_config=train.FailureConfig(max_failures=workers.max_failures),
        ),
        torch_config=_torch_config(workers),
    )


class _Events:
    """What rank 0 appends to its run's folder, followed by the process that started the workers."""

    def __init__(self, home: RunDir, watch: Watch, storage: Storage) -> None:
        self._home, self._watch, self._storage = home, watch, storage
        self._place, self._looked = 0, 0.0

    def fetch(self) -> None:
        """Get what is new, as often as the storage likes to be asked."""
        if time.monotonic() - self._looked > self._storage.every_s:
            self._looked = time.monotonic()
            with contextlib.suppress(StorageAway):
                self._storage.pull_file(self._home.events)

    def deliver(self) -> None:
        """Tell the watch of the whole lines past those it was told of."""
        if not self._home.events.exists():
            return
        with open(self._home.events) as file:
            file.seek(self._place)
            for line in iter(file.readline, ""):
                if not line.endswith("\n"):
                    break
                self._place += len(line.encode())
                entry = json.loads(line)
                self._hear(entry["event"], entry["data"])

    def _hear(self, event: str, data: dict[str, Any]) -> None:
        if event == "picture":
            self._show(data)
        else:
            self._watch.report(event, data)
        if self._watch.decides and event == "epoch":
            self.pass_on_stop()
            self._tell(self._home.heard, data["epoch"])

    def _show(self, data: dict[str, Any]) -> None:
        import numpy as np
        from PIL import Image

        path = self._home.path / data["path"]
        self._storage.pull_file(path)
        if self._watch.picture is not None:
            self._watch.picture(np.asarray(Image.open(path)), data["epoch"])

    def _tell(self, path: Path, what: Any) -> None:
        write_json(path, what)
        self._storage.push_file(path)

    def pass_on_stop(self) -> None:
        """Ask the workers to stop where the watch wants them to."""
        asked = self._watch.should_stop
        if asked is not None and asked() and not self._home.stop.exists():
            self._tell(self._home.stop, True)


def _torch_config(workers: WorkersConfig) -> Any:
    """Ray Train's set-up of `torch.distributed`, with gloo on the network that the nodes share.

    gloo alone takes the address that a node's own name stands for, which on Debian's machines is 127.0.1.1:
    no other node reaches it.
    """
    from ray.train.torch import TorchConfig

    class Backend(TorchConfig().backend_cls):  # type: ignore[misc]
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(_choose_interface)
            super().on_start(worker_group, backend_config)

    class Config(TorchConfig):
        @property
        def backend_cls(self) -> type:
            return Backend

    # NCCL refuses two processes on one GPU.
    return Config(backend="nccl" if workers.gpus_per_worker >= 1 else "gloo")


def _choose_interface() -> None:
    """In a worker: name the interface of the node's address in Ray to gloo, unless the user has named one."""
    import ray

    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def interface_of(address: str) -> str | None:
    """The network interface that has an IP address, or None."""
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == address for entry in entries):
            return name
    return None


def cause_of(text: str) -> str:
    """The line of a remote traceback that names the error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line.split(":")[0] and ":" in line]
    return (named or lines or ["no message"])[-1]


def _worker(payload: dict[str, Any]) -> None:
    """What every worker runs; inside it `torch.distributed` is initialised by Ray."""
    import torch
    from ray import train as ray_train

    torch.set_num_threads(payload["threads"])
    rank = ray_train.get_context().get_world_rank()
    # A copy of its own, where the storage needs one; rank 0's is the one that counts.
    with payload["storage"].own_copy(f"{payload['home'].replace('/', '-')}-worker{rank}") as storage:
        home = RunDir(storage.local / payload["home"])
        storage.pull(home.path, fresh=True)
        config = fetched_init(from_dict(ExperimentConfig, payload["config"]), payload["storage"], storage)

        def exchange() -> None:
            with contextlib.suppress(StorageAway):
                storage.push_file(home.events)
                for path in (home.stop, home.heard):
                    storage.pull_file(path)

        heard = partial(_until_heard, home, exchange) if payload["awaited"] and rank == 0 else None
        with repeated(exchange, storage.every_s, "mirror") if rank == 0 else contextlib.nullcontext():
            _train(payload["stage"], config, home, storage, rank, heard)


def fetched_init(config: ExperimentConfig, theirs: Storage, own: Storage) -> ExperimentConfig:
    """The configuration with the weights it starts from in this process's copy, where they are kept there."""
    if not config.init or not Path(config.init).is_relative_to(theirs.local):
        return config
    place = own.local / Path(config.init).relative_to(theirs.local)
    own.pull(place)
    return replace(config, init=str(place))


def _until_heard(home: RunDir, exchange: Callable[[], None], epoch: float) -> None:
    """Wait until the process that started the run has heard of an epoch, or wants no more."""
    end = time.monotonic() + _HEARING_S
    while not home.stop.exists() and (read_json(home.heard) or 0) < epoch:
        if time.monotonic() > end:
            return
        time.sleep(0.1)
        exchange()


def _train(
    stage: Stage,
    config: ExperimentConfig,
    home: RunDir,
    storage: Storage,
    rank: int,
    heard: Callable[[float], None] | None,
) -> None:
    from ray import train as ray_train
    from ray.train.torch import get_device

    assert stage.train is not None
    home.path.mkdir(parents=True, exist_ok=True)
    with open(home.events, "a", buffering=1) as events:

        def write(event: str, values: dict[str, Any]) -> None:
            events.write(json.dumps({"event": event, "data": values}) + "\n")

        def report(event: str, values: dict[str, Any]) -> None:
            write(event, values)
            if event == "checkpoint":
                with contextlib.suppress(StorageAway):
                    storage.push(home.path)
            if heard is not None and event == "epoch":
                heard(values["epoch"])

        def picture(image: Any, epoch: int) -> None:
            from PIL import Image

            path = home.pictures / f"worker_{epoch:06d}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(image).save(path)
            storage.push_file(path)
            write("picture", {"path": path.relative_to(home.path).as_posix(), "epoch": epoch})

        # A sharded model takes all processes to run; pictures are drawn by one.
        drawn = rank == 0 and config.train.shard == "none"
        watch = Watch(should_stop=home.stop.exists, picture=picture if drawn else None)
        if rank == 0:
            watch = replace(watch, report=report)
        process = Process(RunsDir(storage.local).cache, get_device())
        result = stage.train(process.context(Work(config=config, home=home, watch=watch)))
    if rank == 0:
        best = result.best_model_path
        paths = {
            "model_path": str(result.model_path.relative_to(home.path)),
            "best_model_path": str(best.relative_to(home.path)) if best else None,
        }
        write_json(home.result, asdict(result) | paths)
        storage.push(home.path)
    ray_train.report({"loss": result.metrics.get("loss", float("nan"))})


def _result_from(home: Path, data: dict[str, Any]) -> TrainResult:
    best = data["best_model_path"]
    return replace(
        TrainResult(**data),
        model_path=home / data["model_path"],
        best_model_path=home / best if best else None,
    )
