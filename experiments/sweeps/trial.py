"""One trial: the plan's stages one after the other, from files that make it resumable.

A trial's folder holds `progress.json` (where it is, rewritten about every second), a folder of each stage
that trains (checkpoints and the models), a `<stage>.json` with the numbers of each stage that is done
(`pretrained.json` of the first) and, last of all, `result.json`. A trial with a result is never run again; a
trial with checkpoints goes on from the newest, a stage that is done is not repeated.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vmae.core.config import flatten
from vmae.core.files import read_record, write_json
from vmae.experiments.answers import answers_of, write_answers
from vmae.experiments.layout import RunsDir, SweepDir
from vmae.experiments.provenance import shared_tags
from vmae.experiments.stages import pretrain
from vmae.experiments.stages.stage import Numbers, Stage, Watch, Work
from vmae.experiments.storage import Storage, StorageAway
from vmae.experiments.sweeps.population import Judge, adopted
from vmae.experiments.sweeps.progress import ProgressFile
from vmae.experiments.sweeps.spec import Plan, Trial
from vmae.experiments.sweeps.status import RESULT
from vmae.experiments.tracking import Store, Tracker, tags

if TYPE_CHECKING:
    from vmae.experiments.config import ExperimentConfig
    from vmae.experiments.executors import Here

Emit = Callable[[Numbers], None]


def run_trial(sweep: SweepDir, trial_id: str, store: Store, emit: Emit | None = None) -> dict[str, Any]:
    """Run a trial of the sweep's plan to its end, or return the result it already has.

    With files on an object store it works in this machine's own copy, which is copied there as it grows.

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
    emit = emit or (lambda numbers: None)
    with store.storage().own_copy(f"{sweep.name}-{trial_id}") as storage:
        own = RunsDir(storage.local).sweep(sweep.name)
        home = own.trial(trial_id)
        for path in (own.plan, own.data):
            storage.pull_file(path)
        storage.pull(home.path, fresh=True)
        done = read_record(home.result, *RESULT)
        if done is None:
            plan = Plan.load(own)
            trial = next(t for t in plan.trials if t.id == trial_id)
            running = _Running(plan, trial, own, storage, emit)
            try:
                with storage.kept_up(home.path):
                    done = running.to_the_end(replace(store, runs_dir=storage.local))
            except Exception:
                running.keep()
                raise
            storage.push(home.path)
        emit(done["metrics"])
        return dict(done)


@dataclass(frozen=True, kw_only=True)
class _Turn:
    """A stage of a trial, and which part of the trial's time it takes, as a guess (for the time left)."""

    stage: Stage
    first: bool
    start: float
    end: float

    def at(self, done: float) -> float:
        """The share of the trial that is done when so much of the stage is."""
        return self.start + done * (self.end - self.start)

    def numbers(self, values: dict[str, Any]) -> Numbers:
        """Those of an event that are metrics of the stage."""
        words = {f"{self.stage.name}/{k.replace('/', '_')}": v for k, v in values.items()}
        return {m.name: words[m.name] for m in self.stage.metrics if m.name in words}


