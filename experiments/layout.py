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
_CONFIG, _PLAN = "config.yaml", "plan.json"
_SWEEPS, _TRIALS, _CACHE, _ARTIFACTS = "sweeps", "trials", "cache", "artifacts"
_DATABASE = "mlflow.db"
NOT_RUNS = (_ARTIFACTS, _CACHE)
"""Folders of a run directory in which no run lies."""
RESERVED = (_SWEEPS, _CACHE, _ARTIFACTS, _DATABASE)
"""What stands beside the runs, and is no name of one."""
NO_MODELS = (*NOT_RUNS, "checkpoints", "tune")
"""Folders, at any depth, that hold no model to look at."""


@dataclass(frozen=True)
class Tracked:
    """A folder whose run is tracked: its spool and what belongs to that."""

    path: Path

    @property
    def spool(self) -> Path:
        return self.path / SPOOL

    @property
    def offset(self) -> Path:
        return self.path / OFFSET

    @property
    def refused(self) -> Path:
        return self.path / REFUSED

    @property
    def sending(self) -> Path:
        """Locked by the process that sends the spool."""
        return self.spool.with_suffix(".lock")

    @property
    def working(self) -> Path:
        """Locked by the process that works on the run."""
        return self.path / ".working"

    @property
    def pictures(self) -> Path:
        return self.path / "pictures"


@dataclass(frozen=True)
class RunDir(Tracked):
    """A run's folder, or that of a trial's training stage: configuration, checkpoints, models, results."""

    @property
    def config(self) -> Path:
        return self.path / _CONFIG

    @property
    def environment(self) -> Path:
        return self.path / "environment.txt"

    @property
    def checkpoints(self) -> Path:
        """Training states, from which a run goes on (`vmae.core.train.state`)."""
        return self.path / "checkpoints"

    @property
    def checkpoints_list(self) -> Path:
        """Where each checkpoint lies, its size and epoch: the artifact of that name."""
        return self.path / "checkpoints.json"

    @property
    def model(self) -> Path:
        """The last weights."""
        return self.path / "model"

    @property
    def best(self) -> Path:
        """The weights of the best epoch."""
        return self.path / "best"

    @property
    def evaluation(self) -> Path:
        """Predictions, confusion and numbers of a classifier."""
        return self.path / "evaluation"

    @property
    def answers(self) -> Path:
        """Who was right, a line a video and seed (`vmae.experiments.answers`)."""
        return self.path / "answers.csv"

    @property
    def folds(self) -> Path:
        """The lists of a run over folds."""
        return self.path / "folds"

    @property
    def events(self) -> Path:
        """What rank 0 of several workers reported."""
        return self.path / "events.jsonl"

    @property
    def result(self) -> Path:
        """What the training on workers returned."""
        return self.path / "result.json"

    @property
    def stop(self) -> Path:
        """There when the workers are asked to stop."""
        return self.path / "STOP"

    @property
    def heard(self) -> Path:
        """The last epoch of which the process that started the workers has heard."""
        return self.path / "heard.json"

    @property
    def ray(self) -> Path:
        """Ray Train's own files."""
        return self.path / "ray"


@dataclass(frozen=True)
class RunsDir:
    """The run directory of a project."""

    path: Path

    @property
    def database(self) -> Path:
        return self.path / _DATABASE

    @property
    def artifacts(self) -> Path:
        return self.path / _ARTIFACTS

    def artifacts_of(self, run_id: str) -> Path:
        """Where MLflow keeps one run's artifacts."""
        return self.artifacts / run_id / _ARTIFACTS

    @property
    def making(self) -> Path:
        """Locked while the store is being made or migrated."""
        return self.path / ".store.lock"

    @property
    def cache(self) -> Path:
        """Decoded clips, kept between trials and runs."""
        return self.path / _CACHE

    @property
    def parts(self) -> Path:
        """Finished parts of evaluations and features that are under way."""
        return self.cache / "parts"

    def model_copy(self, source: str) -> Path:
        """Where the model of a URI or of another form is kept."""
        return self.cache / "models" / hashlib.sha256(source.encode()).hexdigest()[:16]

    @property
    def sweeps(self) -> Path:
        return self.path / _SWEEPS

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
        """Every folder with a spool, at any depth, in the order of paths."""
        return (Tracked(p.parent) for p in sorted(self.path.rglob(SPOOL)))


@dataclass(frozen=True)
class SweepDir(Tracked):
    """A sweep's folder in a run directory."""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def runs(self) -> RunsDir:
        """The run directory it lies in."""
        return RunsDir(self.path.parents[1])

    @property
    def plan(self) -> Path:
        return self.path / _PLAN

    @property
    def data(self) -> Path:
        """The digest of the sweep's data, for its trials."""
        return self.path / "data.json"

    @property
    def alive(self) -> Path:
        """When the driver was last seen, and whether it has ended."""
        return self.path / "alive.json"

    @property
    def timing(self) -> Path:
        """What the machinery took of the last attempt."""
        return self.path / "timing.json"

    @property
    def trials(self) -> Path:
        return self.path / _TRIALS

    def trial(self, trial_id: str) -> TrialDir:
        return TrialDir(self.trials / trial_id)

    def all_trials(self) -> list[TrialDir]:
        """Trials that were begun, by id."""
        return [TrialDir(p) for p in sorted(self.trials.glob("*")) if p.is_dir()]

    def figure(self, name: str) -> Path:
        return self.path / f"{name}.png"


@dataclass(frozen=True)
class TrialDir(Tracked):
    """A trial's folder in a sweep's."""

    @property
    def progress(self) -> Path:
        """Where it is, rewritten about every second."""
        return self.path / "progress.json"

    @property
    def result(self) -> Path:
        """Written last of all: a trial that has it is done."""
        return self.path / "result.json"

    @property
    def history(self) -> Path:
        """Its scores by epoch, which the stopping rules of other trials read."""
        return self.path / "history.json"

    @property
    def adopted(self) -> Path:
        """pbt: whose weights and which settings it took over, and when."""
        return self.path / "adopted.json"

    def numbers(self, name: str) -> Path:
        """The metrics of a stage that is done (`Stage.kept_as`)."""
        return self.path / f"{name}.json"

    def stage(self, name: str) -> RunDir:
        """The folder of a training stage."""
        return RunDir(self.path / name)


def is_small(name: str) -> bool:
    """Whether a file, by its name from the run directory on, is a sweep's or a trial's own small one.

    sweeps/NAME/plan.json and sweeps/NAME/trials/ID/progress.json, nothing of Tune's or a stage's.
    """
    parts = name.split("/")
    return name.endswith(".json") and (len(parts) == 3 or (len(parts) == 5 and parts[2] == _TRIALS))


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
