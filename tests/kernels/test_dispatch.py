"""Dispatch: modes, evidence, reasons; and that the package lives without Triton."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vmae import kernels
from vmae.kernels import dispatch, evidence
from vmae.kernels.attention import configs
from vmae.kernels.patch_gather import configs as patches
from vmae.kernels.registry import OPS

ROOT = Path(__file__).resolve().parents[2]


def test_modes_nest_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VMAE_KERNELS", raising=False)
    assert dispatch.mode() == "auto"
    monkeypatch.setenv("VMAE_KERNELS", "torch")
    assert dispatch.mode() == "torch"
    with kernels.use_kernels("triton"):
        assert dispatch.mode() == "triton"
        with pytest.raises(RuntimeError), kernels.use_kernels("auto"):
            assert dispatch.mode() == "auto"
            raise RuntimeError
        assert dispatch.mode() == "triton"
    assert dispatch.mode() == "torch"


def test_status_names_every_op_with_a_reason() -> None:
    for mode in dispatch.MODES:
        with kernels.use_kernels(mode):
            rows = kernels.kernel_status()
        assert {r.op.split()[0] for r in rows} == {op.name for op in OPS}
        assert all(r.reason for r in rows)
        if mode == "torch":
            assert {r.path for r in rows} == {"torch"}


GPU_ROW = {"machine": {"capability": "9.0"}, "dry_run": False}


def _timed(op: str, shape: dict[str, int], ours: float | None, torch_path: float) -> dict[str, Any]:
    other = "sdpa default" if op == "fused_attention" else "torch path"
    return {
        "op": op,
        "shape": shape,
        "timings": [{"name": "ours", "ms": ours}, {"name": other, "ms": torch_path}],
    }


def test_evidence_chooses_per_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up timings: the kernel twice as fast at 160 tokens, slower at 1568, refused for the loss."""
    result = GPU_ROW | {
        "ops": [
            _timed("fused_attention", {"N": 160}, 1.0, 2.0),
            _timed("fused_attention", {"N": 1568}, 3.0, 2.0),
            _timed("masked_patch_loss", {"P": 1536}, None, 2.0),
            _timed("gather_patches", {"P": 1536}, 1.0, 1.01),
        ]
    }
    source, table = tmp_path / "gpu_test.json", tmp_path / "evidence.json"
    source.write_text(json.dumps(result))
    assert evidence.main([str(source), "--out", str(table)]) == 0
    monkeypatch.setattr(dispatch, "EVIDENCE_FILE", table)
    monkeypatch.setattr(dispatch, "_unusable", lambda *_: None)
    monkeypatch.setattr(dispatch, "family", lambda *_: 90)
    dispatch.load_evidence.cache_clear()
    monkeypatch.delenv("VMAE_KERNELS", raising=False)
    try:

        def path(op: str, size: int) -> str:
            return dispatch.decide(op, "cuda", 0, None, size).path

        assert [path("fused_attention", n) for n in (40, 160, 864, 865, 1568, 3000)] == ["triton"] * 3 + [
            "torch"
        ] * 3
        assert path("masked_patch_loss", 1536) == "torch"
        assert path("gather_patches", 1536) == "torch"  # within the spread of two runs
        unmeasured = dispatch.decide("assemble_decoder_tokens", "cuda", 0, None, 384)
        assert unmeasured.path == "torch"
        assert "unmeasured on sm_90" in unmeasured.reason
        assert "2.00x" in dispatch.decide("fused_attention", "cuda", 0, None, 160).reason
        assert dispatch.decide("fused_attention", "cuda", 0, "float64", 160).reason == "float64"
    finally:
        dispatch.load_evidence.cache_clear()


