"""`vmae data index`: train, val and test lists from the official layouts of data sets, and folds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmae.cli.options import require_writable

if TYPE_CHECKING:
    from vmae.core.video.index import DatasetIndex
    from vmae.core.video.samples import Sample


@click.command("index")
@click.argument("place", metavar="FOLDER|CSV", type=click.Path(path_type=Path))
@click.option(
    "--layout",
    help="Of a FOLDER: folders (one a class, or none: no labels), kinetics, ucf101, hmdb51, ssv2, rawframes "
    "or ava.  [default: folders]",
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, help="Where to write.  [default: FOLDER]"
)
@click.option("--split", type=int, default=1, show_default=True, help="Official split (UCF101, HMDB51).")
@click.option(
    "--val-share", type=float, default=0.2, show_default=True, help="Held out without split folders."
)
@click.option("--relative", is_flag=True, help="Paths relative to FOLDER, to be read with --data-root.")
@click.option(
    "--groups",
    metavar="COLUMN|REGEX|FILE",
    help="What must not be parted (a session, a scene): a column of the CSV, a pattern on the paths, or a "
    "csv with the columns path and group.",
)
@click.option(
    "--folds",
    type=int,
    help="Also write folds.csv: this many folds of whole groups, classes spread over them (--folds of "
    "finetune, probe and sweep).",
)
def index(
    place: Path,
    layout: str | None,
    out: Path | None,
    split: int,
    val_share: float,
    relative: bool,
    groups: str | None,
    folds: int | None,
) -> None:
    """Write train.csv, val.csv, test.csv (`path label`) and classes.txt for the data set in FOLDER, or for a
    CSV with a header and the columns path and label or class.

    With --groups the videos that are held out share no group with the others.
    """
    from vmae.core.errors import InputError
    from vmae.core.video.folds import index_table
    from vmae.core.video.index import index_dataset, write_index

    if place.is_file():
        if layout is not None:
            raise InputError(f"--layout: expected a folder, got the file {place}")
        found, folder = index_table(place), place.parent
    else:
        layout = layout or "folders"
        found, folder = index_dataset(place, layout, split=split, val_share=val_share), place  # type: ignore[arg-type]
    out = out or folder
    require_writable(out / "train.csv")
    own_split = layout is not None and not found.held_out
    parts = None
    if groups is not None or folds is not None or place.is_file():
        parts = _fold(found, groups, folds, val_share, place if place.is_file() else None)
        if not own_split:
            found = _held_out(found, parts)
    written = write_index(found, out, relative_to=folder if relative else None)
    counts = ", ".join(f"{len(samples)} {name}" for name, samples in found.splits.items() if samples)
    click.echo(f"{len(found.classes)} classes; {counts}" if found.classes else f"no classes; {counts}")
    if folds is not None and parts is not None:
        from vmae.core.video.folds import describe_folds, write_folds

        def shown(path: str) -> str:
            return os.path.relpath(path, out) if relative else os.path.abspath(path)

        write_folds(out / "folds.csv", *parts, shown=shown)
        written.append(out / "folds.csv")
        for line in describe_folds([s.label for s in parts[0]], *parts[1:]):
            click.echo(line)
    for path in written:
        click.echo(str(path))
    for line in found.notes[:30]:
        click.echo(line, err=True)
    if len(found.notes) > 30:
        click.echo(f"... and {len(found.notes) - 30} lines more like these", err=True)
    if layout == "rawframes":
        click.echo("the lists hold `frame_dir total label`: read them with annotation_format total_label")
    if layout == "ava":
        click.echo(f"the lists hold ids: read them with --data-root {folder} where they lie elsewhere")
    if found.missing:
        names = ", ".join(found.missing[:5]) + (", ..." if len(found.missing) > 5 else "")
        click.echo(f"{len(found.missing)} listed videos are not there and were left out: {names}", err=True)


def _fold(
    found: DatasetIndex, groups: str | None, folds: int | None, val_share: float, table: Path | None
) -> tuple[list[Sample], list[str], list[int]]:
    """All videos that are no test videos, their groups and folds (without a number: 1 / `val_share`)."""
    from vmae.core.video.folds import find_groups, make_folds

    test = {s.path for s in found.splits["test"]}
    samples = [s for name in ("train", "val") for s in found.splits[name] if s.path not in test]
    if groups is None:
        click.echo("no --groups: clips of one session or scene may stand on both sides", err=True)
    of = [s.path for s in samples] if groups is None else find_groups(groups, samples, table)
    number = folds or max(2, round(1 / val_share if val_share else 2))
    return samples, of, make_folds([s.label for s in samples], of, number)


def _held_out(found: DatasetIndex, parts: tuple[list[Sample], list[str], list[int]]) -> DatasetIndex:
    """The same videos with the fold held out whose size is nearest to an equal share."""
    from collections import Counter
    from dataclasses import replace

    samples, _, folds = parts
    sizes = Counter(folds)
    chosen = min(sorted(sizes), key=lambda f: abs(sizes[f] - len(folds) / len(sizes)))
    train = [s for s, f in zip(samples, folds, strict=True) if f != chosen]
    val = [s for s, f in zip(samples, folds, strict=True) if f == chosen]
    return replace(found, splits={**found.splits, "train": train, "val": val})
