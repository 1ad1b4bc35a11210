"""One trial: pre-train, measure the reconstruction, then the pipeline's stages. It leaves files that make it
resumable.

A trial's folder holds `progress.json` (where it is, rewritten about every second), `pretrain/` and
`finetune/` (training checkpoints and the models), a `<stage>.json` with the numbers of each stage that is
done (`pretrained.json` of the first) and, last of all, `result.json`. A trial with a result is never run
again; a trial with checkpoints goes on from the newest, a stage that is done is not repeated.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmae.core.config import flatten, override, to_dict
from vmae.core.files import read_json, write_json
from vmae.experiments import stages
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.layout import RunDir, RunsDir, SweepDir, is_small
from vmae.experiments.provenance import shared_tags
from vmae.experiments.storage import Mirror, StorageAway, scratch
from vmae.experiments.sweeps.spec import Plan, Trial
from vmae.experiments.sweeps.stopping import KNN, LOSS, donor, perturbed, verdict
from vmae.experiments.tracking import Store, Tracker, tags

if TYPE_CHECKING:
    import torch

    from vmae.core.model.classifier import VideoClassifier
    from vmae.core.model.videomae import VideoMAE
    from vmae.core.train.task import Report, TrainResult
    from vmae.experiments.run import Data

Emit = Callable[[dict[str, float]], None]


class ProgressFile:
    """`progress.json` of a trial: stage, share done, latest numbers; seconds, processes of all attempts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        before = read_json(path) or {}
        self._seconds_before: float = before.get("seconds", 0.0)
        self.attempts: int = before.get("attempts", 0) + 1
        self._start = time.monotonic()
        self._written = 0.0
        self.state: dict[str, Any] = {"stage": "starting", "fraction": 0.0, "metrics": {}, "error": None}

    @property
    def attempt_s(self) -> float:
        return time.monotonic() - self._start

    @property
    def seconds(self) -> float:
        return self._seconds_before + self.attempt_s

    def update(self, *, force: bool = False, metrics: dict[str, float] | None = None, **state: Any) -> None:
        """Change the state; written at most once a second unless forced."""
        self.state.update(state)
        self.state["metrics"].update(metrics or {})
        now = time.monotonic()
        if force or now - self._written >= 1.0:
            self._written = now
            facts = {
                "seconds": self.seconds,
                "attempts": self.attempts,
                "updated": time.time(),
                "host": os.uname().nodename,
                "pid": os.getpid(),
            }
            write_json(self.path, {**self.state, **facts})


@dataclass
class _Run:
    """What the stages of one trial share."""

    plan: Plan
    trial: Trial
    config: ExperimentConfig
    sweep: SweepDir
    home: Path
    tracker: Tracker
    progress: ProgressFile
    emit: Emit | None
    device: torch.device
    data: Data
    metrics: dict[str, float] = field(default_factory=dict)
    stopped: str | None = None
    """Why the trial ended before its last epoch."""
    mirror: Mirror | None = None
    """Where the trial's files go besides, with a run directory on an object store."""
    donor: str | None = None
    """pbt: whose weights to go on with."""
    done_share: float = 0.0
    """Share of the trial's time in the stages before this one, for the time left."""


def run_trial(sweep: SweepDir, trial_id: str, store: Store, emit: Emit | None = None) -> dict[str, Any]:
    """Run a trial of the sweep's plan to its end, or return the result it already has.

    Args:
        sweep: the sweep's folder, with its plan.
        trial_id: which trial.
        store: where to track.
        emit: called with the metrics of each epoch and, last, of the finished trial.

    Returns:
        What `result.json` holds: id, overrides, seed, baseline, metrics, seconds, attempts (processes that
        worked on it) and stopped (why it was ended early, or None).

    Raises:
        VmaeError: what the stages refuse; the message stays in `progress.json`, as any other error's.
    """
    if store.remote:
        return _run_mirrored(sweep, trial_id, store, emit)
    return _run(sweep, trial_id, store, emit, None)


