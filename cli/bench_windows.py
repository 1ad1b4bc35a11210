"""`vmae bench windows`: overlapping windows, each frame decoded once, against each window by itself."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("windows")
@click.argument("videos", nargs=-1, type=click.Path(path_type=Path))
@click.option("--window", default=16, show_default=True, type=click.IntRange(1), help="Frames of a window.")
@click.option(
    "--stride", default=4, show_default=True, type=click.IntRange(1), help="Frames between windows."
)
@click.option("--frames", default=300, show_default=True, type=click.IntRange(16), help="Of made-up videos.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="The best of so many.")
def windows(videos: tuple[Path, ...], window: int, stride: int, frames: int, rounds: int) -> None:
    """Windows per second that `vmae features --window` reads, without the model.

    On VIDEOS, or on generated 340x256 H.264 with a key frame every 12 and 250 frames; 16 frames a window at
    224 x 224, one thread.
    """
    import tempfile

    from vmae.core.video.windows import WindowConfig
    from vmae.experiments.bench.loader import make_bench_video
    from vmae.experiments.bench.windows import bench_windows

    config = WindowConfig(window=window, stride=stride)
    with tempfile.TemporaryDirectory() as folder:
        files = list(videos) or [
            make_bench_video(
                Path(folder) / f"340x256_keyint{keyint}.mp4",
                height=256,
                width=340,
                keyint=keyint,
                frames=frames,
            )
            for keyint in (12, 250)
        ]
        click.echo("| file | windows | each frame once | each window by itself | ratio |")
        click.echo("|---|---|---|---|---|")
        for file in files:
            r = bench_windows(file, config, rounds=rounds)
            note = "" if r.equal else " OTHER PIXELS"
            click.echo(
                f"| {r.file} | {r.windows} | {r.once:.1f}/s | {r.by_itself:.1f}/s "
                f"| {r.once / r.by_itself:.1f}x{note} |"
            )
