"""`vmae features`: what a frozen encoder makes of each video of a list, in a file."""

from __future__ import annotations

from pathlib import Path

import click

from vmae.cli.options import address_options, fitness_shown, format_option, runs_dir_option, set_option


@click.command()
@click.argument("csv", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--checkpoint",
    required=True,
    help="Model (with --window a classifier too): a run's name, a path, a name of `vmae zoo list`, or "
    "hf://org/name.",
)
@click.option("--data-root", type=click.Path(path_type=Path), help="Folder that the list's paths start from.")
@format_option
@click.option(
    "--pooling",
    type=click.Choice(["mean", "time", "tokens"]),
    default="mean",
    show_default=True,
    help="mean: over all tokens; time: over space, time slots side by side; tokens: all of them.",
)
@click.option(
    "--window",
    type=click.IntRange(1),
    help="Frames of a window: features of all windows of the whole video, in the folder OUT.",
)
@click.option(
    "--stride", type=click.IntRange(1), help="Frames between windows (with --window).  [default: 4]"
)
@click.option(
    "--fps",
    type=click.FloatRange(0),
    help="Frames a second that --window and --stride count; 0: the video's own.  [default: as the model's "
    "clips were cut (data.fps), else 0]",
)
@click.option("--views", type=click.IntRange(1), help="Crops averaged (with --window).  [default: 1]")
@click.option(
    "--dtype", type=click.Choice(["fp32", "fp16"]), help="Of the files (with --window).  [default: fp32]"
)
@click.option("--prefix", help="What files' names begin with (with --window), such as v_.  [default: none]")
@click.option(
    "--workers", type=click.IntRange(1), help="Processes, a video each (with --window).  [default: 1]"
)
@address_options
@set_option
@runs_dir_option
def features(
    csv: Path,
    out: Path,
    checkpoint: str,
    data_root: Path | None,
    annotation_format: str,
    pooling: str,
    window: int | None,
    stride: int | None,
    fps: float | None,
    views: int | None,
    dtype: str | None,
    prefix: str | None,
    workers: int | None,
    address: str | None,
    gpus: float,
    assignments: tuple[str, ...],
    runs_dir: Path | None,
) -> None:
    """Write the features of the central clip of every video of CSV to OUT (.npz), or with --window those of
    all its windows to the folder OUT.

    OUT.npz holds `x` float32 [M, D] (tokens: [M, N, D]), `labels`, `paths` and `index` (the line in CSV).
    Videos that cannot be read are named, left out, and make the exit code 1. Run the same command again to go
    on where it was killed. With --address the videos are shared by a cluster's nodes.

    With --window CSV may also be a folder of videos or one path a line, and OUT gets ID.npy [num_windows, D]
    of each (ActionFormer's layout), or is one .parquet (docs/features.md).
    """
    from vmae.core.config import override, parse_assignments
    from vmae.core.errors import InputError
    from vmae.core.progress import progress
    from vmae.experiments import evaluation, windowed
    from vmae.experiments.cluster import video_map
    from vmae.experiments.tracking import store_at

    store = store_at(runs_dir)
    if window is not None:
        if assignments or pooling != "mean":
            raise InputError("expected --window without --set and --pooling: the clip's shape is the model's")
        r = windowed.windowed_run(
            store,
            checkpoint,
            csv,
            out,
            windows={"window": window, "stride": stride or 4, "views": views or 1},
            fps=fps,
            annotation_format=annotation_format,  # type: ignore[arg-type]
            data_root=data_root,
            prefix=prefix or "",
            dtype=dtype or "fp32",
            workers=workers or 1,
            address=address,
            gpus=gpus,
            progress=lambda videos: progress("windowed features", videos, unit="video"),
        )
        click.echo(f"{out}: {r.windows} windows x {r.dim} of {r.videos} videos")
        _report(r.failed)
        return
    for name, value in (
        ("stride", stride),
        ("fps", fps),
        ("views", views),
        ("dtype", dtype),
        ("prefix", prefix),
    ):
        if value is not None:
            raise InputError(f"expected --{name} with --window, got it alone")
    if out.suffix != ".npz":
        raise InputError(f"expected OUT to end in .npz (or --window for a folder), got {out}")
    config = evaluation.evaluation_config(store, checkpoint)
    changes: dict[str, object] = {"data.test_csv": str(csv)}
    if annotation_format != "auto":
        changes["data.annotation_format"] = annotation_format
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
    _report(failed)


def _report(failed: list[tuple[str, str]]) -> None:
    """Name the videos that are left out; exit code 1 where there are any."""
    for path, reason in failed[:20]:
        click.echo(f"bad: {path}: {reason}")
    if len(failed) > 20:
        click.echo(f"... and {len(failed) - 20} more")
    if failed:
        raise click.exceptions.Exit(1)
