"""`vmae cache`: what is there, and what goes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from vmae.cli.main import run
from vmae.core.video.cache import DecodedCache
from vmae.core.video.samples import Sample


def vmae(*argv: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        run([str(a) for a in argv])
    return int(stopped.value.code or 0)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A run directory with two decoded lists, one not used for ten days, and parts of an evaluation."""
    place = tmp_path / "runs" / "cache"
    for number in range(2):
        np.save(tmp_path / f"{number}.npy", np.full((40, 32, 32, 3), number, np.uint8))
        cache = DecodedCache.build(
            [Sample(path=str(tmp_path / f"{number}.npy"), label=0)], place, 16 * (1 + number)
        )
        if not number:
            old = time.time() - 10 * 86400
            for path in (*cache.folder.iterdir(), cache.folder):
                os.utime(path, (old, old))
    (place / "parts" / "some").mkdir(parents=True)
    (place / "parts" / "some" / "0.npz").write_bytes(b"x" * 1000)
    return tmp_path / "runs"


def folders(runs: Path) -> set[str]:
    return {
        p.name for p in (*(runs / "cache").iterdir(), *(runs / "cache" / "parts").iterdir()) if p.is_dir()
    }


def test_it_says_what_is_there_and_removes_nothing(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = folders(runs)
    assert vmae("cache", "--runs-dir", runs) == 0
    out = capsys.readouterr().out
    assert "1 decoded videos, short side 16" in out and "short side 32" in out and "finished parts" in out
    assert f"could be freed: vmae cache --delete --runs-dir {runs}" in out
    assert folders(runs) == before
    assert vmae("cache", "--runs-dir", runs.parent) == 0
    assert "nothing in" in capsys.readouterr().out


def test_the_longest_unused_go(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert vmae("cache", "--runs-dir", runs, "--unused-for", "7d", "--delete", "--yes") == 0
    assert "removed" not in capsys.readouterr().err
    assert len(folders(runs)) == 3, "one list, parts and its folder"
    assert vmae("cache", "--runs-dir", runs, "--keep", "1GB", "--delete", "--yes") == 0
    assert "nothing to remove" in capsys.readouterr().out
    assert vmae("cache", "--runs-dir", runs, "--delete", "--yes") == 0
    assert folders(runs) == {"parts"}


def test_sizes_and_times_are_checked(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert vmae("cache", "--runs-dir", runs, "--keep", "lots") == 2
    assert "--keep: expected a size such as 500MB or 10GB, got 'lots'" in capsys.readouterr().err
    assert vmae("cache", "--runs-dir", runs, "--unused-for", "7w") == 2
    assert vmae("cache", "--runs-dir", runs, "--delete") == 2, "no terminal to ask on"


def test_a_cache_that_is_used_is_marked(runs: Path, tmp_path: Path) -> None:
    place = runs / "cache"
    again = DecodedCache.build([Sample(path=str(tmp_path / "0.npy"), label=0)], place, 16)
    assert time.time() - again.folder.stat().st_mtime < 60
