"""`vmae features`: what a frozen encoder makes of each video of a list, in a file."""

from __future__ import annotations

from pathlib import Path

import click

from vmae.cli.options import address_options, fitness_shown, runs_dir_option, set_option


@click.command()
@click.argument("csv", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--checkpoint",
    required=True,
    help="Pre-trained model: a run's name, a path, a name of `vmae zoo list`, or hf://org/name.",
)
@click.option("--data-root", type=click.Path(path_type=Path), help="Folder that the list's paths start from.")
@click.option(
    "--pooling",
    type=click.Choice(["mean", "time", "tokens"]),
    default="mean",
    show_default=True,
    help="mean: over all tokens; time: over space, time slots side by side; tokens: all of them.",
)
@address_options
@set_option
@runs_dir_option
def features(
    csv: Path,
    out: Path,
    checkpoint: str,
    data_root: Path | None,
    pooling: str,
    address: str | None,
    gpus: float,
    assignments: tuple[str, ...],
    runs_dir: Path | None,
) -> None:
    """Write the features of the central clip of every video of CSV to OUT (.npz).

    OUT holds `x` float32 [M, D] (tokens: [M, N, D]), `labels`, `paths` and `index` (the line in CSV). Videos
    that cannot be read are named, left out, and make the exit code 1. Run the same command again to go on
    where it was killed. With --address the videos are shared by a cluster's nodes.
    """
    from vmae.core.config import override, parse_assignments
    from vmae.core.errors import InputError
    from vmae.core.progress import progress
    from vmae.experiments import finetuning, video_map
    from vmae.experiments.tracking import store_at

    if out.suffix != ".npz":
        raise InputError(f"expected OUT to end in .npz, got {out}")
    store = store_at(runs_dir)
    config = finetuning.evaluation_config(store, checkpoint)
    changes: dict[str, object] = {"data.test_csv": str(csv)}
    if data_root is not None:
        changes["data.data_root"] = str(data_root)
    config = override(config, {**changes, **parse_assignments(assignments)})
    with fitness_shown():
        found, failed = video_map.features_run(
            config,
            store,
            checkpoint,
            out,
            pooling=pooling,  # type: ignore[arg-type]
            address=address,
            gpus=gpus,
            progress=lambda videos: progress("features", videos, unit="video"),
        )
    click.echo(f"{out}: {' x '.join(str(n) for n in found)} ({pooling})")
    for path, reason in failed[:20]:
        click.echo(f"bad: {path}: {reason}")
    if len(failed) > 20:
        click.echo(f"... and {len(failed) - 20} more")
    if failed:
        raise click.exceptions.Exit(1)
