"""`vmae results`: the questions of docs/results, their tables and their pages."""

from __future__ import annotations

from pathlib import Path

import click

from vmae.cli.lazy import LazyGroup, Verbs
from vmae.cli.options import runs_dir_option

VERBS: Verbs = {
    "list": ("vmae.cli.results", "list_", "The questions, and the command that answers each."),
    "export": ("vmae.cli.results", "export", "Write the finished sweeps that answer one as tables."),
    "build": ("vmae.cli.results", "build", "Make the pages and pictures from tables."),
}


@click.group(cls=LazyGroup, verbs=VERBS)
def results() -> None:
    """What was measured for docs/results. A sweep named QUESTION-SET answers QUESTION on SET."""


@click.command("list")
@click.option("--on", "on", metavar="SET", help="Commands for this set alone: demo, egogestar10, tennis7.")
def list_(on: str | None) -> None:
    """List the questions with the command that answers each, on the built-in set unless --on says another."""
    from vmae.core.errors import InputError, nearest
    from vmae.experiments.results import questions

    name = on or questions.BUILT_IN
    if name not in questions.SETS:
        known = list(questions.SETS)
        raise InputError(f"--on: expected one of {', '.join(known)}; got '{name}'{nearest(name, known)}")
    for question in questions.ALL.values():
        click.echo(f"{question.name}: {question.title}")
        command = question.command(questions.SETS[name]) if question.sweep else "(the trials of all others)"
        for line in (question.before, command):
            if line:
                click.echo(f"    {line}")


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--sweep", "only", multiple=True, help="Only this sweep (repeatable).  [default: all]")
@runs_dir_option
def export(folder: Path, only: tuple[str, ...], runs_dir: Path | None) -> None:
    """Write the run directory's sweeps that answer a question to FOLDER, two small files each.

    They hold a line a trial, without frames, paths and names of videos; for the built-in set a strip of
    reconstructions lies beside them. Seeds whose trials are not all finished are named and left out.
    """
    from vmae.experiments.results.export import export_results
    from vmae.experiments.sweeps import driver

    found = export_results(driver.open_store(runs_dir, "reader"), folder, only)
    for one in found:
        if one.lacks:
            click.echo(f"{one.name}: left out: {one.lacks}", err=True)
        else:
            click.echo(f"{one.name}: {one.trials} trials{', a strip of pictures' if one.strip else ''}")
        if one.unfinished:
            seeds = ", ".join(map(str, one.unfinished))
            click.echo(f"{one.name}: left out, for some trial is not finished: seed {seeds}", err=True)
    if not found:
        click.echo("no sweep is named QUESTION-SET (`vmae results list`)", err=True)


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("docs/results"),
    show_default=True,
    help="Where the pages are written.",
)
def build(folder: Path, out: Path) -> None:
    """Make a page for each question that the tables in FOLDER answer, and the index; the same tables give the
    same files."""
    from vmae.experiments.results.build import build_results

    built = build_results(folder, out)
    for name, sets in built.answered.items():
        click.echo(f"{out / name}.md: {', '.join(sets)}")
    for name in built.left_out:
        click.echo(f"left out: {name}, which names no question (`vmae results list`)", err=True)
