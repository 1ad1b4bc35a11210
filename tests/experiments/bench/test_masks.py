"""The benchmark of masks compares two ways that give the same ones, and shows both."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from vmae.cli.bench_masks import masks
from vmae.core.errors import VmaeError
from vmae.core.numerics import make_generator
from vmae.experiments.bench import masks as bench_masks


def test_both_ways_give_the_same_masks() -> None:
    rows = torch.tensor([0, 3, 17, 18])
    before = bench_masks.drawn_for_all(20, rows, make_generator(0))
    now = bench_masks.kept_first(20, rows, make_generator(0))
    assert all(torch.equal(a, b) for a, b in zip(before, now, strict=True))


def test_other_masks_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bench_masks.kept_first

    def shifted(total: int, rows: torch.Tensor, generator: Any) -> Any:
        return whole(total, (rows + 1) % total, generator)

    monkeypatch.setattr(bench_masks, "kept_first", shifted)
    with pytest.raises(VmaeError, match="expected the same masks of 8 clips both ways, got others"):
        bench_masks.bench((8,), repeats=1, own=2)


def test_the_command_shows_before_and_now() -> None:
    shown = CliRunner().invoke(masks, ["--clips", "8", "--clips", "32", "--own", "4", "--repeats", "2"])
    assert shown.exit_code == 0, shown.output
    assert [line.split()[:2] for line in shown.output.splitlines()[2:4]] == [["8", "4"], ["32", "4"]]
    told = CliRunner().invoke(masks, ["--clips", "8", "--own", "4", "--repeats", "1", "--json"])
    (row,) = json.loads(told.output)
    assert row["total"] == 8 and row["own"] == 4 and min(*row["before_ms"], *row["now_ms"]) > 0
