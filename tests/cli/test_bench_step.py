"""`vmae bench step` on a tiny model: it measures what it says, and its contenders train the same model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from vmae.cli.main import main
from vmae.core.model.masking import MaskConfig
from vmae.core.model.videomae import VideoMAEConfig
from vmae.core.plan import training_flops
from vmae.experiments.bench.cpu_ceiling import Others, products, too_busy
from vmae.experiments.bench.cpu_step import COMPILED, CONTENDERS, Cell, stepper
from vmae.experiments.bench.peers import official_loss, official_model

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
    cell = values["cells"][0]
    assert cell["ceiling_ms"] > 0  # how it stands to the step's time is the machine's matter, not a test's
    assert f"({cell['ceiling_ms'] / cell['median_ms']['vmae']:.0%})" in result.output
    assert ("NOT to be believed" in result.output) == cell["busy"]


CLONE = """
import torch
class PretrainVisionTransformer(torch.nn.Module):
    def __init__(self, img_size, patch_size, decoder_num_classes, tubelet_size, **sizes):
        super().__init__()
        assert sizes["qkv_bias"] and sizes["norm_layer"](4).eps > 0
        self.kernel = (tubelet_size, patch_size, patch_size)
        self.head = torch.nn.Conv3d(3, decoder_num_classes, self.kernel, self.kernel)
    def forward(self, x, mask):
        return self.head(x).flatten(2).transpose(1, 2)[mask].view(len(x), -1, self.head.out_channels)
"""


def test_the_official_code_takes_part_where_a_clone_is_given(tmp_path: Path) -> None:
    """A stand-in with its interface; what it is held to is the official loss: 1 for a model that says 0."""
    line = (
        "bench step --size tiny --cell 16x32x32:2 --precision fp32 --repeats 1 --mask-ratio 0.75 --no-memory"
    )
    line += f" --official {tmp_path}"
    missing = CliRunner().invoke(main, line.split())
    assert "expected a clone of the official code with modeling_pretrain.py" in str(missing.exception)
    (tmp_path / "modeling_pretrain.py").write_text(CLONE)
    try:
        done = CliRunner().invoke(main, line.split())
        assert done.exit_code == 0, done.output
        assert "official ms" in done.output
        config = VideoMAEConfig.from_size("tiny", frames=16, height=32, width=32)
        model = official_model(config, tmp_path)
        for p in model.parameters():
            torch.nn.init.zeros_(p)
        video = torch.randint(0, 256, (2, 3, 16, 32, 32), dtype=torch.uint8)
        masked = torch.zeros(2, config.grid.num_tokens, dtype=torch.bool)
        masked[:, ::2] = True
        n = config.grid.patch_dim // 3
        assert official_loss(model, config, video, masked)().item() == pytest.approx(1 - 1 / n, abs=1e-4)
    finally:
        sys.modules.pop("modeling_pretrain", None)
    wrong = CliRunner().invoke(main, line.replace("16x32x32", "8x32x32").split())
    assert "square clips of 16 frames, got 8 of 32x32" in str(wrong.exception)


def test_the_products_are_those_of_the_plan() -> None:
    for size, visible in (("small", 160), ("base", 392)):
        config = VideoMAEConfig.from_size(size)
        found = products(config, batch=3, visible=visible)
        mask = MaskConfig(type="tube", ratio=1 - visible / config.grid.num_tokens)
        planned = 3 * training_flops(config, mask)
        assert sum(p.flops * times for p, times in found.items()) == pytest.approx(planned, rel=0.02)


def test_other_processes_are_counted() -> None:
    others = Others()
    busy = subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"])
    try:
        time.sleep(2)
        found = others.cores()
    finally:
        busy.kill()
        busy.wait()
    if found is None:
        pytest.skip("this system does not count")
    assert found > 0.2
    assert too_busy(1.5, threads=os.cpu_count() or 1) and not too_busy(0.0, threads=1)
    assert not too_busy(None, threads=1)


@pytest.mark.slow
def test_compiled_peers_take_part(tmp_path: Path) -> None:
    line = (
        "bench step --size tiny --cell 8x32x32:2 --precision fp32 --repeats 1 --mask-ratio 0.75 --no-memory"
    )
    # In a process of its own: torch's compiler warns, and warnings are errors here.
    command = [
        sys.executable,
        "-m",
        "vmae",
        *line.split(),
        "--compiled",
        "--json",
        str(tmp_path / "out.json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (cell,) = json.loads((tmp_path / "out.json").read_text())["cells"]
    assert set(cell["median_ms"]) == {*CONTENDERS, *COMPILED}


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
