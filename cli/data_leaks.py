"""What `vmae data check` says about other lists: videos that look alike, groups that stand in both."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmae.cli.options import counted

if TYPE_CHECKING:
    from vmae.core.video.isolate import Runner
    from vmae.core.video.leaks import NearPair
    from vmae.core.video.samples import Sample

SHOWN = 10
NAMES = ("train.csv", "val.csv", "test.csv")


def beside(listed: Path) -> list[Path]:
    """The lists of the other splits in the same folder."""
    if listed.name not in NAMES:
        return []
    return [p for name in NAMES if name != listed.name and (p := listed.with_name(name)).is_file()]


def find_and_show(
    listed: Path,
    samples: Sequence[Sample],
    others: Mapping[Path, Sequence[Sample]],
    *,
    groups: str | None,
    workers: int,
    runner: Runner,
) -> None:
    """Compare a list with others, print what they share, and write every pair to LIST.leaks.csv."""
    from vmae.core.files import write_text
    from vmae.core.progress import progress
    from vmae.core.video.folds import find_groups
    from vmae.core.video.leaks import hash_videos, near_pairs

    paths = {s.path for part in (samples, *others.values()) for s in part}
    with progress("compare lists", total=len(paths), unit="video") as bar:
        hashes = hash_videos(list(paths), workers=workers, runner=runner, progress=counted(bar))
    rows: list[list[str]] = []
    mine = None if groups is None else find_groups(groups, samples)
    for other, theirs in others.items():
        pairs = near_pairs([s.path for s in samples], [s.path for s in theirs], hashes)
        rows += [[other.name, "frames", p.first, p.second, str(p.bits)] for p in pairs]
        _say_pairs(listed, other, theirs, pairs)
        if mine is None or groups is None:
            continue
        shared = sorted(set(mine) & set(find_groups(groups, theirs)))
        rows += [[other.name, "group", name, name, ""] for name in shared]
        if shared:
            click.echo(f"{len(shared)} groups are in {listed.name} and in {other.name}: {_few(shared)}")
    if not rows:
        return
    out = listed.with_name(f"{listed.stem}.leaks.csv")
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["list", "what", "first", "second", "bits"])
    writer.writerows(rows)
    write_text(out, text.getvalue())
    click.echo(f"every pair: {out}")


def _say_pairs(listed: Path, other: Path, theirs: Sequence[Sample], pairs: list[NearPair]) -> None:
    if not pairs:
        click.echo(f"{other.name}: no video looks like one of {listed.name}")
        return
    videos = len({p.second for p in pairs})
    click.echo(
        f"{videos} of {len(theirs)} videos of {other.name} show nearly the same picture as one of "
        f"{listed.name}, so numbers on them measure memory too:"
    )
    for pair in pairs[:SHOWN]:
        what = "the same file" if pair.first == pair.second else f"{pair.bits} of 64 bits differ"
        click.echo(f"  {pair.second} like {pair.first} ({what})")
    if len(pairs) > SHOWN:
        click.echo(f"  ... and {len(pairs) - SHOWN} more pairs")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
