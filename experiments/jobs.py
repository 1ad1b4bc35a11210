"""Single runs from the command line: named, tracked, resumable by name."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vmae.core.config import flatten
from vmae.core.errors import InputError, VmaeError, nearest
from vmae.core.measure.heads import Kind
from vmae.core.measure.low_shot import LowShot
from vmae.core.measure.probe import ProbeResult
from vmae.core.measure.target_probe import TargetResult
from vmae.core.model.encoder import VideoModel
from vmae.core.model.videomae import VideoMAE
from vmae.core.progress import Progress
from vmae.core.train.config import check_capturable
from vmae.core.train.state import has_whole_state
from vmae.core.train.task import Report, TrainResult
from vmae.core.weights.checkpoint import load_model
from vmae.core.weights.models import expect_model
from vmae.experiments import run
from vmae.experiments.answers import Answers, write_answers
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.data import CacheProgress, require_held_out
from vmae.experiments.distributed import WorkersConfig
from vmae.experiments.executors import Here, OnWorkers
from vmae.experiments.layout import RESERVED, RunDir, found_config
from vmae.experiments.locks import at_work, check_name, claim, claim_numbered
from vmae.experiments.provenance import config_tags, first_code, with_first_digest
from vmae.experiments.runs import Filter, Run, find, list_runs
from vmae.experiments.stages import STAGES, measure, pretrain, probe
from vmae.experiments.stages.stage import Context, Stage, Tested, Work
from vmae.experiments.tracking import Store, Tracker, create_store, key_of, tags
from vmae.experiments.weights import model_source, with_init, with_teacher_at

_log = logging.getLogger("vmae")
Ahead = Callable[[ExperimentConfig], ExperimentConfig]
"""Told the configuration once it is known to be possible, before anything is decoded; gives it with what was
found out about this machine."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A finished (or stopped) pre-training run. `eval_loss` is None without a held-out list, or a decoder."""

    result: TrainResult
    eval_loss: float | None


@dataclass(frozen=True, kw_only=True)
class TaskOutcome:
    """A finished (or stopped) training of a classifier or another head; `tested` is None when stopped or
    without a list."""

    result: TrainResult
    tested: Tested | None


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


class Stop:
    """Whether a run was asked to stop: while it trains, after its step; afterwards, at once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.training = True
        self._asked, self._say = threading.Event(), say

    def __call__(self) -> bool:
        return self._asked.is_set()

    def ask(self, number: int, frame: object) -> None:
        """A signal's handler."""
        # A terminal that closes and a service that ends send more than one signal.
        again = self._asked.is_set()
        if again and number != signal.SIGINT:
            return
        if again or not self.training:
            raise KeyboardInterrupt
        self._asked.set()
        self._say(
            "stopping after this step (or the measurement under way), then the state is saved; "
            "Ctrl-C again ends it at once, with the last checkpoint"
        )


@contextmanager
def stop_on_signal(say: Callable[[str], None] = lambda text: None) -> Iterator[Stop]:
    """Inside, Ctrl-C, SIGTERM and SIGHUP ask the run to stop after its step instead of ending the process.

    A second Ctrl-C ends it at once. A SIGHUP that is ignored (`nohup`) stays ignored. `say` is told that it
    was asked, in a signal's handler.
    """
    stop = Stop(say)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    stopping = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        stopping.append(signal.SIGHUP)
    before = {s: signal.signal(s, stop.ask) for s in stopping}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_config(config: ExperimentConfig, device: torch.device, *, processes: int = 1) -> None:
    """Raise InputError for what cannot be trained here, whatever the lists hold."""
    stage = STAGES[config.job]
    if config.train.cuda_graph is True:
        check_capturable(config.train, device, varies=stage.varies, processes=processes)
    stage.ready(config)


@dataclass(frozen=True, kw_only=True)
class Training:
    """A run whose training has ended, and what measures it."""

    config: ExperimentConfig
    home: RunDir
    tracker: Tracker
    executor: Here
    result: TrainResult
    model: Path
    """Of the epoch that counts."""

    def context(self) -> Context:
        """For a stage that measures the model here."""
        measured = replace(self.config, init=str(self.model))
        return self.executor.process.context(Work(config=measured, home=self.home))


