"""`vmae bench step` on a tiny model: it measures what it says, and its contenders train the same model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from vmae.cli.main import main
from vmae.experiments.bench.cpu_step import CONTENDERS, Cell, stepper

pytest.importorskip("transformers", reason="needs transformers")
CELL = Cell(size="tiny", frames=8, height=32, width=32, batch=2, precision="fp32", mask_ratio=0.75)


def test_contenders_start_at_the_loss_of_an_untrained_model() -> None:
    # Different random weights, the same targets of unit variance: every first loss is near 1 and falls.
    for contender in CONTENDERS:
        one = stepper(contender, CELL)
        first = one()
        assert 0.8 < first < 2.5
        assert one() != first


def test_table_and_json(tmp_path: Path) -> None:
    line = (
        "bench step --size tiny --cell 8x32x32:2 --precision bf16 --repeats 2 --mask-ratio 0.75 --no-memory"
    )
    result = CliRunner().invoke(main, [*line.split(), "--json", str(tmp_path / "out.json")])
    assert result.exit_code == 0, result.output
    assert "8x32x32 b2 bf16" in result.output and "geometric mean of 1 cells" in result.output
    values = json.loads((tmp_path / "out.json").read_text())
    assert {k: len(v) for k, v in values["cells"][0]["ms"].items()} == dict.fromkeys(CONTENDERS, 2)
    assert values["machine"]["threads"] >= 1


@pytest.mark.slow
def test_peak_memory_comes_from_fresh_processes(tmp_path: Path) -> None:
    ballast = bytearray(1 << 30)
    ballast[::4096] = b"\1" * (len(ballast) // 4096)
    line = "bench step --size tiny --cell 8x32x32:2 --precision fp32 --repeats 1 --mask-ratio 0.75"
    result = CliRunner().invoke(main, [*line.split(), "--json", str(tmp_path / "out.json")])
    assert result.exit_code == 0, result.output
    peaks = json.loads((tmp_path / "out.json").read_text())["cells"][0]["peak_bytes"]
    # The gigabyte that this process holds is not the children's.
    assert all(0 < peak < len(ballast) / 2 for peak in peaks.values())


def test_a_cell_that_cannot_be_read() -> None:
    result = CliRunner().invoke(main, ["bench", "step", "--cell", "16x112:8"])
    assert "expected a cell like 16x112x112:8" in str(result.exception)
