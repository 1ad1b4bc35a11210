"""Calibration against a device that does what it is told, in real child processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vmae.kernels.calibrate import Outcome, calibrate
from vmae.kernels.dispatch import FAMILIES
from vmae.kernels.registry import OPS, op_named
from vmae.kernels.sites import Site
from vmae.kernels.table import Row
from vmae.kernels.trial import decide, quartiles

HERE, ROOT = Path(__file__).parent, Path(__file__).resolve().parents[2]
LAYER = "fake_device:FakeDevice"
ATTENTION = Site(
    op="fused_attention",
    dtype="float32",
    dims=(("N", 9), ("H", 2), ("D", 8), ("first", 0)),
    batch=2,
    grad=True,
    layout="packed",
    compiled=False,
)
PATCHES = (("T", 4), ("height", 8), ("width", 8), ("C", 3), ("patch", 4), ("tubelet", 2))
SITES = {
    "attention": ATTENTION,
    "attention with lengths, last rows": replace(
        ATTENTION, layout="packed+lengths", dims=(("N", 9), ("H", 2), ("D", 8), ("first", 4)), grad=False
    ),
    "gather": replace(
        ATTENTION, op="gather_patches", dims=(("K", 3), *PATCHES), layout="uint8+rows", grad=False
    ),
    "gather with a gradient": replace(
        ATTENTION, op="gather_patches", dims=(("K", 3), *PATCHES), layout="float32"
    ),
    "loss": replace(
        ATTENTION, op="masked_patch_loss", dims=(("K", 5), *PATCHES), batch=8,
        layout="uint8+rows+mse+normalized+weights",
    ),
    "tokens": replace(
        ATTENTION, op="assemble_decoder_tokens", dims=(("V", 3), ("M", 5), ("D", 16)), layout="float32"
    ),
}  # fmt: skip


class Bench:
    """A machine with a fake device and a folder for its tables."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.log = folder, folder / "log"
        self._patch = monkeypatch
        monkeypatch.syspath_prepend(str(HERE))
        # In the child the ops compute their reference: what is tested is who is chosen, not the kernels.
        monkeypatch.setenv("TRITON_INTERPRET", "0")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(ROOT)]))
        monkeypatch.setenv("FAKE_DEVICE_LOG", str(self.log))
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        self.said: list[str] = []

    def __call__(self, told: dict[str, Any], *sites: Site, **how: Any) -> Outcome:
        self._patch.setenv("FAKE_DEVICE", json.dumps(told))
        self.log.unlink(missing_ok=True)
        how = {"budget_s": 200.0, "limit_s": 100.0, **how}
        calls = dict.fromkeys(sites or (ATTENTION,), 1)
        return calibrate(calls, layer=LAYER, folder=self.folder, say=self.said.append, **how)

    def logged(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


FAST, SLOW = {"ms": 1.0}, {"ms": 3.0}


def test_who_wins_is_chosen_remembered_and_not_measured_again(bench: Bench) -> None:
    outcome = bench({"torch": {"ms": 2.0}, "triton default": FAST, "others": SLOW}, *SITES.values())
    assert {row.choice for row in outcome.rows.values()} == {"triton default"}
    assert set(outcome.rows) == {site.key for site in SITES.values()}
    assert outcome.measured == len(SITES)
    assert "2.00 times as fast" in outcome.rows[ATTENTION.key].why
    for (
        row
    ) in outcome.rows.values():  # every trial's float64 agrees with its op; SDPA on a CPU has two backends
        assert set(row.refused) <= {"sdpa cudnn", "sdpa efficient"}
    timed = [c for c in op_choices() if c not in row_of(outcome).refused]
    clocks = [line for line in bench.logged() if line.startswith("clock")]
    assert any(
        clocks[i : i + len(timed)] == [f"clock {c}" for c in timed] for i in range(len(clocks))
    )  # in turns
    again = bench({"torch": SLOW, "others": FAST}, *SITES.values())
    assert again.rows == outcome.rows
    assert again.measured == 0
    assert bench.logged() == []
    forced = bench({"torch": FAST, "others": SLOW}, force=True)
    assert forced.rows[ATTENTION.key].choice == "torch"
    moved = bench({"driver": "2", "torch": {"ms": 2.0}, "sdpa flash": FAST, "others": SLOW})
    assert moved.rows[ATTENTION.key].choice == "sdpa flash"  # another driver: another fingerprint


def row_of(outcome: Outcome) -> Row:
    return outcome.rows[ATTENTION.key]


def op_choices() -> list[str]:
    return op_named(ATTENTION.op).choices(ATTENTION, 90)


RICH = replace(ATTENTION, dtype="bfloat16", dims=(("N", 130), ("H", 1), ("D", 64), ("first", 0)), batch=1)
"""A site with a dozen candidates."""


def tiles_of(site: Site) -> list[str]:
    return [c for c in op_named(site.op).choices(site, 90) if c.startswith("triton")]


def test_fast_candidates_that_are_not_right_are_refused(bench: Bench) -> None:
    wrong = {
        "wrong": "against float64",
        "spills": "spills 64",
        "raises": "RuntimeError: out of resource",
        "differs": "two runs on the same input differ",
        "unwritten": "error inf against float64",
    }
    named = dict(zip(wrong, tiles_of(RICH), strict=False))
    told = {choice: FAST | {"does": does} for does, choice in named.items()}
    row = bench({"torch": {"ms": 2.0}, **told, "others": SLOW}, RICH).rows[RICH.key]
    assert row.choice == "torch"
    for does, choice in named.items():
        assert wrong[does] in row.refused[choice]
        assert choice not in row.ms
    assert len(row.ms) >= 6  # the right ones were timed
    spilling = named["spills"]
    assert not any(line in bench.logged() for line in (f"launch {spilling}", f"clock {spilling}"))


@pytest.mark.slow
def test_what_takes_the_process_with_it_is_named_and_never_tried_again(bench: Bench) -> None:
    bad = dict(zip(("crashes", "loses the device", "hangs"), tiles_of(RICH), strict=False))
    told = {choice: FAST | {"does": does} for does, choice in bad.items()}
    told |= {"torch": {"ms": 2.0}, "sdpa flash": FAST, "others": SLOW}
    row = bench(told, RICH, limit_s=20.0).rows[RICH.key]
    assert row.choice == "sdpa flash"  # the rest was measured behind them
    for does, choice in bad.items():
        assert ("hung: nothing heard" if does == "hangs" else "the worker ended with code") in row.refused[
            choice
        ]
        assert any(choice in line and "not tried again" in line for line in bench.said)
    again = bench(told, RICH, force=True)
    assert not any(f" {choice}" in line for line in bench.logged() for choice in bad.values())
    assert again.rows[RICH.key].choice == "sdpa flash"


@pytest.mark.slow
def test_a_slow_compiler_is_no_hang(bench: Bench) -> None:
    """It has a limit of its own; past that its kernel is left out, and tried again another time."""
    site, limit = SITES["tokens"], 15.0
    told = {"torch": {"ms": 2.0}, "others": SLOW, "triton default": FAST | {"does": "compiles slowly"}}
    told["triton default"]["takes"] = 1.3 * limit
    assert bench(told, site, limit_s=limit).rows[site.key].choice == "triton default"
    told["triton default"]["takes"] = 600
    rich = replace(RICH, dtype="float32")
    given_up = bench(told, rich, limit_s=limit, compile_limit_s=limit).rows[rich.key]
    assert (given_up.choice, given_up.refused.get("triton default")) == ("torch", None)
    assert any("still compiling after 15 s; left out this time" in line for line in bench.said)


STAND_IN = """
import torch
def flash_attn_qkvpacked_func(qkv, dropout_p=0.0, softmax_scale=None, causal=False):
    q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=softmax_scale).transpose(1, 2)
"""
CUTE = """
import torch
def _flash_attn_fwd(q, k, v, softmax_scale=None, causal=False, return_lse=False):
    s = torch.einsum("bnhd,bmhd->bhnm", q, k).float() * softmax_scale
    return torch.einsum("bhnm,bmhd->bnhd", s.softmax(-1).to(v.dtype), v), s.logsumexp(-1)
def _flash_attn_bwd(q, k, v, out, dout, lse, softmax_scale=None, causal=False{into}):
    with torch.enable_grad():
        q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
        found = torch.autograd.grad(_flash_attn_fwd(q, k, v, softmax_scale)[0], (q, k, v), dout)
    for place, x in zip(({given}), found):
        place.copy_(x)
    return found
"""


@pytest.mark.parametrize("into", [True, False])
def test_flash_attn_is_a_candidate_where_it_is_installed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, into: bool
) -> None:
    """Stand-ins with the functions that are called: flash-attn itself runs on GPUs only."""
    site = replace(ATTENTION, dtype="bfloat16")
    assert not any("flash_attn" in c for c in op_named(site.op).choices(site, 90))
    package = bench.folder / "packages" / "flash_attn"
    (package / "cute").mkdir(parents=True)
    (package / "__init__.py").write_text(STAND_IN)
    (package / "cute" / "__init__.py").write_text("")
    words = (
        {"into": ", dq=None, dk=None, dv=None", "given": "dq, dk, dv"}
        if into
        else dict.fromkeys(("into", "given"), "")
    )
    (package / "cute" / "interface.py").write_text(CUTE.format(**words))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(package.parent), os.environ["PYTHONPATH"]]))
    told = {"torch": {"ms": 2.0}, "flash_attn 4": FAST, "flash_attn 2": {"ms": 1.5}, "others": SLOW}
    row = bench(told, site).rows[site.key]
    assert row.choice == "flash_attn 4"
    assert {"flash_attn 2", "flash_attn 4"} <= set(row.ms)  # both were right, gradients too
    # Not where it cannot serve, nor where its gradient is no graph's.
    monkeypatch.syspath_prepend(str(package.parent))
    found = {
        "lengths": replace(site, layout="packed+lengths"),
        "last rows": replace(site, dims=(*site.dims[:3], ("first", 4))),
        "float32": ATTENTION,
    }
    for other in found.values():
        assert not any("flash_attn" in c for c in op_named(site.op).choices(other, 90))
    compiled = op_named(site.op).choices(replace(site, compiled=True), 90)
    on_ada = op_named(site.op).choices(site, 89)
    for name in [n for n in sys.modules if n.split(".")[0] == "flash_attn"]:
        del sys.modules[name]
    assert "flash_attn 2" in compiled and "flash_attn 4" not in compiled
    assert "flash_attn 2" in on_ada and "flash_attn 4" not in on_ada


