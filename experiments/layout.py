"""Every path under a run directory.

RUNS/mlflow.db, artifacts/          the default store
     cache/                         decoded clips, parts of long evaluations, models from elsewhere
     NAME/                          a run (`RunDir`)
     sweeps/NAME/                   a sweep (`SweepDir`)
     sweeps/NAME/trials/ID/         a trial (`TrialDir`), its stages' folders inside (`RunDir` again)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SPOOL, OFFSET, REFUSED = "tracking.jsonl", "tracking.offset", "tracking.refused.jsonl"
"""What a run reported; how many bytes of that were sent; events the store refused, each with why."""
_CONFIG, _PLAN, _ANSWERS = "config.yaml", "plan.json", "answers.csv"
_SWEEPS, _TRIALS, _CACHE, _ARTIFACTS = "sweeps", "trials", "cache", "artifacts"
TRIED = "tried"
"""Folder of a cache with what was tried inside lists, and the answers."""
_DATABASE, _SERVED = "mlflow.db", "served"
NOT_RUNS = (_ARTIFACTS, _CACHE)
"""Folders of a run directory in which no run lies."""
RESERVED = (_SWEEPS, _CACHE, _ARTIFACTS, _DATABASE)
"""What stands beside the runs, and is no name of one."""
NO_MODELS = (*NOT_RUNS, "checkpoints", "tune", _SERVED)
"""Folders, at any depth, that hold no model to look at."""


class Inside:
    """Where a `Folder` has something, by its name there."""

    def __init__(self, *names: str) -> None:
        self._names = names

    def __get__(self, home: Folder, of: type) -> Path:
        return home.path.joinpath(*self._names)


@dataclass(frozen=True)
class Folder:
    """One with a layout."""

    path: Path


class Tracked(Folder):
    """A folder whose run is tracked: its spool and what belongs to that."""

    spool, offset, refused = Inside(SPOOL), Inside(OFFSET), Inside(REFUSED)
    sending = Inside(SPOOL.replace(".jsonl", ".lock"))
    """Locked by the process that sends the spool."""
    working = Inside(".working")
    """Locked by the process that works on the run."""
    pictures = Inside("pictures")

    @property
    def folds(self) -> FoldsDir:
        return FoldsDir(self.path / "folds")


class RunDir(Tracked):
    """A run's folder, or that of a trial's training stage: configuration, checkpoints, models, results."""

    config = Inside(_CONFIG)
    environment = Inside("environment.txt")
    checkpoints = Inside("checkpoints")
    """Training states, from which a run goes on (`vmae.core.train.state`)."""
    checkpoints_list = Inside("checkpoints.json")
    """Where each checkpoint lies, its size and epoch: the artifact of that name."""
    model, best = Inside("model"), Inside("best")
    """The last weights, and those of the best epoch."""
    answers = Inside(_ANSWERS)
    """Who was right, a line a video and seed (`vmae.experiments.answers`)."""
    events = Inside("events.jsonl")
    """What rank 0 of several workers reported."""
    result = Inside("result.json")
    """What the training on workers returned."""
    stop = Inside("STOP")
    """There when the workers are asked to stop."""
    heard = Inside("heard.json")
    """The last epoch of which the process that started the workers has heard."""
    served = Inside(_SERVED)
    """What MLflow's server is given (`vmae serve`)."""
    ray = Inside("ray")
    """Ray Train's own files."""

    @property
    def evaluation(self) -> EvaluationDir:
        return EvaluationDir(self.path / "evaluation")


class EvaluationDir(Folder):
    """What measuring a model on its test views left."""

    predictions, confusion = Inside("predictions.csv"), Inside("confusion.png")
    metrics = Inside("metrics.json")


class FoldsDir(Folder):
    """The lists of a run or sweep over folds: all videos, their folds, and two lists for each."""

    plan, table = Inside(_PLAN), Inside("folds.csv")
    listed, classes = Inside("all.csv"), Inside("classes.txt")

    def train(self, fold: int) -> Path:
        return self.path / f"fold{fold}.train.csv"

    def test(self, fold: int) -> Path:
        return self.path / f"fold{fold}.test.csv"