@contextmanager
def training(
    stage: Stage,
    config: ExperimentConfig,
    store: Store,
    *,
    report: Report | None,
    cache_progress: CacheProgress | None,
    workers: WorkersConfig | None,
    notes: Callable[[str], None] | None,
    ahead: Ahead | None,
    more_tags: Callable[[ExperimentConfig], dict[str, str]] = lambda config: {},
) -> Iterator[Training]:
    """Train by a stage as a run of its own, or go on with the run of this name; inside it may be measured.

    With `workers` it trains on Ray workers, else in this process without Ray. Its configuration is that of
    the initial model where there is one; what that changed goes to `notes`. Nothing is written before the
    lists are read and every held-out video is known to decode. A stopped run is not to be measured.
    """
    config = with_teacher_at(config, store)
    check_config(config, run.default_device(), processes=workers.count if workers else 1)
    home = store.layout.run(config.name)
    init: VideoModel | None = None
    remarks: tuple[str, ...] = ()
    if not has_whole_state(home.checkpoints):
        # A run that goes on has all weights, and its configuration their shape.
        config, init, remarks = with_init(config, store)
    for remark in remarks:
        if notes is not None:
            notes(remark)
    if ahead is not None:
        config = ahead(config)
    if store.sqlite_path is None:
        create_store(store)  # a server that does not answer is said before anything is decoded
    storage = store.storage()
    executor = Here(storage) if workers is None else OnWorkers(storage, workers)
    data = executor.process.data(config, cache_progress)
    stage.check_list(config, data.train_plain.samples, config.data.train_csv)
    if data.val is not None:
        stage.check_list(config, data.val.samples, config.data.val_csv)
    require_held_out(config.data, config.train.seed, cache_progress)
    if init is not None:
        executor.process.keep_model(config, init)
    _make_store(store, notes)
    own_tags, changed = with_first_digest(config_tags(config), home)
    code_tags, other = first_code(home)
    for text in filter(None, (changed, other)):
        (notes or _log.warning)(text)
    config.save(home.config)
    with (
        Tracker(
            store,
            home.path,
            name=config.name,
            key=key_of(home, config.name),
            kind=stage.name,
            params=flatten(config),
            tags={**own_tags, **code_tags, **more_tags(config)},
        ) as tracker,
        stop_on_signal(notes or (lambda text: None)) as stop,
    ):
        run.log_start(tracker, home)
        watch = run.tracked(tracker, stage, report, should_stop=stop)
        result = executor.train(stage, Work(config=config, home=home, watch=watch))
        stop.training = False
        best = result.best_model_path if stage.best_counts else None
        model = best or result.model_path
        tracker.set_tags({tags.CHECKPOINT: str(model)})
        run.log_checkpoints(tracker, config, home, stopped=result.stopped)
        if result.stopped:
            tracker.finish("KILLED")
        yield Training(
            config=config, home=home, tracker=tracker, executor=executor, result=result, model=model
        )


def _make_store(store: Store, notes: Callable[[str], None] | None) -> None:
    try:
        create_store(store)
    except VmaeError as e:
        if store.sqlite_path is None:
            raise
        # What only informs never ends training: the spool keeps what the run reports.
        if notes is not None:
            notes(f"{e}; `vmae runs sync` sends what the run reports when it is well")


@at_work
def pretrain_run(
    config: ExperimentConfig,
    store: Store,
    *,
    report: Report | None = None,
    cache_progress: CacheProgress | None = None,
    workers: WorkersConfig | None = None,
    notes: Callable[[str], None] | None = None,
    ahead: Ahead | None = None,
) -> Outcome:
    """Pre-train as `training` does; measure the reconstruction at the end."""
    given: Any = {"report": report, "cache_progress": cache_progress, "workers": workers, "notes": notes}
    given["ahead"] = ahead
    eval_loss = None
    with training(pretrain.STAGE, config, store, **given) as done:
        if done.config.data.val_csv and not done.result.stopped:
            found = measure.run(done.context())
            done.tracker.log_metrics(found, done.result.steps)
            eval_loss = found.get(measure.ERROR.name)
    return Outcome(result=done.result, eval_loss=eval_loss)


@at_work
def task_run(
    config: ExperimentConfig,
    store: Store,
    *,
    report: Report | None = None,
    cache_progress: CacheProgress | None = None,
    test_progress: Callable[[int], Progress] | None = None,
    notes: Callable[[str], None] | None = None,
    ahead: Ahead | None = None,
    workers: WorkersConfig | None = None,
) -> TaskOutcome:
    """Train the head of the configuration's job as `training` does; test the best epoch's model."""
    given: Any = {"report": report, "cache_progress": cache_progress, "workers": workers, "notes": notes}
    given["ahead"] = ahead
    stage, tested = STAGES[config.job], None
    with training(stage, config, store, more_tags=_initial, **given) as done:
        data = done.config.data
        if stage.test is not None and (data.test_csv or data.val_csv) and not done.result.stopped:
            tested = stage.test(done.context(), done.model, test_progress)
            log_tested(done.tracker, tested)
    return TaskOutcome(result=done.result, tested=tested)


