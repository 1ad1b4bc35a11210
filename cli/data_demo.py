"""`vmae data demo`: write the built-in data set of moving objects as real video files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

DEFAULT_OUT = "data/demo"
UNTRIMMED_OUT = "data/demo_untrimmed"
OF_UNTRIMMED = {"untrimmed", "seed"}
"""Options of the untrimmed videos; the rest of their set is fixed (`DemoUntrimmedConfig`)."""


@click.command("demo")
@click.argument("out", type=click.Path(path_type=Path), required=False)
@click.option(
    "--untrimmed",
    is_flag=True,
    help="Untrimmed videos with annotations.json for vmae localise, and trimmed clips for its encoder "
    f"(default OUT: {UNTRIMMED_OUT}).",
)
@click.option("--clips-per-class", type=int, default=150, show_default=True, help="Train and val together.")
@click.option("--size", type=int, default=112, show_default=True, help="Height and width in pixels.")
@click.option("--seconds", type=float, default=2.0, show_default=True, help="Length of a clip.")
@click.option("--fps", type=int, default=16, show_default=True, help="Frames a second.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same pixels.")
@click.option("--workers", type=int, default=None, help="Processes to render with.  [default: all cores]")
@click.option("--overwrite", is_flag=True, help="Replace a data set made with other options.")
@click.pass_context
def demo(ctx: click.Context, out: Path | None, untrimmed: bool, **options: Any) -> None:
    """Write the built-in data set to OUT (default: data/demo): H.264 clips whose class is the motion.

    A complete data set is left alone; one with missing or cut files is repaired. Writes train.csv and val.csv
    (`path label`), classes.txt and manifest.json beside the clips.
    """
    from vmae.core.errors import InputError
    from vmae.core.video.demo_data import make_demo_data

    if untrimmed:
        for option in sorted(set(options) - OF_UNTRIMMED):
            if ctx.get_parameter_source(option) is ParameterSource.COMMANDLINE:
                name = "--" + option.replace("_", "-")
                raise InputError(f"{name}: expected none with --untrimmed, whose set has one shape")
        _untrimmed(out or Path(UNTRIMMED_OUT), options["seed"])
        return
    made = make_demo_data(out or Path(DEFAULT_OUT), **options)
    what = f"{made.made} clips made" if made.made else "complete, nothing to make"
    click.echo(f"{made.out_dir}: {what}; {made.train} train, {made.val} val, {made.bytes / 2**20:.1f} MiB")
    click.echo(f"classes: {', '.join(made.classes)}")
    click.echo(f"lists:   {made.train_csv} {made.val_csv}")


def _untrimmed(out: Path, seed: int) -> None:
    from vmae.core.progress import progress
    from vmae.core.video.demo_untrimmed import DemoUntrimmedConfig, make_demo_untrimmed

    config = DemoUntrimmedConfig(seed=seed)
    with progress("videos", config.train_videos + config.test_videos, unit="video") as bar:
        make_demo_untrimmed(out, config, progress=bar.update)
    click.echo(f"{out}: {config.train_videos} untrimmed videos to train on, {config.test_videos} to test")
    click.echo(f"features of: {out / 'videos'}   annotations: {out / 'annotations.json'}")
    click.echo(f"lists for the encoder: {out / 'trimmed/train.csv'} {out / 'trimmed/val.csv'}")
