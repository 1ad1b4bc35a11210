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
import shutil
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
from vmae.core.train.task import Report, TrainResult
from vmae.experiments import run
from vmae.experiments.background import repeated
from vmae.experiments.cluster import connected
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.layout import RunsDir
from vmae.experiments.storage import EVERY_S, Mirror, StorageAway, scratch

EVENTS, RESULT, STOP, HEARD = "events.jsonl", "result.json", "STOP", "heard.json"
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


def train_on_workers(
    config: ExperimentConfig,
    home: Path,
    cache_dir: Path,
    workers: WorkersConfig,
    *,
    report: Report,
    picture: Callable[[Path, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    mirror: Mirror | None = None,
    awaited: bool = False,
) -> TrainResult:
    """Train `config` (its job: pre-training or fine-tuning) in `home` on Ray workers; blocks until done.

    It may be called in a Ray worker itself (a sweep's trial): its own workers are then asked of the same
    cluster.

    `report` receives the events of rank 0, here; `picture(path, epoch)` its reconstruction pictures. When
    `should_stop` says so, the workers save their state and stop: some steps later, or with `awaited` as soon
    as one process alone would, for each epoch then waits until `report` has heard of the one before. `home`
    is this process's copy of a folder on an object store where there is a `mirror`.
    Raises VmaeError with the first line of a worker's error when the run failed.
    """
    wanted = workers.count * workers.cpus_per_worker
    with connected(workers.address or None, cpus=wanted + 0.5):
        from ray import train
        from ray.train.torch import TorchTrainer

        home.mkdir(parents=True, exist_ok=True)
        events, place, looked = home / EVENTS, 0, 0.0
        for name in (STOP, RESULT, EVENTS, HEARD):
            (home / name).unlink(missing_ok=True)
            if mirror is not None:
                mirror.delete(home / name)
        if mirror is not None:
            mirror.push(home)
        resources = {"CPU": workers.cpus_per_worker}
        if workers.gpus_per_worker:
            resources["GPU"] = workers.gpus_per_worker
        trainer = TorchTrainer(
            _worker,
            train_loop_config={
                "config": to_dict(config),
                "home": str(home.resolve()),
                "cache_dir": str(cache_dir.resolve()),
                **({} if mirror is None else _on_store(mirror, home, config.init)),
                "threads": max(1, int(workers.cpus_per_worker)),
                "awaited": awaited,
            },
            scaling_config=train.ScalingConfig(
                num_workers=workers.count,
                use_gpu=workers.gpus_per_worker > 0,
                resources_per_worker=resources,
            ),
            run_config=train.RunConfig(
                name="train",
                storage_path=str((home / "ray").resolve()) if mirror is None else mirror.place(home / "ray"),
                storage_filesystem=None if mirror is None else mirror.fs,
                failure_config=train.FailureConfig(max_failures=workers.max_failures),
            ),
            torch_config=_torch_config(workers),
        )
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

        def deliver() -> None:
            nonlocal place, looked
            if mirror is not None and time.monotonic() - looked > EVERY_S:
                looked = time.monotonic()
                with contextlib.suppress(StorageAway):
                    mirror.pull_file(events)
            if not events.exists():
                return
            with open(events) as file:
                file.seek(place)
                for line in iter(file.readline, ""):
                    if not line.endswith("\n"):
                        break
                    place += len(line.encode())
                    entry = json.loads(line)
                    if entry["event"] == "picture":
                        path = home / entry["data"]["path"]
                        if mirror is not None:
                            mirror.pull_file(path)
                        if picture is not None:
                            picture(path, entry["data"]["epoch"])
                    else:
                        report(entry["event"], entry["data"])
                    if awaited and entry["event"] == "epoch":
                        pass_on_stop()
                        tell(HEARD, entry["data"]["epoch"])

        def tell(name: str, what: Any) -> None:
            write_json(home / name, what)
            if mirror is not None:
                mirror.push_file(home / name)

        def pass_on_stop() -> None:
            if should_stop is not None and should_stop() and not (home / STOP).exists():
                tell(STOP, True)

        while thread.is_alive():
            thread.join(0.2)
            deliver()
            pass_on_stop()
        if mirror is not None:
            mirror.pull(home, fresh=True)
        deliver()
        if errors or not (home / RESULT).exists():
            text = str(errors[0]).strip() if errors else "the workers left no result"
            raise VmaeError(f"expected the workers to finish, got: {_cause(text)}") from (
                errors[0] if errors else None
            )
        return _result_from(home, json.loads((home / RESULT).read_text()))


def _on_store(mirror: Mirror, home: Path, init: str) -> dict[str, str]:
    """Where a worker finds the run's folder, and the weights it starts from, on an object store."""
    inside = init and Path(init).is_relative_to(mirror.local)
    weights = Path(init).relative_to(mirror.local).as_posix() if inside else ""
    return {"uri": mirror.uri, "key": home.relative_to(mirror.local).as_posix(), "init": weights}


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


def _cause(text: str) -> str:
    """The line of a remote traceback that names the error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line.split(":")[0] and ":" in line]
    return (named or lines or ["no message"])[-1]


def _worker(payload: dict[str, Any]) -> None:
    """What every worker runs; inside it `torch.distributed` is initialised by Ray."""
    import torch
    from ray import train as ray_train

    torch.set_num_threads(payload["threads"])
    config = from_dict(ExperimentConfig, payload["config"])
    rank = ray_train.get_context().get_world_rank()
    awaited = payload["awaited"] and rank == 0
    if "uri" not in payload:
        home = Path(payload["home"])
        after_epoch = partial(_until_heard, home) if awaited else None
        _train(config, home, Path(payload["cache_dir"]), rank, after_epoch=after_epoch)
        return
    # A copy of its own; rank 0's is the one that counts.
    local = scratch(payload["uri"], f"{payload['key'].replace('/', '-')}-worker{rank}")
    mirror, home = Mirror(payload["uri"], local), local / payload["key"]
    mirror.pull(home, fresh=True)
    if payload["init"]:
        mirror.pull(local / payload["init"])
        config = replace(config, init=str(local / payload["init"]))

    def exchange() -> None:
        with contextlib.suppress(StorageAway):
            mirror.push_file(home / EVENTS)
            for name in (STOP, HEARD):
                mirror.pull_file(home / name)

    after_epoch = partial(_until_heard, home, exchange=exchange) if awaited else None
    with repeated(exchange, EVERY_S, "mirror") if rank == 0 else contextlib.nullcontext():
        _train(config, home, RunsDir(local).cache, rank, mirror if rank == 0 else None, after_epoch)
    shutil.rmtree(local)


def _until_heard(home: Path, epoch: float, exchange: Callable[[], None] = lambda: None) -> None:
    """Wait until the process that started the run has heard of an epoch, or wants no more."""
    end = time.monotonic() + _HEARING_S
    while not (home / STOP).exists() and (read_json(home / HEARD) or 0) < epoch:
        if time.monotonic() > end:
            return
        time.sleep(0.1)
        exchange()


def _train(
    config: ExperimentConfig,
    home: Path,
    cache_dir: Path,
    rank: int,
    mirror: Mirror | None = None,
    after_epoch: Callable[[float], None] | None = None,
) -> None:
    from ray import train as ray_train
    from ray.train.torch import get_device

    device = get_device()
    data = run.open_data(config, cache_dir)
    home.mkdir(parents=True, exist_ok=True)
    with open(home / EVENTS, "a", buffering=1) as events:

        def report(event: str, values: dict[str, Any]) -> None:
            if rank == 0:
                events.write(json.dumps({"event": event, "data": values}) + "\n")
            if mirror is not None and event == "checkpoint":
                with contextlib.suppress(StorageAway):
                    mirror.push(home)
            if after_epoch is not None and event == "epoch":
                after_epoch(values["epoch"])

        def should_stop() -> bool:
            return (home / STOP).exists()

        if config.job == "finetune":
            from vmae.experiments.finetuning import finetune_stage
            from vmae.experiments.weights import initial_weights

            init = initial_weights(config).model if config.init else None
            _, result = finetune_stage(
                config, data, home, init=init, device=device, report=report, should_stop=should_stop
            )
        else:

            def picture(image: Any, epoch: int) -> None:
                from PIL import Image

                path = home / "pictures" / f"worker_{epoch:06d}.png"
                path.parent.mkdir(exist_ok=True)
                Image.fromarray(image).save(path)
                if mirror is not None:
                    mirror.push_file(path)
                report("picture", {"path": path.relative_to(home).as_posix(), "epoch": epoch})

            # A sharded model takes all processes to run; pictures are drawn by one.
            drawn = rank == 0 and config.train.shard == "none"
            _, result = run.pretrain_stage(
                config,
                data,
                home,
                device=device,
                report=report,
                should_stop=should_stop,
                picture=picture if drawn else None,
            )
    if rank == 0:
        best = result.best_model_path
        paths = {
            "model_path": str(result.model_path.relative_to(home)),
            "best_model_path": str(best.relative_to(home)) if best else None,
        }
        write_json(home / RESULT, asdict(result) | paths)
    if mirror is not None:
        mirror.push(home)
    ray_train.report({"loss": result.metrics.get("loss", float("nan"))})


def _result_from(home: Path, data: dict[str, Any]) -> TrainResult:
    best = data["best_model_path"]
    return replace(
        TrainResult(**data),
        model_path=home / data["model_path"],
        best_model_path=home / best if best else None,
    )