def _run_mirrored(sweep: SweepDir, trial_id: str, store: Store, emit: Emit | None) -> dict[str, Any]:
    """`run_trial` in this machine's own copy of the sweep, which is copied to the store as it grows."""
    local = scratch(store.remote, f"{sweep.name}-{trial_id}")
    mirror = Mirror(store.remote, local)
    here = RunsDir(local).sweep(sweep.name)
    home = here.trial(trial_id).path
    for path in (here.plan, here.data):
        mirror.pull_file(path)
    mirror.pull(home, fresh=True)
    try:
        with mirror.kept_up(home):
            result = _run(here, trial_id, replace(store, runs_dir=local), emit, mirror)
    except Exception:
        with contextlib.suppress(StorageAway):
            mirror.push(home)
        raise
    mirror.push(home)
    shutil.rmtree(local)
    return result


def _run(
    sweep: SweepDir, trial_id: str, store: Store, emit: Emit | None, mirror: Mirror | None
) -> dict[str, Any]:
    plan = Plan.load(sweep)
    trial = next(t for t in plan.trials if t.id == trial_id)
    home = sweep.trial(trial_id).path
    done = read_json(home / "result.json")
    if done is not None:
        if emit is not None:
            emit(done["metrics"])
        return dict(done)
    progress = ProgressFile(home / "progress.json")
    progress.update(force=True)
    try:
        config = trial.config(plan.base)
        with Tracker(
            store,
            home,
            name=trial.id,
            key=plan.trial_key(trial),
            kind="trial",
            parent_key=plan.key,
            params=flatten(config),
            tags={
                tags.SWEEP: plan.name,
                tags.BASELINE: str(trial.baseline).lower(),
                **shared_tags(config, plan.base, sweep),
            },
            patience_s=2.0,
        ) as tracker:
            metrics, stopped = _stages(plan, trial, config, sweep, home, tracker, progress, emit, mirror)
            judged = history(sweep, trial.id)
            tracker.log_metrics(metrics, judged[-1][0] if stopped and judged else config.train.epochs)
            if stopped:
                tracker.set_tags({tags.STOPPED: stopped})
    except Exception as e:
        text = (str(e).splitlines() or [""])[0]
        progress.update(force=True, stage="failed", error=text or type(e).__name__)
        raise
    result = {
        "id": trial.id,
        "overrides": trial.overrides,
        "seed": trial.seed,
        "baseline": trial.baseline,
        "metrics": metrics,
        "seconds": progress.seconds,
        "attempts": progress.attempts,
        "stopped": stopped,
    }
    write_json(home / "result.json", result)
    progress.update(force=True, stage="stopped" if stopped else "done", fraction=1.0, metrics=metrics)
    if mirror is not None:
        mirror.push(home)
    if emit is not None:
        emit(metrics)
    return result


def _stages(
    plan: Plan,
    trial: Trial,
    config: ExperimentConfig,
    sweep: SweepDir,
    home: Path,
    tracker: Tracker,
    progress: ProgressFile,
    emit: Emit | None,
    mirror: Mirror | None,
) -> tuple[dict[str, float], str | None]:
    import torch

    from vmae.experiments import run

    this = _Run(
        plan=plan,
        trial=trial,
        config=_adopted(home, config),
        sweep=sweep,
        home=home,
        tracker=tracker,
        progress=progress,
        emit=emit,
        mirror=mirror,
        # Stages with resources of their own have the GPUs; this process only leads them.
        device=torch.device("cpu") if plan.resources.staged else run.default_device(),
        data=run.open_data(config, sweep.runs.cache),
    )
    shares = stage_shares(plan, trial)
    model = _pretrained(this, shares["pretrain"])
    this.done_share += shares["pretrain"]
    if this.stopped is None:
        _sync(this)
        tracker.set_tags({tags.CHECKPOINT: _where(this, home / "pretrain" / "model")})
        run.log_checkpoints(
            tracker, config, RunDir(home / "pretrain"), under="pretrain", where=partial(_where, this)
        )
        for stage in ("measure", *config.pipeline.then):
            progress.update(force=True, stage=stage, fraction=this.done_share, metrics=this.metrics)
            kept = read_json(home / f"{stage}.json")
            if kept is None:
                work = _finetune if stage == "finetune" else partial(_read_out, stage)
                kept = {"metrics": work(this, model, shares[stage])}
                write_json(home / f"{stage}.json", kept)
                _sync(this)
            this.metrics.update(kept["metrics"])
            this.done_share += shares[stage]
    this.metrics["perf/tracking_share"] = tracker.cost.seconds / max(progress.attempt_s, 1e-9)
    this.metrics["perf/tracking_cpu_s"] = tracker.cost.cpu_s
    return this.metrics, this.stopped