class _Running:
    """A trial under way in this process."""

    tracker: Tracker
    executor: Here

    def __init__(self, plan: Plan, trial: Trial, sweep: SweepDir, storage: Storage, emit: Emit) -> None:
        self.plan, self.trial, self.sweep, self.storage, self.emit = plan, trial, sweep, storage, emit
        self.home = sweep.trial(trial.id)
        self.progress = ProgressFile(self.home.progress)
        self.judge = Judge(plan, trial, sweep, storage)
        self.config = adopted(self.home, trial.config(plan.base))
        self.metrics: Numbers = {}

    def keep(self) -> None:
        """Copy the trial's files to where they are kept; storage that is away is tried again later."""
        with contextlib.suppress(StorageAway):
            self.storage.push(self.home.path)

    def to_the_end(self, store: Store) -> dict[str, Any]:
        """Every stage that is not done, the result's file, and the run in the store."""
        self.progress.update(force=True)
        plan, trial, progress = self.plan, self.trial, self.progress
        try:
            with Tracker(
                store,
                self.home.path,
                name=trial.id,
                key=plan.trial_key(trial),
                kind=tags.TRIAL,
                parent_key=plan.key,
                params=flatten(trial.config(plan.base)),
                tags={
                    tags.SWEEP: plan.name,
                    tags.BASELINE: str(trial.baseline).lower(),
                    **shared_tags(trial.config(plan.base), plan.base, self.sweep),
                },
                patience_s=2.0,
            ) as self.tracker:
                self._all_stages()
                stopped = self.judge.stopped
                epoch = self.judge.epoch if stopped else None
                self.tracker.log_metrics(self.metrics, epoch or self.config.train.epochs)
                if stopped:
                    self.tracker.set_tags({tags.STOPPED: stopped})
        except Exception as e:
            text = (str(e).splitlines() or [""])[0]
            progress.update(force=True, stage="failed", error=text or type(e).__name__)
            raise
        result = {
            "id": trial.id,
            "overrides": trial.overrides,
            "seed": trial.seed,
            "baseline": trial.baseline,
            "metrics": self.metrics,
            "seconds": progress.seconds,
            "attempts": progress.attempts,
            "stopped": stopped,
        }
        self._keep_answers()
        write_json(self.home.result, result)
        end = "stopped" if stopped else "done"
        progress.update(force=True, stage=end, fraction=1.0, metrics=self.metrics)
        return result

    def _all_stages(self) -> None:
        from vmae.experiments.executors import Apart, Here

        resources = self.plan.resources
        self.executor = Apart(self.storage, resources) if resources.staged else Here(self.storage)
        for turn in self._turns():
            kept = read_record(self.home.numbers(turn.stage.record), "metrics")
            if kept is None and turn.first and (kept := self._taken_over()) is not None:
                self._conclude(turn.stage, kept)
            if kept is None:
                at = {} if turn.first else {"stage": turn.stage.name}
                self.progress.update(force=True, fraction=turn.at(0.0), metrics=self.metrics, **at)
                kept = {"metrics": self._do(turn)}
                if self.judge.stopped is None:
                    self._conclude(turn.stage, kept)
            self.metrics.update(kept["metrics"])
            if self.judge.stopped is not None:
                break
        cost = self.tracker.cost
        self.metrics["perf/tracking_share"] = cost.seconds / max(self.progress.attempt_s, 1e-9)
        self.metrics["perf/tracking_cpu_s"] = cost.cpu_s

    def _keep_answers(self) -> None:
        """Who was right in the stage that ranks the trial, beside its result: for paired comparisons."""
        found = answers_of(self.home.stage(self.plan.stages()[-1].name), seed=self.trial.seed)
        if found is not None:
            fold = -1 if self.trial.fold is None else self.trial.fold
            rows = [replace(a, seed=self.trial.seed, fold=fold) for a in found.rows]
            write_answers(self.home.answers, rows)

    def _turns(self) -> list[_Turn]:
        first, *others = self.plan.stages()
        todo = [pretrain.BASELINE if _untrained(self.trial, self.config) else first, *others]
        ends = list(itertools.accumulate((s.share(self.config) for s in todo), initial=0.0))
        return [
            _Turn(stage=stage, first=i == 0, start=ends[i] / ends[-1], end=ends[i + 1] / ends[-1])
            for i, stage in enumerate(todo)
        ]

    def _do(self, turn: _Turn) -> Numbers:
        """The stage's numbers. Where another trial's weights are taken over, it goes on from them."""
        from vmae.experiments.executors import Here

        stage = turn.stage
        while True:
            # Fresh weights are drawn by who leads the trial: that is no work.
            executor = Here(self.storage) if stage is pretrain.BASELINE else self.executor
            done = executor.run(stage, self._work(turn))
            if self.judge.donor is None:
                # A process that had nothing left to train measured no speed.
                latest = self.progress.state["metrics"]
                return {k: v or latest.get(k, v) for k, v in done.numbers.items()}
            taken = self.judge.adopt(stage.name, self.progress.state["total_steps"])
            if taken is not None:
                self.config = adopted(self.home, self.config)
                text = f"epoch {taken['epoch']}: weights of {taken['from']}, {taken['overrides']}"
                self.tracker.set_tags({tags.PBT: text})

    def _taken_over(self) -> dict[str, Any] | None:
        """The numbers of a trial that pre-trained alike and is done with it, its model copied; None without
        one. Whatever comes after the pre-training differs: the same seed gives the same weights."""
        plan, own = self.plan, self.home.stage(pretrain.STAGE.name).model
        if plan.stopping is not None or _untrained(self.trial, self.config):
            return None
        asked = _of_pretraining(self.config)
        for other in plan.trials:
            config = other.config(plan.base)
            if other.id == self.trial.id or _untrained(other, config) or _of_pretraining(config) != asked:
                continue
            home = self.sweep.trial(other.id)
            kept = read_record(home.numbers(pretrain.STAGE.record), "metrics")
            model = home.stage(pretrain.STAGE.name).model
            if kept is not None and model.is_dir():
                shutil.copytree(model, own, dirs_exist_ok=True)
                self.tracker.set_tags({tags.PRETRAINED_BY: other.id})
                return kept
        return None

    def _work(self, turn: _Turn) -> Work:
        """After the first stage all start from its model, or measure it."""
        from vmae.experiments.run import tracked

        stage, config = turn.stage, self.config
        if not turn.first:
            config = replace(config, init=str(self.home.stage(pretrain.STAGE.name).model))
        watch = Watch(part=lambda done: self.progress.update(force=True, fraction=turn.at(done)))
        if stage.trains:
            watch = tracked(
                self.tracker,
                stage,
                lambda event, values: self._hear(turn, event, values),
                should_stop=(lambda: self.judge.decided) if turn.first else None,
                decides=turn.first and self.plan.stopping is not None,
            )
        return Work(config=stage.settings(config), home=self.home.stage(stage.name), watch=watch)

    def _hear(self, turn: _Turn, event: str, values: dict[str, Any]) -> None:
        """An event of a training: into the progress file, to the other trials and to Tune."""
        progress, state = self.progress, self.progress.state
        if event == "start":
            state["total_steps"] = values["total_steps"]
            state.setdefault("began", time.time())
            progress.update(force=True, stage=turn.stage.name)
        elif event == "step":
            state.setdefault("first_step", time.time())
            # What it trained is measured in the end.
            done = values["step"] / state["total_steps"] * (1.0 if turn.stage.run is None else 0.95)
            found = turn.numbers(values)
            progress.update(
                stage=turn.stage.name, fraction=turn.at(done), epoch=values["epoch"], metrics=found
            )
        elif event == "checkpoint":
            self.keep()
        elif event == "epoch":
            found = turn.numbers(values)
            progress.update(metrics=found)
            if turn.first:
                self.judge.hear(int(values["epoch"]), found)
            self.emit(found | {f"{turn.stage.name}/epoch": values["epoch"]})

    def _conclude(self, stage: Stage, kept: dict[str, Any]) -> None:
        """Say where the stage's models are, and write down that it is done."""
        from vmae.experiments.run import log_checkpoints

        home, where = self.home.stage(stage.name), self.storage.url
        if stage.model_tag:
            self.tracker.set_tags({stage.model_tag: where(home.model)})
            log_checkpoints(self.tracker, self.config, home, under=stage.name, where=where)
        write_json(self.home.numbers(stage.record), kept)
        self.keep()


def _untrained(trial: Trial, config: ExperimentConfig) -> bool:
    """Whether a trial starts what follows pre-training from random weights."""
    return trial.baseline or config.pipeline.scratch


def _of_pretraining(config: ExperimentConfig) -> dict[str, Any]:
    """What of a trial's configuration makes a difference to its pre-training."""
    unused = (*pretrain.STAGE.unused, "name")
    return {k: v for k, v in flatten(config).items() if not k.startswith(unused)}
