"""Dispatch: modes, tables, refusals, reasons; and that the package lives without Triton."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vmae import kernels
from vmae.kernels import dispatch
from vmae.kernels.aot import SHARED_LIMIT
from vmae.kernels.attention import configs
from vmae.kernels.attention.library import site_dims
from vmae.kernels.patch_gather import configs as patches
from vmae.kernels.registry import OPS
from vmae.kernels.sites import Site
from vmae.kernels.table import Row

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


def _way(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, n: int = 160, d: int = 64, b: int = 64) -> str:
    """What a call on a GPU would be told, for a tensor that is nowhere."""
    monkeypatch.setattr(dispatch, "_unusable", lambda *_: None)
    qkv = torch.empty(b, n, 3, 12, d, dtype=dtype, device="meta").requires_grad_()
    shown = type("OnGpu", (), {"device": torch.device("cuda", 0), "dtype": dtype, "shape": qkv.shape})()
    shown.requires_grad = True
    dims = site_dims(qkv, 0)
    return dispatch.choose(
        "fused_attention", shown, unsupported=None, dims=dims, layout="packed", dtype=dtype
    )


def test_auto_takes_what_was_measured_for_this_site_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VMAE_KERNELS", raising=False)
    site = Site(
        op="fused_attention",
        dtype="bfloat16",
        dims=(("N", 160), ("H", 12), ("D", 64), ("first", 0)),
        batch=64,
        grad=True,
        layout="packed",
        compiled=False,
    )
    half = torch.bfloat16
    try:
        assert _way(monkeypatch, half) == "torch"
        dispatch.install({site.key: Row(choice="triton default", why="measured")})
        assert _way(monkeypatch, half) == "triton default"
        assert _way(monkeypatch, half, b=60) == "triton default"  # the same power of two
        for other in (
            _way(monkeypatch, torch.float32),
            _way(monkeypatch, half, d=80),
            _way(monkeypatch, half, n=161),
            _way(monkeypatch, half, b=16),
        ):
            assert other == "torch"
        with torch.no_grad():
            assert _way(monkeypatch, half) == "torch"
        dispatch.install({site.key: Row(choice="sdpa flash", why="measured")})
        assert _way(monkeypatch, half) == "sdpa flash"
        with kernels.use_kernels("torch"):
            assert _way(monkeypatch, half) == "torch"
        monkeypatch.setattr(dispatch, "_refused", {})
        dispatch.install({site.key: Row(choice="triton default", why="measured")})
        dispatch.refuse(dispatch.call_name(site.op, half, site.dims), "out of resources")
        assert _way(monkeypatch, half) == "torch"
        with kernels.use_kernels("triton"):
            assert _way(monkeypatch, half) == "torch"
            assert _way(monkeypatch, half, n=161) == "triton"
    finally:
        dispatch.install({})


def test_every_gpu_takes_tiles_that_fit_it() -> None:
    """Its family's, or those of the newest family before it; the gate holds each to its shared memory."""
    found = {c: dispatch.tiles_of(c) for c in (75, 80, 86, 87, 89, 90, 100, 103, 120, 121)}
    assert found == {
        75: 0, 80: 80, 86: 86, 87: 86, 89: 89, 90: 90, 100: 100, 103: 100, 120: 120, 121: 120,
    }  # fmt: skip
    assert set(SHARED_LIMIT) == set(dispatch.FAMILIES)
    assert {family for family, limit in SHARED_LIMIT.items() if limit == 101_376} == {86, 89, 120}


def test_a_candidate_tile_is_taken_by_its_name() -> None:
    half = torch.bfloat16
    default = configs.default_plan(160, 64, half, 90)
    names = configs.variants(160, 64, half, 90, grad=True)
    assert names[0] == "default"
    assert len(set(names)) == len(names) == 12
    plans = [configs.attention_plan(160, 64, half, 90, name) for name in names]
    assert plans[0] == default
    assert all(plan != default for plan in plans[1:])
    other = configs.CANDIDATES[90]["short_bwd"][1]
    both = f"short_fwd={configs.CANDIDATES[90]['short_fwd'][1]};short_bwd={other}"
    assert configs.attention_plan(160, 64, half, 90, both).short_bwd == other
    long = configs.attention_plan(160, 64, half, 90, f"short_bwd={configs.CANDIDATES[90]['short_bwd'][-1]}")
    assert long.short_bwd is None
    assert long.dq == long.dkdv == configs.CANDIDATES[90]["short_bwd"][-1]
    assert all(name.startswith("short_fwd") for name in configs.variants(160, 64, half, 90, grad=False)[1:])
    for shape in ((80, 64, half), (160, 80, half), (160, 64, torch.float32)):
        assert configs.variants(*shape, 90, grad=True) == ["default"]
    with pytest.raises(kernels.KernelInputError, match="short_fwd"):
        configs.attention_plan(160, 64, half, 90, "short_fwd=1x1")
    assert patches.loss_block(32, 48, "2 warps") == (32, 32, 16, 2)
    assert patches.loss_block(32, 48) == patches.loss_block(32, 48, "default") == (32, 32, 16, 1)
    assert patches.variants("loss", 32, 48) == ["default", "2 warps"]
    assert patches.variants("loss", 16, 24) == ["default"]


def test_the_first_candidate_is_the_default() -> None:
    for family, kernels_ in configs.CANDIDATES.items():
        short, long = (configs.default_plan(n, 64, torch.bfloat16, family) for n in (160, 1568))
        defaults = [short.short_fwd, short.short_bwd, long.fwd, long.dq, long.dkdv]
        assert [tiles[0] for tiles in kernels_.values()] == defaults


class Broken:
    """A kernel that the compiler, or the chip, will not have."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getitem__(self, grid: object) -> Any:
        def launch(*args: Any, **kwargs: Any) -> None:
            raise self.error

        return launch


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_kernel_that_does_not_fit_is_refused_and_training_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, device: str, compiled: bool
) -> None:
    """Forward fits, one kernel of the backward pass asks for more shared memory than there is."""
    from triton.runtime.errors import OutOfResources

    from vmae.kernels.attention import triton_kernels

    monkeypatch.setattr(dispatch, "_refused", {})
    torch.compiler.reset()
    qkv = torch.randn(1, 20, 3, 2, 16, device=device, requires_grad=True)
    attend = (
        torch.compile(kernels.fused_attention, backend="aot_eager") if compiled else kernels.fused_attention
    )
    (right,) = torch.autograd.grad(kernels.fused_attention(qkv).square().sum(), qkv)
    monkeypatch.setattr(
        triton_kernels, "_long_dkdv_kernel", Broken(OutOfResources(118784, 101376, "shared memory"))
    )
    with kernels.use_kernels("triton"), caplog.at_level(logging.WARNING, "vmae.kernels"):
        for _ in range(3):
            (got,) = torch.autograd.grad(attend(qkv).square().sum(), qkv)
            torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-5)
        warned = [r.getMessage() for r in caplog.records if "OutOfResources" in r.getMessage()]
        assert len(warned) == 1
        assert "fused_attention float32 N=20 H=2 D=16 first=0 takes the torch path from now on" in warned[0]
        monkeypatch.setattr(triton_kernels, "_long_fwd_kernel", Broken(RuntimeError("an illegal access")))
        with pytest.raises(RuntimeError, match="illegal access"):  # another shape: any other error is raised
            kernels.fused_attention(torch.randn(1, 24, 3, 2, 16, device=device))


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