def test_ties_and_small_gains_go_to_torch_and_noise_decides_nothing(bench: Bench) -> None:
    row = bench({"torch": {"ms": 2.0}, "triton default": {"ms": 1.92}, "others": SLOW}).rows[ATTENTION.key]
    assert row.choice == "torch"
    assert "1.04 times" in row.why
    noisy = {"torch": {"ms": 2.0, "noise": 0.5}, "triton default": FAST, "others": SLOW}
    outcome = bench(noisy, SITES["tokens"])
    assert outcome.rows == {}  # nothing decided and nothing kept
    assert any("assemble_decoder_tokens" in line and "torch" in line for line in outcome.lines)
    fast_but_noisy = {"torch": {"ms": 2.0}, "triton default": {"ms": 1.0, "noise": 0.4}, "others": SLOW}
    assert bench(fast_but_noisy, SITES["tokens"]).rows == {}
    quiet = bench({"torch": {"ms": 2.0}, "triton default": FAST, "others": SLOW}, SITES["tokens"])
    assert quiet.rows[SITES["tokens"].key].choice == "triton default"  # later, when it is quiet


def test_where_torch_itself_fails_nothing_is_said(bench: Bench) -> None:
    assert bench({"torch": {"ms": 2.0, "does": "raises"}, "others": FAST}).rows == {}
    assert not any("clock" in line for line in bench.logged())