def test_a_measured_tile_replaces_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up timings: another candidate wins for one kernel; a tile that is no candidate is not taken."""
    bf16 = torch.bfloat16
    default, other = configs.CANDIDATES[90]["short_bwd"][:2]
    rows = [
        {
            "kernel": "short_bwd",
            "shape": {"N": 160},
            "best": str(other),
            "candidates": [{"tile": str(default), "ms": 2.0}, {"tile": str(other), "ms": 1.0}],
        },
        {
            "kernel": "loss",
            "shape": {"P": 1536},
            "best": "4 warps",
            "candidates": [{"tile": "1 warps", "ms": 3.0}, {"tile": "4 warps", "ms": 1.0}],
        },
        {"kernel": "long_fwd", "shape": {}, "best": "1x1", "candidates": [{"tile": "1x1", "ms": 1.0}]},
        {"kernel": "long_dq", "shape": {}, "best": None, "candidates": [{"tile": "x", "ms": None}]},
    ]
    source, table = tmp_path / "gpu_test.json", tmp_path / "evidence.json"
    source.write_text(json.dumps(GPU_ROW | {"ops": [], "tiles": rows}))
    assert evidence.main([str(source), "--out", str(table)]) == 0
    assert "2.00x" in json.loads(table.read_text())["sm_90"]["tiles"]["short_bwd"]["why"]
    monkeypatch.setattr(dispatch, "EVIDENCE_FILE", table)
    dispatch.load_evidence.cache_clear()
    try:
        assert configs.attention_plan(160, 64, bf16, 90).short_bwd == other
        assert configs.attention_plan(80, 64, bf16, 90) == configs.default_plan(80, 64, bf16, 90)
        assert configs.attention_plan(160, 80, bf16, 90) == configs.default_plan(160, 80, bf16, 90)
        assert configs.attention_plan(160, 64, bf16, 80) == configs.default_plan(160, 64, bf16, 80)
        assert configs.attention_plan(1568, 64, bf16, 90) == configs.default_plan(1568, 64, bf16, 90)
        assert patches.loss_block(32, 48, 90) == (32, 64, 4)
        assert patches.loss_block(32, 48, 80) == patches.loss_block(32, 48) == (32, 64, 1)
        assert patches.loss_block(16, 24, 90) == (16, 32, 1)
        long = configs.with_tiles(
            configs.default_plan(160, 64, bf16, 90), {"short_bwd": configs.CANDIDATES[90]["short_bwd"][-1]}
        )
        assert long.short_bwd is None
        assert long.dq == long.dkdv == configs.CANDIDATES[90]["short_bwd"][-1]
    finally:
        dispatch.load_evidence.cache_clear()


def test_the_first_candidate_is_the_default() -> None:
    for family, kernels_ in configs.CANDIDATES.items():
        short, long = (configs.default_plan(n, 64, torch.bfloat16, family) for n in (160, 1568))
        defaults = [short.short_fwd, short.short_bwd, long.fwd, long.dq, long.dkdv]
        assert [tiles[0] for tiles in kernels_.values()] == defaults


def test_a_dry_run_is_no_evidence(tmp_path: Path) -> None:
    source = tmp_path / "gpu_dry_run.json"
    source.write_text(json.dumps(GPU_ROW | {"dry_run": True, "ops": []}))
    with pytest.raises(SystemExit):
        evidence.main([str(source), "--out", str(tmp_path / "evidence.json")])
    assert not (tmp_path / "evidence.json").exists()


def test_checked_in_evidence_names_known_ops_and_paths() -> None:
    for ops in dispatch.load_evidence().values():
        for op, rows in ops.items():
            assert op in {known.name for known in OPS}
            assert all(r["path"] in ("torch", "triton") and r["why"] for r in rows)


def test_a_refusal_is_said_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_said", set())
    qkv = torch.zeros(1, 2, 3, 1, 16, dtype=torch.float64)
    with caplog.at_level(logging.WARNING, "vmae.kernels"), kernels.use_kernels("triton"):
        for _ in range(3):
            kernels.fused_attention(qkv)
    assert len(caplog.records) == 1
    assert "torch path" in caplog.records[0].getMessage()


WITHOUT_TRITON = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name == "triton" or name.startswith("triton."):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "triton" else real(name, *a)
import torch
from vmae import kernels
with kernels.use_kernels("triton"):
    out = kernels.fused_attention(torch.randn(1, 4, 3, 2, 8))
    assert out.shape == (1, 4, 16)
    assert {r.reason for r in kernels.kernel_status()} == {"Triton is not installed"}
assert not any(m == "triton" or m.startswith("triton.") for m in sys.modules)
"""


def test_everything_works_without_triton() -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Triton is not installed" in done.stderr  # said once, aloud


def test_bfloat16_is_refused_where_the_interpreter_would_return_nonsense(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if torch.cuda.is_available() or not dispatch.interpreting():
        pytest.skip("about Triton's interpreter on a CPU")
    monkeypatch.setattr(dispatch, "interpreter_rounds_bfloat16", False)
    monkeypatch.setattr(dispatch, "_said", set())
    qkv = torch.randn(1, 16, 3, 2, 16, dtype=torch.bfloat16)
    with kernels.use_kernels("triton"):
        out = kernels.fused_attention(qkv)
    assert "multiplies bfloat16 bit patterns" in caplog.text
    torch.testing.assert_close(out, kernels.fused_attention(qkv))
