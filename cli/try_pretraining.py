"""`vmae recommend --try-pretraining`: both ways trained inside the training list, shown as they go."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from vmae.cli.training import train
from vmae.experiments.stages import finetune, pretrain

if TYPE_CHECKING:
    import torch

    from vmae.experiments.advice import Advice
    from vmae.experiments.own_pretraining import Trial, Verdict
    from vmae.experiments.tracking import Store

_GO_ON = "The same command goes on; a training that has ended is not repeated"


def try_pretraining(advice: Advice, store: Store, seconds: float, device: torch.device) -> Verdict:
    """Whether pre-training on the list first pays, tried in about `seconds`, or as remembered.

    Exit code 130 where it was interrupted. Raises InputError as `own_pretraining.begin`.
    """
    from vmae.experiments import own_pretraining
    from vmae.experiments.signals import interrupting

    runs = store.layout
    known = own_pretraining.remembered(advice.found.config, runs)
    if known is not None and known.seconds >= seconds:
        return known
    trial = own_pretraining.begin(advice, runs, seconds, device)
    for line in trial.lines():
        click.echo(line, err=True)
    try:
        with interrupting():
            _train_all(trial)
            return own_pretraining.conclude(trial)
    except KeyboardInterrupt:  # between two trainings; one under way answers itself
        click.echo(f"interrupted. {_GO_ON}")
        raise SystemExit(130) from None


def _train_all(trial: Trial) -> None:
    """What is not done yet, part by part."""
    from vmae.core.progress import format_duration, progress
    from vmae.experiments import jobs, own_pretraining

    steps = trial.steps()
    took, predicted = 0.0, 0.0
    for number, step in enumerate(steps, start=1):
        if step.done:
            continue
        # As slow as the trainings before were against what was predicted.
        left = sum(s.seconds for s in steps[number - 1 :] if not s.done) * (took / predicted if took else 1)
        click.echo(
            f"part {step.part + 1} of {own_pretraining.PARTS}, {step.what} (training {number} of "
            f"{len(steps)}); about {format_duration(left)} left in all",
            err=True,
        )
        begun = time.perf_counter()
        verb, run, how = finetune.STAGE.name, jobs.task_run, {"test_progress": _test_bar(progress)}
        if step.config.job == pretrain.STAGE.name:
            verb, run, how = pretrain.STAGE.name, jobs.pretrain_run, {}
        outcome: Any = train(verb, run, step.config, trial.store, workers=None, go_on=_GO_ON, **how)
        if outcome.result.stopped:
            click.echo(f"interrupted, state saved. {_GO_ON}")
            raise SystemExit(130)
        took += time.perf_counter() - begun
        predicted += step.seconds


def _test_bar(progress: Any) -> Any:
    return lambda videos: progress("test", videos, unit="video")