def test_what_did_not_fit_takes_torch_and_says_so(bench: Bench) -> None:
    outcome = bench({"torch": {"ms": 2.0}, "others": FAST}, *SITES.values(), budget_s=0.0)
    assert outcome.rows == {}
    assert len(outcome.lines) == len(SITES)
    assert all("torch (not measured: no time was left)" in line for line in outcome.lines)


def _other(folder: str, told: str, results: Any) -> None:
    os.environ["FAKE_DEVICE"] = told
    outcome = calibrate({ATTENTION: 1}, layer=LAYER, folder=Path(folder), budget_s=200.0, limit_s=100.0)
    results.put((outcome.measured, {k: r.choice for k, r in outcome.rows.items()}))


def test_of_many_processes_one_measures_and_all_choose_the_same(bench: Bench) -> None:
    told = json.dumps({"torch": {"ms": 2.0}, "triton default": FAST, "others": SLOW})
    context = multiprocessing.get_context("fork")
    results: Any = context.Queue()
    others = [context.Process(target=_other, args=(str(bench.folder), told, results)) for _ in range(3)]
    for p in others:
        p.start()
    found = [results.get(timeout=120) for _ in others]
    for p in others:
        p.join()
    assert sorted(measured for measured, _ in found) == [0, 0, 1]
    assert {choice for _, rows in found for choice in rows.values()} == {"triton default"}
    assert bench.logged().count("compile torch") == 1


def test_every_op_has_a_trial_and_torch_is_its_first_choice() -> None:
    assert {site.op for site in SITES.values()} == {op.name for op in OPS}
    for site in SITES.values():
        for family in FAMILIES:
            found = op_named(site.op).choices(site, family)
            assert found[0] == "torch"
            assert len(set(found)) == len(found)


def test_a_decision_needs_five_percent_beyond_the_spread() -> None:
    def of(torch_ms: float, ours: float, spread: float) -> str:
        times = {"torch": torch_ms, "triton default": ours}
        return decide({k: quartiles([v * (1 - spread), v, v * (1 + spread)]) for k, v in times.items()})[0]

    assert of(1.0, 0.90, 0.0) == "triton default"
    assert of(1.0, 0.96, 0.0) == "torch"
    assert of(1.0, 0.94, 0.05) == "torch"  # faster, but not beyond the spreads
    assert of(1.0, 0.70, 0.05) == "triton default"
    assert of(1.0, 0.70, 0.2) == ""
