"""`vmae cache`: what a run directory's cache holds; shows what would go, and asks."""

from __future__ import annotations

from pathlib import Path

import click

from vmae.cli.options import confirm, in_runs_dir, runs_dir_option


@click.command()
@click.option("--keep", metavar="SIZE", help="Until at most this is left, 10GB, the longest unused go.")
@click.option("--unused-for", metavar="TIME", help="What was not used for this time goes, 7d or 12h.")
@click.option("--delete", "really", is_flag=True, help="Remove them. Without it they are only listed.")
@click.option("--yes", is_flag=True, help="With --delete: do not ask.")
@runs_dir_option
def cache(keep: str | None, unused_for: str | None, really: bool, yes: bool, runs_dir: Path | None) -> None:
    """List what the cache holds: decoded clips of lists, parts of long evaluations, models from elsewhere.

    All of it can be made again and is, where it is needed. With --delete it goes: all of it, or what --keep
    and --unused-for say.
    """
    import time

    from vmae.cli.tables import count_text, format_table, size_text
    from vmae.core.progress import format_duration, parse_duration
    from vmae.experiments import cached
    from vmae.experiments.tracking import store_at

    kept_bytes = None if keep is None else _size(keep)
    unused_s = None if unused_for is None else parse_duration(unused_for, "--unused-for")
    store = store_at(runs_dir)
    found = cached.entries(store.layout)
    if not found:
        click.echo(f"nothing in {store.shown(store.layout.cache)}")
        return
    gone = cached.to_go(found, keep=kept_bytes, unused_s=unused_s)
    chosen = really or keep is not None or unused_for is not None
    rows = []
    for entry in found:
        state = "being made" if entry.held else ("goes" if chosen and entry in gone else "")
        ago = format_duration(max(0.0, time.time() - entry.used))
        name = str(entry.path.relative_to(store.layout.cache))
        rows.append([name, entry.what, size_text(entry.size), ago, state])
    click.echo(format_table(["in the cache", "what", "size", "unused for", ""], rows, left=2))
    total, freed = sum(e.size for e in found), sum(e.size for e in gone)
    click.echo(f"\n{size_text(total)} in {store.shown(store.layout.cache)}")
    if not gone:
        click.echo("nothing to remove")
    elif not really:
        options = f" --keep {keep}" * (keep is not None) + f" --unused-for {unused_for}" * (
            unused_for is not None
        )
        click.echo(f"{size_text(freed)} could be freed: vmae cache{options} --delete{in_runs_dir(store)}")
    else:
        what = f"{count_text(len(gone), 'entry', 'entries')} ({size_text(freed)})"
        confirm(f"remove {what} from {store.shown(store.layout.cache)}?", yes)
        click.echo(f"freed {size_text(cached.remove(gone))}")


def _size(text: str) -> int:
    import re

    from vmae.core.errors import InputError

    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", text.strip().lower())
    if match is None:
        raise InputError(f"--keep: expected a size such as 500MB or 10GB, got '{text}'")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** " kmgt".index(match[2] or " "))