def _sync(this: _Run) -> None:
    """Copy the trial's files to the object store, if there is one; one that is away is tried again later."""
    if this.mirror is not None:
        with contextlib.suppress(StorageAway):
            this.mirror.push(this.home)


def _where(this: _Run, path: Path) -> str:
    """A path as it is found again: on the object store where there is one."""
    return str(path) if this.mirror is None else this.mirror.url(path)


def stage_shares(plan: Plan, trial: Trial) -> dict[str, float]:
    """Each stage's share of a trial's time as a guess from its epochs; used for the time left only."""
    config = trial.config(plan.base)
    weights = {s.name: s.share(config) for s in plan.stages()}
    if trial.baseline:
        weights[plan.stages()[0].name] = 0.0
    return {k: w / sum(weights.values()) for k, w in weights.items()}


def _pretrained(this: _Run, share: float) -> VideoMAE:
    """The pre-trained model: fresh weights for the baseline, the one in the folder where it is done."""
    from vmae.core.model.videomae import VideoMAE
    from vmae.core.weights.checkpoint import load_model, save_model
    from vmae.experiments import run

    model_dir = this.home / "pretrain" / "model"
    stage = read_json(this.home / "pretrained.json")
    if stage is not None:
        model, _ = load_model(model_dir)
        assert isinstance(model, VideoMAE)
        this.metrics.update(stage["metrics"])
        return model.to(this.device)
    if this.trial.baseline:
        model = run.build_model(this.config).to(this.device)
        save_model(model_dir, model, {"job": "random weights"})
        return model
    while True:
        model, result = _pretrain(this, share)
        if this.donor is None:
            break
        _adopt(this)
    this.metrics["pretrain/loss"] = result.metrics["loss"]
    speed = result.clips_per_s or this.progress.state["metrics"].get("pretrain/clips_per_s", 0.0)
    this.metrics["pretrain/clips_per_s"] = speed
    this.metrics["pretrain/skipped_steps"] = float(result.skipped_steps)
    if KNN in this.progress.state["metrics"]:
        this.metrics[KNN] = this.progress.state["metrics"][KNN]
    if this.stopped is None:
        write_json(this.home / "pretrained.json", {"metrics": this.metrics})
    return model


def _pretrain(this: _Run, share: float) -> tuple[VideoMAE, TrainResult]:
    from vmae.core.model.videomae import VideoMAE
    from vmae.core.weights.checkpoint import load_model
    from vmae.experiments import run

    def report(event: str, values: dict[str, Any]) -> None:
        progress = this.progress
        if event == "start":
            progress.state["total_steps"] = values["total_steps"]
            progress.update(force=True, stage="pretrain", began=time.time())
        elif event == "step":
            progress.state.setdefault("first_step", time.time())
            progress.update(
                stage="pretrain",
                fraction=share * values["step"] / progress.state["total_steps"],
                epoch=values["epoch"],
                metrics={LOSS: values["loss"], "pretrain/clips_per_s": values["clips_per_s"]},
            )
        elif event == "checkpoint":
            _sync(this)
        elif event == "epoch":
            numbers = {LOSS: values["loss"], "pretrain/epoch": values["epoch"]}
            if "knn_top1" in values:
                numbers[KNN] = values["knn_top1"]
                progress.update(metrics={KNN: values["knn_top1"]})
            _judge(this, int(values["epoch"]), numbers)
            if this.emit is not None:
                this.emit(numbers)

    def should_stop() -> bool:
        return this.stopped is not None or this.donor is not None

    home = this.home / "pretrain"
    if this.plan.resources.staged:
        result = _on_workers(this, "pretrain", this.config, home, report, should_stop)
        model, _ = load_model(result.model_path)
        assert isinstance(model, VideoMAE)
        return model, result
    return run.pretrain_stage(
        this.config,
        this.data,
        home,
        device=this.device,
        tracker=this.tracker,
        report=report,
        should_stop=should_stop,
    )


