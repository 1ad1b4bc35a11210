"""What only informs ends no work: progress and notes that cannot be written are dropped, results are not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

WORK = """
import sys
from vmae.cli.streams import make_safe
make_safe()
import click, logging, warnings
from vmae.core.progress import progress
with progress("pretrain", 10, unit="step", every_s=0.0) as bar:
    for _ in range(10):
        bar.update(loss=1.0)
        bar.note("a note")
        click.echo("a line " * 2000, err=True)
        logging.getLogger("vmae").warning("a warning")
        warnings.warn("another")
opened = open(sys.argv[1], "w")
assert opened.fileno() > 2
print("done")
"""


def run(
    code: str, *argv: str, stdout: int = subprocess.PIPE, stderr: int = subprocess.PIPE, closed: int = -1
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *argv],
        stdout=stdout,
        stderr=stderr,
        text=True,
        check=False,
        preexec_fn=(lambda: os.close(closed)) if closed >= 0 else None,
        env={k: v for k, v in os.environ.items() if k != "VMAE_PROGRESS"},
    )


@pytest.mark.parametrize("how", ["full", "gone", "closed", "bar"])
def test_work_goes_on_where_standard_error_cannot_be_written(tmp_path: Path, how: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    target = {"full": full, "gone": writer, "closed": writer, "bar": full}[how]
    code = WORK if how != "bar" else WORK.replace("every_s=0.0", "kind='bar'")
    done = run(code, f"{tmp_path}/x", stderr=target, closed=2 if how == "closed" else -1)
    os.close(writer)
    os.close(full)
    assert (done.returncode, done.stdout) == (0, "done\n")


COMMAND = "import sys; sys.argv[0] = 'vmae'; from vmae.cli.main import run; run()"


def test_a_result_that_cannot_be_written_is_one_line_and_no_success() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    done = run(COMMAND, "recipes", stdout=full)
    os.close(full)
    assert done.returncode == 1
    assert done.stderr == "vmae: error: the output could not be written: No space left on device\n"
    reader, writer = os.pipe()
    os.close(reader)
    done = run(COMMAND, "recipes", stdout=writer)  # `| head`
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_an_error_keeps_its_code_where_nobody_can_read_it() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    assert run(COMMAND, "recipes", "show", "nothere", stderr=full).returncode == 2
    os.close(full)
