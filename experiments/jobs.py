"""Single runs from the command line: named, tracked, resumable by name."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vmae.core.config import flatten
from vmae.core.errors import InputError, VmaeError, nearest
from vmae.core.measure.probe import ProbeResult
from vmae.core.model.encoder import VideoModel
from vmae.core.model.videomae import VideoMAE
from vmae.core.train.config import check_capturable
from vmae.core.train.pretrain import check_objective
from vmae.core.train.task import Report, TrainResult
from vmae.core.weights.checkpoint import load_model
from vmae.core.weights.models import expect_model
from vmae.experiments import run
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.distributed import WorkersConfig, train_on_workers
from vmae.experiments.layout import RESERVED, RunDir, found_config
from vmae.experiments.locks import at_work, check_name, claim, claim_numbered
from vmae.experiments.provenance import config_tags
from vmae.experiments.runs import Filter, Run, find, list_runs
from vmae.experiments.storage import Mirror
from vmae.experiments.tracking import Store, Tracker, create_store, tags
from vmae.experiments.weights import model_source, with_init

Ahead = Callable[[ExperimentConfig], None]
"""Told the configuration once it is known to be possible, before anything is decoded."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A finished (or stopped) pre-training run. `eval_loss` is None without a held-out list."""

    result: TrainResult
    eval_loss: float | None


def named(store: Store, config: ExperimentConfig, name: str | None) -> ExperimentConfig:
    """The configuration under a name no run has: the one asked for, or the recipe's with a number.

    The name is claimed by making its folder: of two commands at once each gets its own.

    Raises:
        InputError: the name asked for is taken, or is not a plain file name.
    """
    if name is not None:
        check_name("--run-name", name, RESERVED)
        if not claim(store.layout.run(name).path):
            raise InputError(
                f"--run-name: expected a new name, got '{name}', which exists; use --resume {name}"
            )
        return replace(config, name=name)
    return replace(config, name=claim_numbered(store.layout.path, config.name))