def _on_workers(
    this: _Run,
    stage: str,
    config: ExperimentConfig,
    home: Path,
    report: Report,
    should_stop: Callable[[], bool] | None = None,
) -> TrainResult:
    """A training stage on Ray workers of its own, which end with it."""
    from vmae.experiments import jobs
    from vmae.experiments.distributed import WorkersConfig

    wanted = this.plan.resources.of(stages.get(stage))
    workers = WorkersConfig(count=wanted.workers, cpus_per_worker=wanted.cpus, gpus_per_worker=wanted.gpus)
    return jobs.on_workers(
        config,
        replace(this.tracker.store, runs_dir=this.sweep.runs.path),
        home,
        workers,
        tracker=this.tracker,
        report=report,
        should_stop=should_stop,
        mirror=this.mirror,
        awaited=stage == "pretrain" and this.plan.stopping is not None,
    )


def _judge(this: _Run, epoch: int, numbers: dict[str, float]) -> None:
    """Write the epoch's score for the other trials, and ask the rule whether this one goes on."""
    stopping = this.plan.stopping
    if stopping is None or stopping.metric not in numbers or epoch >= this.config.train.epochs:
        return
    if this.stopped is not None or this.donor is not None:
        return  # decided; the workers have not heard of it yet
    own = [(e, v) for e, v in history(this.sweep, this.trial.id) if e < epoch]
    own.append((epoch, stopping.score(numbers[stopping.metric])))
    write_json(this.home / "history.json", own)
    if this.mirror is not None:
        with contextlib.suppress(StorageAway):
            this.mirror.push_file(this.home / "history.json")
            # The others' scores; its own files here are newer than there.
            for other in this.plan.trials:
                if other.id != this.trial.id:
                    this.mirror.pull(this.sweep.trial(other.id).path, only=is_small)
    others = {
        t.id: history(this.sweep, t.id)
        for t in this.plan.trials
        if t.seed == this.trial.seed and not t.baseline and t.id != this.trial.id
    }
    this.stopped = verdict(stopping, own, others)
    this.donor = donor(stopping, this.trial.id, own, others)


def history(sweep: SweepDir, trial_id: str) -> list[tuple[int, float]]:
    """A trial's scores by epoch, as the stopping rules read them."""
    return [(int(e), float(v)) for e, v in read_json(sweep.trial(trial_id).history) or []]


def _adopt(this: _Run) -> None:
    """pbt: take the donor's newest checkpoint and its settings, perturbed.

    Not its last one: of a donor that is through (more trials than run side by side) the one before is taken,
    for weights that are not trained on would only repeat the donor.
    """
    assert this.donor is not None
    source = this.sweep.trial(this.donor).path
    if this.mirror is not None:
        this.mirror.pull(source, fresh=True)
    epoch = history(this.sweep, this.trial.id)[-1][0]
    donor_trial = next(t for t in this.plan.trials if t.id == this.donor)
    states = this.home / "pretrain" / "checkpoints"
    taken = _copy_newest(source / "pretrain" / "checkpoints", states, this.progress.state["total_steps"])
    if taken:
        # The donor's best epoch is no epoch of this trial's weights, and the other way round.
        shutil.rmtree(this.home / "pretrain" / "best", ignore_errors=True)
        values = {
            p: flatten(_adopted(source, donor_trial.config(this.plan.base)))[p] for p in this.plan.params
        }
        values = perturbed(values, this.trial.id, epoch)
        before = read_json(this.home / "adopted.json") or []
        write_json(
            this.home / "adopted.json", [*before, {"epoch": epoch, "from": this.donor, "overrides": values}]
        )
        this.config = _adopted(this.home, this.config)
        this.tracker.set_tags({tags.PBT: f"epoch {epoch}: weights of {this.donor}, {values}"})
    this.donor = None


