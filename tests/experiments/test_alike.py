"""CKA between a sweep's trials, from the command line on a sweep that was run."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

from vmae.cli.main import run


def cka(*argv: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        run(["sweeps", "cka", *map(str, argv)])
    return int(stopped.value.code or 0)


def test_every_finished_trial_is_compared_with_every_other(
    undisturbed_runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(undisturbed_runs, runs)
    (sweep,) = (runs / "sweeps").iterdir()
    assert cka(sweep.name, "--runs-dir", runs) == 0
    out = capsys.readouterr().out
    with open(sweep / "cka.csv", newline="") as f:
        header, *rows = csv.reader(f)
    trials = [p.name for p in (sweep / "trials").iterdir()]
    assert sorted(header[1:]) == sorted(trials) and [r[0] for r in rows] == header[1:]
    assert all(t in out for t in trials)
    matrix = np.array([r[1:] for r in rows], float)
    assert np.array_equal(matrix, matrix.T) and (np.diag(matrix) == 1).all() and matrix.max() <= 1
    # Trials of one seed start from the same weights and are trained for moments.
    assert matrix.min() > 0.2
    assert (sweep / "cka.png").read_bytes()[1:4] == b"PNG"

    for trial in trials[1:]:
        shutil.rmtree(sweep / "trials" / trial / "pretrain", ignore_errors=True)
    assert cka(sweep.name, "--runs-dir", runs) == 2
    assert "expected two finished trials whose weights are here, got 1" in capsys.readouterr().err
