"""`vmae data demo`: write the built-in data set of moving objects as real video files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

DEFAULT_OUT = "data/demo"


@click.command("demo")
@click.argument("out", type=click.Path(path_type=Path), default=DEFAULT_OUT)
@click.option("--clips-per-class", type=int, default=150, show_default=True, help="Train and val together.")
@click.option("--size", type=int, default=112, show_default=True, help="Height and width in pixels.")
@click.option("--seconds", type=float, default=2.0, show_default=True, help="Length of a clip.")
@click.option("--fps", type=int, default=16, show_default=True, help="Frames a second.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same pixels.")
@click.option("--workers", type=int, default=None, help="Processes to render with.  [default: all cores]")
@click.option("--overwrite", is_flag=True, help="Replace a data set made with other options.")
def demo(out: Path, **options: Any) -> None:
    """Write the built-in data set to OUT (default: data/demo): H.264 clips whose class is the motion.

    A complete data set is left alone; one with missing or cut files is repaired. Writes train.csv and val.csv
    (`path label`), classes.txt and manifest.json beside the clips.
    """
    from vmae.core.video.demo_data import make_demo_data

    made = make_demo_data(out, **options)
    what = f"{made.made} clips made" if made.made else "complete, nothing to make"
    click.echo(f"{made.out_dir}: {what}; {made.train} train, {made.val} val, {made.bytes / 2**20:.1f} MiB")
    click.echo(f"classes: {', '.join(made.classes)}")
    click.echo(f"lists:   {made.train_csv} {made.val_csv}")
