"""One trial: pre-train, measure the reconstruction, probe. It leaves files that make it resumable.

A trial's folder holds `progress.json` (where it is, rewritten about every second), `pretrain/` (training
checkpoints and the model), `pretrained.json` (the first stage's numbers, once it is done) and, last of all,
`result.json`. A trial with a result is never run again; a trial with checkpoints goes on from the newest.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vmae.core.config import flatten
from vmae.core.errors import VmaeError
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.files import read_json, write_json
from vmae.experiments.provenance import shared_tags
from vmae.experiments.sweeps.spec import Plan, Trial
from vmae.experiments.tracking import Store, Tracker

# Shares of a trial's time by stage, for the estimate of the time left only.
_PRETRAIN_SHARE, _MEASURE_SHARE = 0.88, 0.02
Emit = Callable[[dict[str, float]], None]


def trial_dir(folder: Path, trial_id: str) -> Path:
    """Where a trial keeps its files."""
    return folder / "trials" / trial_id


class ProgressFile:
    """`progress.json` of a trial: stage, share done, latest numbers, seconds spent over all attempts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        before = read_json(path) or {}
        self._seconds_before: float = before.get("seconds", 0.0)
        self._start = time.monotonic()
        self._written = 0.0
        self.state: dict[str, Any] = {"stage": "starting", "fraction": 0.0, "metrics": {}, "error": None}

    @property
    def seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._start

    def update(self, *, force: bool = False, metrics: dict[str, float] | None = None, **state: Any) -> None:
        """Change the state; written at most once a second unless forced."""
        self.state.update(state)
        self.state["metrics"].update(metrics or {})
        now = time.monotonic()
        if force or now - self._written >= 1.0:
            self._written = now
            write_json(self.path, {**self.state, "seconds": self.seconds, "updated": time.time()})


def run_trial(folder: Path, trial_id: str, store: Store, emit: Emit | None = None) -> dict[str, Any]:
    """Run a trial of the plan in `folder` to its end, or return the result it already has.

    Args:
        folder: the sweep's folder, with `plan.json`.
        trial_id: which trial.
        store: where to track.
        emit: called with the metrics of each epoch and, last, of the finished trial.

    Returns:
        What `result.json` holds: id, overrides, seed, baseline, metrics, seconds.

    Raises:
        VmaeError: whatever the stages refuse; the message stays in `progress.json`.
    """
    plan = Plan.load(folder)
    trial = next(t for t in plan.trials if t.id == trial_id)
    home = trial_dir(folder, trial_id)
    done = read_json(home / "result.json")
    if done is not None:
        if emit is not None:
            emit(done["metrics"])
        return dict(done)
    progress = ProgressFile(home / "progress.json")
    progress.update(force=True)
    config = trial.config(plan.base)
    try:
        with Tracker(
            store,
            home,
            name=trial.id,
            key=plan.trial_key(trial),
            kind="trial",
            parent_key=plan.key,
            params=flatten(config),
            tags={
                "vmae.sweep": plan.name,
                "vmae.baseline": str(trial.baseline).lower(),
                **shared_tags(config, plan.base, folder),
            },
        ) as tracker:
            metrics = _stages(plan, trial, config, folder, home, tracker, progress, emit)
            tracker.log_metrics(metrics, config.train.epochs)
            tracker.set_tags({"vmae.checkpoint": str(home / "pretrain" / "model")})
    except VmaeError as e:
        progress.update(force=True, stage="failed", error=str(e))
        raise
    result = {
        "id": trial.id,
        "overrides": trial.overrides,
        "seed": trial.seed,
        "baseline": trial.baseline,
        "metrics": metrics,
        "seconds": progress.seconds,
    }
    write_json(home / "result.json", result)
    progress.update(force=True, stage="done", fraction=1.0, metrics=metrics)
    if emit is not None:
        emit(metrics)
    return result


def _stages(
    plan: Plan,
    trial: Trial,
    config: ExperimentConfig,
    folder: Path,
    home: Path,
    tracker: Tracker,
    progress: ProgressFile,
    emit: Emit | None,
) -> dict[str, float]:
    from vmae.core.checkpoint import load_model, save_model
    from vmae.core.videomae import VideoMAE
    from vmae.experiments import run

    device = run.default_device()
    data = run.open_data(config, cache_dir(store_runs_dir(folder)))
    model_dir = home / "pretrain" / "model"
    metrics: dict[str, float] = {}
    stage = read_json(home / "pretrained.json")
    if stage is not None:
        model, _ = load_model(model_dir)
        assert isinstance(model, VideoMAE)
        model.to(device)
        metrics.update(stage["metrics"])
    elif trial.baseline:
        model = run.build_model(config).to(device)
        save_model(model_dir, model, {"job": "random weights"})
    else:

        def report(event: str, values: dict[str, Any]) -> None:
            if event == "start":
                progress.state["total_steps"] = values["total_steps"]
            elif event == "step":
                share = values["step"] / progress.state["total_steps"]
                progress.update(
                    stage="pretrain",
                    fraction=_PRETRAIN_SHARE * share,
                    epoch=values["epoch"],
                    metrics={"pretrain/loss": values["loss"], "pretrain/clips_per_s": values["clips_per_s"]},
                )
            elif event == "epoch" and emit is not None:
                emit({"pretrain/loss": values["loss"], "pretrain/epoch": values["epoch"]})

        model, result = run.pretrain_stage(
            config, data, home / "pretrain", device=device, tracker=tracker, report=report
        )
        metrics["pretrain/loss"] = result.metrics["loss"]
        speed = result.clips_per_s or progress.state["metrics"].get("pretrain/clips_per_s", 0.0)
        metrics["pretrain/clips_per_s"] = speed
        metrics["pretrain/skipped_steps"] = float(result.skipped_steps)
        write_json(home / "pretrained.json", {"metrics": metrics})
    tracker.set_tags({"vmae.checkpoint": str(model_dir)})
    progress.update(force=True, stage="measure", fraction=_PRETRAIN_SHARE, metrics=metrics)
    metrics["eval/loss"] = run.measure_reconstruction(model, config, data, device)
    start = _PRETRAIN_SHARE + _MEASURE_SHARE
    progress.update(force=True, stage="probe", fraction=start, metrics=metrics)
    probed = run.probe_stage(
        model,
        config,
        data,
        device=device,
        progress=lambda share: progress.update(force=True, fraction=start + share * (1 - start)),
    )
    metrics.update(run.probe_metrics(probed))
    metrics["perf/tracking_share"] = tracker.seconds / max(progress.seconds, 1e-9)
    return metrics


def store_runs_dir(folder: Path) -> Path:
    """The run directory a sweep's folder lies in: `<runs>/sweeps/<name>`."""
    return folder.parent.parent


def cache_dir(runs_dir: Path) -> Path:
    """Where decoded clips are kept between trials and runs."""
    return runs_dir / "cache"
