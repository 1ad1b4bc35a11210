"""Sockets fit into their folders, however long TMPDIR is."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from vmae.core.errors import InputError
from vmae.core.sockets import MOST_BYTES, socket_folder

LOADER = """
import sys, tempfile
import torch
from torch.utils.data import DataLoader
from vmae.core.sockets import shorten_own_sockets
if sys.argv[1] == "late":
    import multiprocessing.util
    multiprocessing.util.get_temp_dir()  # somebody was here before
shorten_own_sockets()
batches = list(DataLoader(torch.zeros(8, 4), batch_size=2, num_workers=1, timeout=20))
assert len(batches) == 4
print(tempfile.gettempdir())
"""


def long_folder(tmp_path: Path, bytes_: int) -> str:
    folder = tmp_path / ("x" * (bytes_ - len(os.fsencode(str(tmp_path))) - 1))
    folder.mkdir()
    assert len(os.fsencode(str(folder))) == bytes_
    return str(folder)


@pytest.fixture
def short_path() -> Path:
    return Path(tempfile.mkdtemp(dir="/tmp"))


@pytest.mark.parametrize("letters", [75, 76])
def test_loader_processes_under_a_long_tmpdir(short_path: Path, letters: int) -> None:
    """At 76 letters and more torch's loader waits for ever for its first batch."""
    folder = long_folder(short_path, letters)
    for how in ("early", "late") if letters == 76 else ("early",):
        done = subprocess.run(
            [sys.executable, "-c", LOADER, how],
            env={**os.environ, "TMPDIR": folder, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        assert (done.returncode, done.stdout.strip()) == (0, folder), done.stderr
    assert not list(Path(folder).iterdir())


def test_the_own_folder_where_it_fits_and_else_a_shorter_one(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = long_folder(short_path, 60)
    monkeypatch.setattr(tempfile, "tempdir", folder)
    assert socket_folder("/" + "s" * (MOST_BYTES - 61), "x") == folder
    assert socket_folder("/" + "s" * (MOST_BYTES - 60), "x") == "/tmp"
    with pytest.raises(InputError, match=r"Ray: expected a folder .* at most 1 bytes, got .*set TMPDIR"):
        socket_folder("/" + "s" * 105, "Ray")
