"""`vmae data index`: train, val and test lists from the official layouts of data sets."""

from __future__ import annotations

from pathlib import Path

import click

from vmae.cli.options import require_writable


@click.command("index")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--layout", required=True, help="folders, kinetics, ucf101, hmdb51, ssv2, rawframes or ava.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, help="Where to write.  [default: FOLDER]"
)
@click.option("--split", type=int, default=1, show_default=True, help="Official split (UCF101, HMDB51).")
@click.option(
    "--val-share", type=float, default=0.2, show_default=True, help="Held out without split folders."
)
@click.option("--relative", is_flag=True, help="Paths relative to FOLDER, to be read with --data-root.")
def index(folder: Path, layout: str, out: Path | None, split: int, val_share: float, relative: bool) -> None:
    """Write train.csv, val.csv, test.csv (`path label`) and classes.txt for the data set in FOLDER."""
    from vmae.core.video.index import index_dataset, write_index

    found = index_dataset(folder, layout, split=split, val_share=val_share)  # type: ignore[arg-type]
    require_writable((out or folder) / "train.csv")
    written = write_index(found, out or folder, relative_to=folder if relative else None)
    counts = ", ".join(f"{len(samples)} {name}" for name, samples in found.splits.items() if samples)
    click.echo(f"{len(found.classes)} classes; {counts}")
    for path in written:
        click.echo(str(path))
    if layout == "rawframes":
        click.echo("the lists hold `frame_dir total label`: read them with annotation_format total_label")
    if layout == "ava":
        click.echo(f"the lists hold ids: read them with --data-root {folder} where they lie elsewhere")
    if found.missing:
        names = ", ".join(found.missing[:5]) + (", ..." if len(found.missing) > 5 else "")
        click.echo(f"{len(found.missing)} listed videos are not there and were left out: {names}", err=True)
