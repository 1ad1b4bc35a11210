"""`vmae localise`: when what happens in untrimmed videos, from their windowed features."""

from __future__ import annotations

import json
from pathlib import Path

import click

from vmae.cli.options import runs_dir_option, set_option


@click.command()
@click.argument("features", type=click.Path(path_type=Path))
@click.option(
    "--data",
    "annotations",
    type=click.Path(path_type=Path),
    required=True,
    help="Annotations: the JSON of ActivityNet or THUMOS14, whose subsets are trained and tested on.",
)
@click.option("--epochs", type=click.IntRange(1), help="Passes over the videos.  [default: 40]")
@click.option("--run-name", help="Name of the run.  [default: localise, numbered]")
@click.option(
    "--resume", metavar="RUN_NAME", help="Go on with an interrupted run; everything else as it was given."
)
@click.option("--json", "as_json", is_flag=True, help="The numbers as JSON.")
@set_option
@runs_dir_option
def localise(
    features: Path,
    annotations: Path,
    epochs: int | None,
    run_name: str | None,
    resume: str | None,
    as_json: bool,
    assignments: tuple[str, ...],
    runs_dir: Path | None,
) -> None:
    """Train a small anchor-free head on FEATURES (a folder of `vmae features --window`) and measure it.

    Prints mAP at temporal IoU 0.3 to 0.7 on the test subset and writes detections.json in ActivityNet's
    layout. With --set localise.KEY=VALUE the head is another one (docs/localisation.md). One process trains
    it in minutes; on a cluster the features are made (`vmae features --address`), and sweeps that end in it
    run (`vmae sweep --then localise --address`).
    """
    from vmae.core.config import override, parse_assignments
    from vmae.core.measure.statistics import share_text
    from vmae.core.progress import progress
    from vmae.experiments.config import ExperimentConfig
    from vmae.experiments.localisation import kept, localise_run, named
    from vmae.experiments.signals import interrupting
    from vmae.experiments.tracking import store_at

    changes: dict[str, object] = {"name": "localise", "localise.annotations": str(annotations)}
    if epochs is not None:
        changes["localise.epochs"] = epochs
    config = override(ExperimentConfig(), {**changes, **parse_assignments(assignments)})
    store = store_at(runs_dir)
    config = named(store, config, run_name, resume)
    try:
        with interrupting():
            found, folder = localise_run(
                config,
                store,
                features,
                progress=lambda total: progress("localise", total, unit="epoch"),
            )
    except KeyboardInterrupt:
        on = f"with the same arguments and --resume {config.name} it goes on"
        click.echo(
            f"interrupted: {on if kept(store, config.name) else 'before the first state, nothing is kept'}"
        )
        raise SystemExit(130) from None
    if as_json:
        click.echo(json.dumps({**found.numbers(), "folder": str(folder)}))
        return
    by_tiou = "  ".join(f"{t:g}: {v:.1%}" for t, v in found.result.mean_ap.items())
    click.echo(
        f"average mAP {share_text(found.result.average_map, found.interval)} (random classes and scores "
        f"{found.chance:.1%}) of {found.actions} actions of {len(found.classes)} classes in {found.test} "
        f"videos, trained on {found.train}"
    )
    click.echo(f"at temporal IoU {by_tiou}")
    if found.missing:
        click.echo(f"{len(found.missing)} videos have no features, first {found.missing[0]}")
    if found.left_out:
        click.echo(f"{found.left_out} annotated actions past their video's end or of no length were left out")
    click.echo(f"details: {folder}/detections.json, metrics.json")