def log_tested(tracker: Tracker, tested: Tested) -> None:
    """Track a test's numbers and files."""
    tracker.log_metrics({f"{tested.on.prefix}{k}": v for k, v in tested.numbers.items()}, 0)
    for file in tested.files:
        tracker.log_artifact(file, "evaluation")


def _initial(config: ExperimentConfig) -> dict[str, str]:
    return {tags.INIT: config.init or "fresh weights"}


def model_to_probe(
    store: Store, run_name: str | None, checkpoint: Path | None
) -> tuple[Path, ExperimentConfig]:
    """The folder of a model, and the configuration it was trained with (without a recipe for a bare folder:
    its shape alone is known)."""
    if checkpoint is not None:
        saved = found_config(checkpoint)
        if saved is not None:
            return checkpoint, ExperimentConfig.load(saved)
        model, _ = load_model(checkpoint)
        model = expect_model(model, VideoMAE, checkpoint)
        base = ExperimentConfig()
        c = model.config
        data = replace(base.data, frames=c.frames, size=(c.height, c.width), channels=c.channels)
        return checkpoint, replace(base, model=model.config, data=data)
    if run_name is None:
        condition = Filter(column="kind", op="=", value=pretrain.STAGE.name)
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


def probe_run(config: ExperimentConfig, store: Store, checkpoint: Path) -> tuple[ProbeResult, Answers]:
    """Probe the model at `checkpoint` and record the result as a run of its own, with who was right."""
    result, answers = probe.read_out(_to_probe(config, store, checkpoint))
    with _probe_recorded(config, store, checkpoint, "probe") as (tracker, home):
        tracker.log_metrics(probe.metrics_of(result, probe.PROBE.name), 0)
        write_answers(home.answers, answers)
    return result, Answers(tuple(answers))


def target_probe_run(config: ExperimentConfig, store: Store, checkpoint: Path, kind: Kind) -> TargetResult:
    """Probe the model at `checkpoint` for numbers or several labels; recorded as a run of its own."""
    found = probe.read_out_targets(_to_probe(config, store, checkpoint), kind)
    with _probe_recorded(config, store, checkpoint, f"{kind}-probe", task=kind) as (tracker, _):
        tracker.log_metrics({f"{probe.PROBE.name}/{k}": v for k, v in found.numbers.items()}, 0)
    return found


def low_shot_run(
    config: ExperimentConfig, store: Store, checkpoint: Path, *, shares: Sequence[float], seeds: int
) -> list[LowShot]:
    """Probe the model at `checkpoint` on shares of the labels; recorded as a run of its own."""
    found = probe.read_out_low_shot(_to_probe(config, store, checkpoint), shares, seeds)
    given = {"shares": ",".join(f"{s:g}" for s in shares), "seeds": seeds}
    with _probe_recorded(config, store, checkpoint, "low-shot", **given) as (tracker, _):
        for row in found:
            tracker.log_metrics({f"{probe.PROBE.name}/top1_of_{row.share:g}": row.top1}, 0)
    return found


def _to_probe(config: ExperimentConfig, store: Store, checkpoint: Path) -> Context:
    if not config.data.val_csv:
        raise InputError("expected a held-out list (--val), got none")
    work = Work(config=replace(config, init=str(checkpoint)), home=store.layout.run(config.name))
    create_store(store)  # one that cannot be used is said before anything is measured
    return Here(store.storage()).process.context(work)


@contextmanager
def _probe_recorded(
    config: ExperimentConfig, store: Store, checkpoint: Path, what: str, **params: Any
) -> Iterator[tuple[Tracker, RunDir]]:
    """A run of a probe's own, under a new name, as long as the block lasts."""
    name = claim_numbered(store.layout.path, f"{config.name}-{config.probe.kind}-{what}")
    home = store.layout.run(name)
    with Tracker(
        store,
        home.path,
        name=name,
        key=key_of(home, name),
        kind=probe.PROBE.name,
        params={**flatten(config), **params},
        tags={tags.CHECKPOINT: str(checkpoint.resolve()), **config_tags(config)},
    ) as tracker:
        yield tracker, home


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
        "unreadable": result.unreadable,
    }