def _adopted(home: Path, config: ExperimentConfig) -> ExperimentConfig:
    """The configuration with what pbt last took over."""
    steps = read_json(home / "adopted.json")
    return override(config, steps[-1]["overrides"]) if steps else config


def _copy_newest(source: Path, target: Path, before: int) -> bool:
    """Replace the checkpoints in `target` by the newest of `source` under a step; False without one."""
    for newest in sorted(source.glob("step-*"), reverse=True):
        if int(newest.name.removeprefix("step-")) >= before:
            continue
        temporary = target / f".copy-{newest.name}"
        try:
            shutil.copytree(newest, temporary)
        except (OSError, shutil.Error):
            shutil.rmtree(temporary, ignore_errors=True)  # its owner has just deleted it
            continue
        for old in target.glob("step-*"):
            shutil.rmtree(old)
        temporary.rename(target / newest.name)
        return True
    return False


def _read_out(stage: str, this: _Run, model: VideoMAE, share: float) -> dict[str, float]:
    """A stage that trains no encoder (measure, probe, knn): its metrics."""
    start = this.done_share

    def tell(part: float) -> None:
        this.progress.update(force=True, fraction=start + part * share)

    if this.plan.resources.staged:
        return _elsewhere(this, stage, stage, this.config)
    return _measured(stage, model, this.config, this.data, this.device, tell)


def _measured(
    stage: str,
    model: VideoMAE,
    config: ExperimentConfig,
    data: Data,
    device: torch.device,
    tell: Callable[[float], None] | None = None,
) -> dict[str, float]:
    from vmae.experiments import run

    if stage == "measure":
        return {"eval/loss": run.measure_reconstruction(model, config, data, device)}
    if stage == "knn":
        config = replace(config, probe=replace(config.probe, kind="knn"))
    result = run.probe_stage(model, config, data, device=device, progress=tell)
    found = run.probe_metrics(result)
    return {k.replace("probe/", "knn/"): v for k, v in found.items()} if stage == "knn" else found


def _elsewhere(this: _Run, stage: str, work: str, config: ExperimentConfig) -> dict[str, float]:
    """Run `work` (a stage that measures, or `evaluate`) as a Ray task with the resources of `stage`."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    wanted = this.plan.resources.of(stages.get(stage))
    task = ray.remote(_task).options(
        num_cpus=wanted.cpus,
        num_gpus=wanted.gpus,
        max_retries=3,
        # Out of the trial's own placement, which holds nothing.
        scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=None),  # type: ignore[arg-type]
    )
    runs_dir, uri = this.sweep.runs.path, "" if this.mirror is None else this.mirror.uri
    home, threads = this.home.relative_to(runs_dir).as_posix(), max(1, int(wanted.cpus))
    found = ray.get(task.remote(work, to_dict(config), str(runs_dir), uri, home, threads))
    return dict(found)


def _task(
    work: str, config: dict[str, Any], runs_dir: str, uri: str, home: str, threads: int
) -> dict[str, float]:
    """What `_elsewhere` runs; `home` is the trial's folder in the run directory (or in that at `uri`)."""
    if not uri:
        return _task_in(Path(runs_dir), work, config, home, threads)
    local = scratch(uri, f"{home.replace('/', '-')}-{work}")
    mirror = Mirror(uri, local)
    mirror.pull(local / home, fresh=True, only=lambda name: "/model/" in name)
    found = _task_in(local, work, config, home, threads)
    if work == "evaluate":
        mirror.push(local / home / "finetune" / "evaluation")
    shutil.rmtree(local)
    return found


