"""What the trials of a sweep run on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vmae.core.errors import InputError, nearest
from vmae.experiments import stages
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.stages.stage import Stage


@dataclass(frozen=True, kw_only=True)
class StageResources:
    """What one stage of a trial runs on: `workers` processes, each with so many CPUs and GPUs.

    Training stages with several workers share every batch (Ray Train); the others take one.
    """

    stage: str
    workers: int = 1
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.workers < 1 or self.cpus <= 0 or self.gpus < 0:
            raise InputError(
                f"--stage-resources {self.stage}: expected workers >= 1, cpus > 0 and gpus >= 0, got "
                f"{self.workers}, {self.cpus:g} and {self.gpus:g}"
            )


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What each trial runs on, how many run side by side, and where."""

    cpus: float = 1.0
    """Of the trial's process, or of each of its workers."""
    gpus: float = 0.0
    workers: int = 1
    """Ray workers that share each training stage of a trial."""
    stages: tuple[StageResources, ...] = ()
    """Stages that run on something else than the above."""
    max_concurrent: int | None = None
    address: str | None = None
    """Ray cluster to run on; None: a Ray of this machine's own."""

    def __post_init__(self) -> None:
        if self.cpus <= 0 or self.gpus < 0:
            raise InputError(
                f"--cpus, --gpus: expected more than 0 and 0 or more, got {self.cpus:g} and {self.gpus:g}"
            )
        if self.workers < 1:
            raise InputError(f"--workers-per-trial: expected 1 or more, got {self.workers}")
        if self.max_concurrent is not None and self.max_concurrent < 1:
            raise InputError(f"--max-concurrent: expected 1 or more, got {self.max_concurrent}")

    @property
    def staged(self) -> bool:
        """Whether each stage asks the cluster for its own resources (else the trial's process has them)."""
        return self.workers > 1 or bool(self.stages)

    def of(self, stage: Stage) -> StageResources:
        """What a stage runs on."""
        for own in self.stages:
            if own.stage == stage.name:
                return own
        workers = self.workers if stage.trains else 1
        return StageResources(stage=stage.name, workers=workers, cpus=self.cpus, gpus=self.gpus)

    def changed(
        self,
        *,
        cpus: float | None = None,
        gpus: float | None = None,
        workers: int | None = None,
        stages: Sequence[str] = (),
        max_concurrent: int | None = None,
        address: str | None = None,
    ) -> Resources:
        """Other resources where they are given (a resumed sweep may run on another machine or cluster).

        `stages` are texts of `--stage-resources`; `address` "local" means a Ray of this machine's own.
        Raises InputError for what makes no sense.
        """
        where = self.address if address is None else address
        changed = replace(
            self,
            cpus=self.cpus if cpus is None else cpus,
            gpus=self.gpus if gpus is None else gpus,
            workers=self.workers if workers is None else workers,
            max_concurrent=self.max_concurrent if max_concurrent is None else max_concurrent,
            address=None if where == "local" else where,
        )
        own = parse_stage_resources(stages, changed.cpus, changed.gpus)
        return replace(changed, stages=own or self.stages)

    def check(self, trial_stages: Sequence[Stage]) -> None:
        """Raise InputError where these are not a trial's stages, or workers would share what they cannot."""
        known = [s.name for s in trial_stages]
        for own in self.stages:
            if own.stage not in known:
                raise InputError(
                    f"--stage-resources: expected a stage of this sweep ({', '.join(known)}), got "
                    f"'{own.stage}'{nearest(own.stage, known)}"
                )
        for stage in trial_stages:
            workers = self.of(stage).workers
            if workers > 1 and not stage.trains:
                raise InputError(
                    f"--stage-resources {stage.name}: expected 1 worker, got {workers}: several "
                    f"share {', '.join(stages.JOBS[:-1])} and {stages.JOBS[-1]} alone"
                )

    def check_batches(self, trial_stages: Sequence[Stage], config: ExperimentConfig) -> None:
        """Raise InputError where the workers of a stage cannot share its batch in this trial."""
        for stage in trial_stages:
            if not stage.trains:
                continue
            workers, train = self.of(stage).workers, stage.settings(config).train
            if train.batch_size % (workers * train.accumulate):
                raise InputError(
                    f"expected the batch of {stage.name} to be a multiple of workers x accumulate = "
                    f"{workers} x {train.accumulate}, got {train.batch_size} in trial {config.name}"
                )


def parse_stage_resources(texts: Sequence[str], cpus: float, gpus: float) -> tuple[StageResources, ...]:
    """Read `STAGE:workers=2,cpus=4,gpus=0.5`; what a text leaves out is one worker with `cpus` and `gpus`.

    Raises:
        InputError: another form, an unknown key, or a stage named twice.
    """
    found: dict[str, StageResources] = {}
    for text in texts:
        stage, _, rest = text.partition(":")
        stage = stage.strip()
        if stage in found:
            raise InputError(f"--stage-resources: expected each stage once, got '{stage}' twice")
        given: dict[str, float] = {"workers": 1, "cpus": cpus, "gpus": gpus}
        for part in rest.split(","):
            key, sign, value = (t.strip() for t in part.partition("="))
            try:
                if not sign or key not in given:
                    raise ValueError
                given[key] = int(value) if key == "workers" else float(value)
            except ValueError:
                raise InputError(
                    f"--stage-resources: expected STAGE:workers=N,cpus=X,gpus=Y (any of them), got '{text}'"
                ) from None
        found[stage] = StageResources(
            stage=stage, workers=int(given["workers"]), cpus=given["cpus"], gpus=given["gpus"]
        )
    return tuple(found.values())