class RunsDir(Folder):
    """The run directory of a project."""

    database = Inside(_DATABASE)
    artifacts = Inside(_ARTIFACTS)
    making = Inside(".store.lock")
    """Locked while the store is being made or migrated."""
    cache = Inside(_CACHE)
    """Decoded clips, kept between trials and runs."""
    parts = Inside(_CACHE, "parts")
    """Finished parts of evaluations and features that are under way."""
    tried = Inside(_CACHE, TRIED)
    """What was tried inside training lists (`tryout`, `own_pretraining`)."""
    sweeps = Inside(_SWEEPS)

    def artifacts_of(self, run_id: str) -> Path:
        """Where MLflow keeps one run's artifacts."""
        return self.artifacts / run_id / _ARTIFACTS

    def model_copy(self, source: str) -> Path:
        """Where the model of a URI or of another form is kept."""
        return self.cache / "models" / hashlib.sha256(source.encode()).hexdigest()[:16]

    def run(self, name: str) -> RunDir:
        return RunDir(self.path / name)

    def runs(self) -> list[str]:
        """The names of runs with a configuration, sorted."""
        return sorted(p.parent.name for p in self.path.glob(f"*/{_CONFIG}"))

    def sweep(self, name: str) -> SweepDir:
        return SweepDir(self.sweeps / name)

    def all_sweeps(self) -> list[SweepDir]:
        """Sweeps with a plan, by name."""
        return [SweepDir(p.parent) for p in sorted(self.sweeps.glob(f"*/{_PLAN}"))]

    def spools(self) -> Iterator[Tracked]:
        """Every folder of a run with a spool, at any depth, in the order of paths."""
        found = (p for p in sorted(self.path.rglob(SPOOL)) if self.cache not in p.parents)
        return (Tracked(p.parent) for p in found)


class SweepDir(Tracked):
    """A sweep's folder in a run directory."""

    plan = Inside(_PLAN)
    data = Inside("data.json")
    """The digest of the sweep's data, for its trials."""
    alive = Inside("alive.json")
    """When the driver was last seen, and whether it has ended."""
    timing = Inside("timing.json")
    """What the machinery took of the last attempt."""
    trials = Inside(_TRIALS)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def runs(self) -> RunsDir:
        """The run directory it lies in."""
        return RunsDir(self.path.parents[1])

    def trial(self, trial_id: str) -> TrialDir:
        return TrialDir(self.trials / trial_id)

    def all_trials(self) -> list[TrialDir]:
        """Trials that were begun, by id."""
        return [TrialDir(p) for p in sorted(self.trials.glob("*")) if p.is_dir()]

    def figure(self, name: str) -> Path:
        return self.path / f"{name}.png"


class TrialDir(Tracked):
    """A trial's folder in a sweep's."""

    progress = Inside("progress.json")
    """Where it is, rewritten about every second."""
    result = Inside("result.json")
    """Written last of all: a trial that has it is done."""
    history = Inside("history.json")
    """Its scores by epoch, which the stopping rules of other trials read."""
    adopted = Inside("adopted.json")
    """pbt: whose weights and which settings it took over, and when."""
    answers = Inside(_ANSWERS)
    """Who was right in the stage that ranks it (`vmae.experiments.answers`)."""

    def numbers(self, name: str) -> Path:
        """The metrics of a stage that is done (`Stage.kept_as`)."""
        return self.path / f"{name}.json"

    def stage(self, name: str) -> RunDir:
        """The folder of a training stage."""
        return RunDir(self.path / name)


def is_small(name: str) -> bool:
    """Whether a file, by its name from the run directory on, is a sweep's or a trial's own small one.

    sweeps/NAME/plan.json, sweeps/NAME/trials/ID/progress.json and answers.csv; nothing of a stage's or of
    Tune's.
    """
    parts = name.split("/")
    return (name.endswith(".json") or parts[-1] == _ANSWERS) and (
        len(parts) == 3 or (len(parts) == 5 and parts[2] == _TRIALS)
    )


def is_of_spool(name: str) -> bool:
    """Whether a file belongs to a run's spool, by its name from the run directory on."""
    return name.rpartition("/")[2] in (SPOOL, OFFSET, REFUSED)


def is_of_sweeps_spool(name: str) -> bool:
    """`is_of_spool`, of a sweep's own and not of its trials'."""
    return is_of_spool(name) and f"/{_TRIALS}/" not in name


def found_config(path: Path) -> Path | None:
    """The configuration beside a model's folder or above it, as runs have it; None where there is none."""
    for folder in (path, *path.parents):
        if (folder / _CONFIG).is_file():
            return folder / _CONFIG
    return None