def _task_in(runs_dir: Path, work: str, config: dict[str, Any], home: str, threads: int) -> dict[str, float]:
    import torch

    from vmae.core.config import from_dict
    from vmae.core.model.classifier import VideoClassifier
    from vmae.core.model.videomae import VideoMAE
    from vmae.core.weights.checkpoint import load_model
    from vmae.experiments import run

    torch.set_num_threads(threads)
    settings = from_dict(ExperimentConfig, config)
    part = runs_dir / home / ("finetune" if work == "evaluate" else "pretrain")
    loaded, _ = load_model(part / "model")
    device, cache = run.default_device(), RunsDir(runs_dir).cache
    loaded.to(device)
    if work == "evaluate":
        assert isinstance(loaded, VideoClassifier)
        return _evaluated(loaded, settings, part / "evaluation", cache, device)
    assert isinstance(loaded, VideoMAE)
    return _measured(work, loaded, settings, run.open_data(settings, cache), device)


def _evaluated(
    model: VideoClassifier, config: ExperimentConfig, folder: Path, cache: Path, device: torch.device
) -> dict[str, float]:
    from vmae.experiments.finetuning import evaluate_stage

    found = evaluate_stage(model, config, folder, cache, device=device)
    return {
        "finetune/top1": found.top1,
        "finetune/top5": found.top5,
        "finetune/mean_class": found.mean_class,
        "finetune/chance": 1 / model.num_classes,
    }


def _finetune(this: _Run, model: VideoMAE, share: float) -> dict[str, float]:
    from vmae.core.model.classifier import VideoClassifier
    from vmae.core.video.clips import ClipDataset
    from vmae.core.weights.checkpoint import load_model
    from vmae.experiments import run
    from vmae.experiments.finetuning import finetune_stage

    start, progress = this.done_share, this.progress

    def report(event: str, values: dict[str, Any]) -> None:
        if event == "start":
            progress.state["total_steps"] = values["total_steps"]
        elif event == "step":
            progress.update(
                stage="finetune",
                fraction=start + 0.95 * share * values["step"] / progress.state["total_steps"],
                epoch=values["epoch"],
                metrics={"finetune/loss": values["loss"]},
            )
        elif event == "checkpoint":
            _sync(this)
        elif event == "epoch" and this.emit is not None:
            this.emit({"finetune/loss": values["loss"], "finetune/epoch": values["epoch"]})

    plain = this.data.train_plain
    pipeline, seed = this.config.pipeline, this.config.train.seed
    # The whole training list, whatever share was pre-trained on.
    labelled = replace(
        this.data, train=ClipDataset(plain.samples, plain.config, "train", seed, cache=plain.cache)
    )
    tuned = replace(
        this.config,
        job="finetune",
        optim=pipeline.finetune_optim,
        train=replace(pipeline.finetune_train, seed=seed),
    )
    home = this.home / "finetune"
    if this.plan.resources.staged:
        whole_list = replace(tuned.data, train_share=1.0)
        started = replace(tuned, data=whole_list, init=str(this.home / "pretrain" / "model"))
        result = _on_workers(this, "finetune", started, home, report)
    else:
        _, result = finetune_stage(
            tuned, labelled, home, init=model, device=this.device, tracker=this.tracker, report=report
        )
    this.tracker.set_tags({tags.CLASSIFIER: _where(this, result.model_path)})
    run.log_checkpoints(this.tracker, tuned, RunDir(home), under="finetune", where=partial(_where, this))
    # The last weights, not those of the best epoch: that epoch would be chosen on the list measured here.
    if this.plan.resources.staged:
        found = _elsewhere(this, "finetune", "evaluate", tuned)
    else:
        last, _ = load_model(result.model_path)
        assert isinstance(last, VideoClassifier)
        cache = this.sweep.runs.cache
        found = _evaluated(last, tuned, home / "evaluation", cache, this.device)
    return {**found, "finetune/loss": result.metrics["loss"]}
