"""Help is fast, imports nothing heavy, and every verb and option has its line."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import click
import pytest

from vmae.cli.lazy import LazyGroup
from vmae.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "ray", "mlflow", "streamlit", "pandas", "matplotlib", "decord", "av", "cv2", "triton")


def _commands(
    group: click.Group, prefix: tuple[str, ...] = ()
) -> list[tuple[tuple[str, ...], click.Command]]:
    found: list[tuple[tuple[str, ...], click.Command]] = []
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        found.append(((*prefix, name), command))
        if isinstance(command, click.Group):
            found += _commands(command, (*prefix, name))
    return found


COMMANDS = _commands(main)


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[" ".join(p) for p, _ in COMMANDS])
def test_every_command_and_option_is_documented(path: tuple[str, ...], command: click.Command) -> None:
    assert command.help, f"vmae {' '.join(path)} has no help"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"vmae {' '.join(path)} {parameter.opts[0]} has no help"


def test_listed_help_lines_belong_to_loadable_verbs() -> None:
    assert isinstance(main, LazyGroup)
    assert {p[0] for p, _ in COMMANDS} == set(main.verbs)


def test_no_help_imports_a_heavy_library() -> None:
    paths = [["--help"], *[[*p, "--help"] for p, _ in COMMANDS]]
    code = (
        "import sys\nfrom vmae.cli.main import run\n"
        f"for path in {paths!r}:\n"
        "    try:\n        run(path)\n    except SystemExit as e:\n        assert not e.code, path\n"
        f"print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, env=_environment()
    )
    assert done.stdout.splitlines()[-1] == "HEAVY []"


@pytest.mark.parametrize("path", [["--help"], ["sweep", "--help"], ["runs", "--help"]])
def test_help_answers_within_half_a_second_of_cpu_time(path: list[str]) -> None:
    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "vmae", *path],
            cwd=ROOT,
            capture_output=True,
            check=True,
            env=_environment(),
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(once() for _ in range(3)) < 0.5


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}
