"""`vmae finetune --folds`: one setting over folds and seeds, and the number they give together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmae.cli.options import in_runs_dir
from vmae.cli.training import Ahead, make_demo_data_if_used, train
from vmae.experiments.stages.finetune import STAGE

if TYPE_CHECKING:
    from vmae.experiments.config import ExperimentConfig
    from vmae.experiments.distributed import WorkersConfig
    from vmae.experiments.tracking import Store


def finetune_folds(
    config: ExperimentConfig,
    store: Store,
    *,
    spec: str,
    seeds: int,
    workers: WorkersConfig | None,
    ahead: Ahead,
) -> None:
    """Train and measure every fold and seed that is not done yet; exit code 130 where it was interrupted."""
    from vmae.core.progress import progress
    from vmae.experiments import folds, jobs

    make_demo_data_if_used(config)
    runs = folds.begin(config, store, spec, seeds, undecided=ahead.undecided)
    ahead.undecided = runs.undecided
    where = in_runs_dir(store)
    for line in (runs.found.said, *runs.found.lines()):
        click.echo(line, err=True)
    for number, one in enumerate(runs.runs, start=1):
        if folds.is_done(store.layout.run(one.config.name)):
            continue
        click.echo(f"fold {one.fold}, seed {one.seed} ({number} of {len(runs.runs)})", err=True)
        outcome = train(
            STAGE.name,
            jobs.task_run,
            one.config,
            store,
            workers=workers,
            part_of=config,
            test_progress=lambda videos: progress("test", videos, unit="video"),
            ahead=ahead,
        )
        if outcome.result.stopped:
            click.echo(f"interrupted, state saved. Go on with: vmae finetune --resume {config.name}{where}")
            raise SystemExit(130)
        if outcome.tested is not None:
            click.echo(f"{one.config.name}: {outcome.tested.lines[0]}")
    summary = folds.finish(config, store, runs)
    for line in summary.lines(f"{config.name}: top-1"):
        click.echo(line)
    click.echo(f"answers: {store.shown(store.layout.run(config.name).answers)}")
    click.echo(f"\nnext:\n  vmae runs compare {config.name} OTHER{where}   # on the same videos")
