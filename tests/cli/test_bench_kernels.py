"""`vmae bench kernels` and `vmae bench report` as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from vmae.cli.bench_report import report
from vmae.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


def test_says_which_path_is_active_and_why() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("on a GPU this times the ops; the GPU suite covers it")
    done = CliRunner().invoke(main, ["bench", "kernels"])
    assert done.exit_code == 0
    for op in ("fused_attention", "gather_patches", "masked_patch_loss", "assemble_decoder_tokens"):
        assert op in done.output
    assert "nothing is timed" in done.output
    rows = json.loads(CliRunner().invoke(main, ["bench", "kernels", "--json"]).output)["status"]
    assert all(row["path"] == "torch" and row["reason"] for row in rows)


def test_aot_compiles_and_compares(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    env = os.environ | {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path)}
    arguments = ["bench", "kernels", "--aot", "--family", "90", "--only", "scale_unless_one"]
    done = subprocess.run(
        [sys.executable, "-m", "vmae", *arguments], capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "loss/scale_unless_one bf16 | sm_90" in done.stdout
    assert "no spill, no limit passed" in done.stdout


def test_aot_refuses_a_broken_expression() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vmae", "bench", "kernels", "--aot", "--only", "("],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 2
    assert "expected a regular expression for --only; got '('" in done.stderr


def test_report_of_nothing_says_that_figures_are_pending(tmp_path: Path) -> None:
    done = CliRunner().invoke(report, ["--results", str(tmp_path)])
    assert done.exit_code == 0
    assert "figures are pending" in done.output


def test_report_writes_tables_and_pictures(tmp_path: Path) -> None:
    """A made-up result: the layout is tested, not a speed."""
    row = {
        "op": "masked_patch_loss",
        "shape": {"B": 1, "P": 8},
        "what": "fwd+bwd",
        "flops": 1e3,
        "bytes": 1e3,
    }
    row["timings"] = [
        {"name": "ours", "ms": 1.0, "refused": None},
        {"name": "compiled official", "ms": 3.0, "refused": None},
    ]
    result = {"schema": 1, "dry_run": False, "started": "-", "machine": {"torch": "-", "gpu": "made up"}}
    result |= {"ceilings": {"copy_bytes_per_s": 1e9, "bf16_flop_per_s": 1e9}, "ops": [row]}
    (tmp_path / "gpu_x.json").write_text(json.dumps(result))
    done = CliRunner().invoke(report, ["--results", str(tmp_path), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "compiled official 3.00x" in (tmp_path / "out" / "report.md").read_text()
    assert {p.name for p in (tmp_path / "out").glob("*.png")} == {"gpu_x_ratios.png", "gpu_x_roofline.png"}
