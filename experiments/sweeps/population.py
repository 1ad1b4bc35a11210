"""A trial among the others: it writes its scores for them, reads theirs, and decides whether it goes on."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

from vmae.core.config import flatten, override
from vmae.core.errors import VmaeError
from vmae.core.files import read_json, write_json
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.layout import SweepDir, TrialDir, is_small
from vmae.experiments.stages.stage import Numbers
from vmae.experiments.storage import Storage, StorageAway
from vmae.experiments.sweeps.spec import Plan, Trial
from vmae.experiments.sweeps.stopping import donor, perturbed, verdict


class Judge:
    """Asks the plan's stopping rule after each epoch of a trial's first stage.

    `stopped`: why the trial ends before its last epoch. `donor`: whose weights it goes on with (pbt).
    """

    def __init__(self, plan: Plan, trial: Trial, sweep: SweepDir, storage: Storage) -> None:
        self._plan, self._trial, self._sweep, self._storage = plan, trial, sweep, storage
        self._home = sweep.trial(trial.id)
        self._epochs = trial.config(plan.base).train.epochs
        self.stopped: str | None = None
        self.donor: str | None = None

    @property
    def decided(self) -> bool:
        """Whether the training is to end now."""
        return self.stopped is not None or self.donor is not None

    @property
    def epoch(self) -> int | None:
        """The last epoch with a score; None before the first."""
        scores = history(self._sweep, self._trial.id)
        return scores[-1][0] if scores else None

    def hear(self, epoch: int, numbers: Numbers) -> None:
        """Write the epoch's score for the other trials, and ask the rule whether this one goes on."""
        rule = self._plan.stopping
        if rule is None or rule.metric not in numbers or epoch >= self._epochs:
            return
        if self.decided:
            return  # the workers have not heard of it yet
        own = [(e, v) for e, v in history(self._sweep, self._trial.id) if e < epoch]
        own.append((epoch, rule.score(numbers[rule.metric])))
        write_json(self._home.history, own)
        rivals = [t for t in self._plan.trials if t.id != self._trial.id]
        with contextlib.suppress(StorageAway):
            self._storage.push_file(self._home.history)
            # The others' scores; its own files here are newer than there.
            for other in rivals:
                self._storage.pull(self._sweep.trial(other.id).path, only=is_small)
        others = {
            t.id: history(self._sweep, t.id) for t in rivals if t.seed == self._trial.seed and not t.baseline
        }
        self.stopped = verdict(rule, own, others)
        self.donor = donor(rule, self._trial.id, own, others)

    def adopt(self, stage: str, total_steps: int) -> dict[str, Any] | None:
        """pbt: take the donor's newest checkpoint of a stage and its settings, perturbed: what was taken.

        Not its last one: of a donor that is through (more trials than run side by side) the one before is
        taken, for weights that are not trained on would only repeat the donor. None where there was none.
        """
        assert self.donor is not None
        name, self.donor = self.donor, None
        source, home = self._sweep.trial(name), self._home.stage(stage)
        self._storage.pull(source.path, fresh=True)
        if not _copy_newest(source.stage(stage).checkpoints, home.checkpoints, total_steps):
            return None
        # The donor's best epoch is no epoch of this trial's weights, and the other way round.
        shutil.rmtree(home.best, ignore_errors=True)
        theirs = next(t for t in self._plan.trials if t.id == name).config(self._plan.base)
        settings = flatten(adopted(source, theirs))
        taken = {
            "epoch": self.epoch,
            "from": name,
            "overrides": perturbed(
                {p: settings[p] for p in self._plan.params}, self._trial.id, self.epoch or 0
            ),
        }
        write_json(self._home.adopted, [*_steps(self._home), taken])
        return taken


def history(sweep: SweepDir, trial_id: str) -> list[tuple[int, float]]:
    """A trial's scores by epoch, as the stopping rules read them."""
    try:
        return [(int(e), float(v)) for e, v in read_json(sweep.trial(trial_id).history) or []]
    except (ValueError, TypeError):
        return []  # damaged: as a trial that has none yet


def adopted(home: TrialDir, config: ExperimentConfig) -> ExperimentConfig:
    """The configuration with what pbt last took over."""
    steps = _steps(home)
    return override(config, steps[-1]["overrides"]) if steps else config


def _steps(home: TrialDir) -> list[dict[str, Any]]:
    """What pbt took over so far; VmaeError where that cannot be read: it would be another experiment."""
    try:
        steps = read_json(home.adopted) or []
        whole = isinstance(steps, list) and all(isinstance(s["overrides"], dict) for s in steps)
    except (ValueError, TypeError, KeyError):
        whole = False
    if not whole:
        raise VmaeError(
            f"{home.adopted}: expected what pbt took over, got a damaged file; remove {home.path} to run the "
            "trial from the beginning"
        )
    return list(steps)


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
