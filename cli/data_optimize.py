"""`vmae data optimize`: re-encode a list of videos for fast random access."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from vmae.cli.options import counted, format_option, require_writable, where_to_run


@click.command("optimize")
@click.argument("csv", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--short-side", type=int, default=256, show_default=True, help="Scale larger videos down to this."
)
@click.option("--gop", type=int, default=4, show_default=True, help="Frames between key frames.")
@click.option("--fps", type=float, default=None, help="Fixed rate.  [default: every frame as it is]")
@click.option("--crf", type=int, default=23, show_default=True, help="x264's quality, lower is better.")
@click.option(
    "--data-root", type=click.Path(path_type=Path), default=None, help="Where relative paths start."
)
@format_option
@click.option("--workers", type=click.IntRange(1), default=None, help="Processes.  [default: all cores]")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=600.0,
    show_default=True,
    help="Seconds for one file.",
)
@click.option(
    "--address",
    help="Ray cluster whose nodes do the work: auto, HOST:PORT or ray://HOST:PORT.  [default: this machine]",
)
def optimize(
    csv: Path,
    out: Path,
    short_side: int,
    gop: int,
    fps: float | None,
    crf: int,
    data_root: Path | None,
    annotation_format: str,
    workers: int | None,
    timeout: float,
    address: str | None,
) -> None:
    """Re-encode the videos of CSV into OUT as small H.264 with short groups, compare every frame, and write
    OUT/<name of CSV>. Run again to resume.

    Prints the sizes and the measured speed of reading clips before and after. Bad videos are named and left
    out; the command then ends with code 1.
    """
    from vmae.core.progress import progress
    from vmae.core.video.annotations import read_annotations, write_annotations
    from vmae.core.video.optimize import OptimizeConfig, measure_speed_up, optimize_samples

    config = OptimizeConfig(short_side=short_side, gop=gop, fps=fps, crf=crf)
    root, out = data_root if data_root is not None else csv.parent, out.absolute()
    samples = read_annotations(csv, root.absolute(), format=annotation_format)  # type: ignore[arg-type]
    require_writable(out / csv.name)
    with (
        where_to_run(address, (s.path for s in samples), out) as (runner, default_workers),
        progress("optimize", total=len({s.path for s in samples}), unit="file") as bar,
    ):
        listed, results = optimize_samples(
            samples,
            out,
            config,
            workers=workers or default_workers,
            timeout_s=timeout,
            progress=counted(bar),
            runner=runner,
        )
    if listed:
        write_annotations(out / csv.name, listed)
    names = csv.parent / "classes.txt"
    if names.is_file() and names.absolute().parent != out:
        shutil.copyfile(names, out / "classes.txt")
    failed = [r for r in results if r.action == "failed"]
    done = [r for r in results if r.action != "failed"]
    kept = sum(r.action == "kept" for r in done)
    before, after = (sum(getattr(r, n) for r in done) / 2**20 for n in ("source_size", "target_size"))
    earlier = sum(r.earlier for r in done)
    click.echo(
        f"{len(done) - kept} encoded, {kept} already good and copied, {len(failed)} failed"
        + (f" ({earlier} done by an earlier run)" if earlier else "")
    )
    click.echo(f"size: {before:.1f} MiB before, {after:.1f} MiB after")
    slow, fast = measure_speed_up(results, short_side)
    if fast:
        click.echo(
            f"random clips (16 frames, stride 4) on one thread: {slow:.1f}/s before, {fast:.1f}/s after"
        )
        click.echo(f"speed-up: {fast / slow:.1f}x")
    for r in failed[:20]:
        click.echo(f"failed: {r.source}: {r.error}", err=True)
    if listed:
        click.echo(f"list: {out / csv.name} ({len(listed)} lines)")
    if failed:
        raise click.exceptions.Exit(1)