def saved_config(store: Store, name: str) -> ExperimentConfig:
    """The configuration of an earlier run; InputError names the nearest where there is none."""
    path = store.layout.run(name).config
    if not path.exists():
        raise InputError(
            f"expected the name of a run in {store.runs_dir}, got '{name}'"
            f"{nearest(name, store.layout.runs())}"
        )
    return ExperimentConfig.load(path)


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Inside, Ctrl-C and SIGTERM ask the run to stop after its step instead of ending the process.

    A second Ctrl-C ends it at once.
    """
    asked = threading.Event()

    def ask(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_config(config: ExperimentConfig, device: torch.device, *, processes: int = 1) -> None:
    """Raise InputError for what cannot be trained here, whatever the lists hold."""
    if config.train.cuda_graph:
        check_capturable(config.job, config.train, device, processes=processes)
    if config.job == "pretrain":
        check_objective(config.mask, config.model)


def begin(
    config: ExperimentConfig,
    store: Store,
    cache_progress: run.CacheProgress | None,
    workers: WorkersConfig | None,
    notes: Callable[[str], None] | None,
    ahead: Ahead | None,
) -> tuple[ExperimentConfig, VideoModel | None, run.Data, RunDir, torch.device]:
    """What every training run starts with: (configuration, initial model, data, folder, device).

    The configuration is that of the initial model where there is one; what that changed goes to `notes`. It
    is saved in the folder once the lists are read and every held-out video is known to decode.
    """
    device = run.default_device()
    check_config(config, device, processes=workers.count if workers else 1)
    config, init, remarks = with_init(config, store)
    for remark in remarks:
        if notes is not None:
            notes(remark)
    if ahead is not None:
        ahead(config)
    data = run.open_data(config, store.layout.cache, cache_progress)
    home = store.layout.run(config.name)
    try:
        create_store(store)
    except VmaeError as e:
        if store.sqlite_path is None:
            raise
        # What only informs never ends training: the spool keeps what the run reports.
        if notes is not None:
            notes(f"{e}; `vmae runs sync` sends what the run reports when it is well")
    config.save(home.config)
    return config, init, data, home, device


@at_work
def pretrain_run(
    config: ExperimentConfig,
    store: Store,
    *,
    report: Report | None = None,
    cache_progress: run.CacheProgress | None = None,
    workers: WorkersConfig | None = None,
    notes: Callable[[str], None] | None = None,
    ahead: Ahead | None = None,
) -> Outcome:
    """Pre-train, or go on with the run of this name; measure the reconstruction at the end.

    With `workers` it trains on Ray workers, else in this process without Ray. Nothing is written before the
    lists are read and every held-out video is known to decode.
    """
    config, _, data, home, device = begin(config, store, cache_progress, workers, notes, ahead)
    with (
        Tracker(
            store,
            home.path,
            name=config.name,
            key=f"run:{config.name}",
            kind="pretrain",
            params=flatten(config),
            tags=config_tags(config),
        ) as tracker,
        stop_on_signal() as should_stop,
    ):
        run.log_start(tracker, home)
        if workers is None:
            model, result = run.pretrain_stage(
                config,
                data,
                home.path,
                device=device,
                tracker=tracker,
                report=report,
                should_stop=should_stop,
            )
        else:
            result = on_workers(
                config, store, home.path, workers, tracker=tracker, report=report, should_stop=should_stop
            )
            loaded, _ = load_model(result.model_path)
            model = expect_model(loaded, VideoMAE, result.model_path).to(device)
        tracker.set_tags({tags.CHECKPOINT: str(result.model_path)})
        run.log_checkpoints(tracker, config, home, stopped=result.stopped)
        if result.stopped:
            tracker.finish("KILLED")
            return Outcome(result=result, eval_loss=None)
        eval_loss = None
        if data.val is not None:
            eval_loss = run.measure_reconstruction(model, config, data, device)
            tracker.log_metrics({"eval/loss": eval_loss}, result.steps)
    return Outcome(result=result, eval_loss=eval_loss)


def on_workers(
    config: ExperimentConfig,
    store: Store,
    home: Path,
    workers: WorkersConfig,
    *,
    tracker: Tracker,
    report: Report | None,
    should_stop: Callable[[], bool] | None,
    mirror: Mirror | None = None,
    awaited: bool = False,
) -> TrainResult:
    """Train on Ray workers; what they report is shown and tracked here."""

    def picture(path: Path, epoch: int) -> None:
        import numpy as np
        from PIL import Image

        tracker.log_image(np.asarray(Image.open(path)), "reconstruction", epoch)

    return train_on_workers(
        config,
        home,
        store.layout.cache,
        workers,
        report=run.reporter(tracker, report, stage=config.job),
        picture=picture,
        should_stop=should_stop,
        mirror=mirror,
        awaited=awaited,
    )


def model_to_probe(
    store: Store, run_name: str | None, checkpoint: Path | None
) -> tuple[Path, ExperimentConfig]:
    """The folder of a model, and the configuration it was trained with (a default one for a bare folder)."""
    if checkpoint is not None:
        saved = found_config(checkpoint)
        if saved is not None:
            return checkpoint, ExperimentConfig.load(saved)
        model, _ = load_model(checkpoint)
        model = expect_model(model, VideoMAE, checkpoint)
        base = ExperimentConfig()
        data = replace(base.data, frames=model.config.frames, size=(model.config.height, model.config.width))
        return checkpoint, replace(base, model=model.config, data=data)
    if run_name is None:
        condition = Filter(column="kind", op="=", value="pretrain")
        newest = list_runs(store, where=[condition], limit=1)
        if not newest:
            raise InputError(
                f"expected a pre-training run in {store.uri}, found none; give --run or --checkpoint"
            )
        found = newest[0]
    else:
        found = find(store, run_name)
    place = found.tags.get(tags.CHECKPOINT, "")
    folder = Path(model_source(store, place))
    if not place or not folder.exists():
        raise InputError(f"expected run '{found.name}' to have a model, got none at {place or 'any place'}")
    return folder, _config_of(found)


def _config_of(found: Run) -> ExperimentConfig:
    """A run's configuration from its parameters in the store."""
    import json

    from vmae.core.config import from_dict, known_paths

    tree: dict[str, Any] = {}
    for path in known_paths(ExperimentConfig):
        if path in found.params:
            node = tree
            *parents, leaf = path.split(".")
            for part in parents:
                node = node.setdefault(part, {})
            text = found.params[path]
            try:
                node[leaf] = json.loads(text)
            except json.JSONDecodeError:
                node[leaf] = text
    return from_dict(ExperimentConfig, tree)


def probe_run(config: ExperimentConfig, store: Store, checkpoint: Path) -> ProbeResult:
    """Probe the model at `checkpoint` and record the result as a run of its own."""
    if not config.data.val_csv:
        raise InputError("expected a held-out list (--val), got none")
    model = expect_model(load_model(checkpoint)[0], VideoMAE, checkpoint)
    device = run.default_device()
    model.to(device)
    data = run.open_data(config, store.layout.cache)
    result = run.probe_stage(model, config, data, device=device)
    create_store(store)
    name = claim_numbered(store.layout.path, f"{config.name}-{config.probe.kind}-probe")
    with Tracker(
        store,
        store.layout.run(name).path,
        name=name,
        key=f"run:{name}",
        kind="probe",
        params=flatten(config),
        tags={tags.CHECKPOINT: str(checkpoint.resolve()), **config_tags(config)},
    ) as tracker:
        tracker.log_metrics(run.probe_metrics(result), 0)
    return result


def probe_json(result: ProbeResult) -> dict[str, Any]:
    """A probe's result as JSON types."""
    return {
        "kind": result.kind,
        "top1": result.top1,
        "top5": result.top5,
        "mean_class": result.mean_class,
        "chance": result.chance,
        "selection_top1": result.selection_top1,
        "chosen": result.chosen,
    }
