"""`fused_attention` described: what it is timed against, compiled for and launched with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vmae.kernels.attention import configs
from vmae.kernels.attention.bench import benches, sweeps
from vmae.kernels.attention.configs import (
    CANDIDATES,
    SWEEP_HEAD_DIM,
    AttentionPlan,
    Tile,
    default_plan,
    head_block,
    key_tiles,
    with_tiles,
)
from vmae.kernels.attention.library import launch_bwd, launch_fwd
from vmae.kernels.attention.op import fused_attention
from vmae.kernels.attention.reference import fused_attention_reference
from vmae.kernels.attention.trial import choices, trial
from vmae.kernels.descriptor import Bar, Case, Op
from vmae.kernels.dispatch import family as family_here

_SDPA = ("sdpa default", "sdpa flash", "sdpa cudnn", "sdpa efficient")
_DTYPE = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def _cases(family: int) -> Iterator[Case]:
    bf16 = torch.bfloat16
    for n, d in ((80, 64), (160, 64), (196, 64), (160, 80)):  # encoders: tube 0.95, 0.9; L/H
        yield from _plan_cases(n, d, bf16, family)
    yield from _plan_cases(160, 64, bf16, family, lengths=True)
    for n, d in ((1568, 64), (1568, 80), (944, 64), (1568, 32)):
        yield from _plan_cases(n, d, bf16, family)
    yield from _plan_cases(1568, 64, bf16, family, lengths=True)
    yield from _plan_cases(1568, 64, torch.float16, family)
    yield from _plan_cases(1568, 64, torch.float32, family)
    # The other head dims, and the longest short sequences: every tile that `attention_plan` gives.
    for d in (16, 24, 96, 128):
        yield from _plan_cases(160, d, bf16, family)
        yield from _plan_cases(1568, d, bf16, family)
    for d in (32, 64):
        yield from _plan_cases(256, d, bf16, family)
    for d in (16, 32, 128):
        yield from _plan_cases(1568, d, torch.float32, family)
    yield from _candidate_cases(family)


def _plan_cases(n: int, d: int, dtype: torch.dtype, family: int, lengths: bool = False) -> Iterator[Case]:
    for kernel, tile in _kernels_of(default_plan(n, d, dtype, family)):
        yield _case(kernel, tile, n, d, dtype, family, lengths)


def _candidate_cases(family: int) -> Iterator[Case]:
    """The candidates; the first of a kernel is its default and listed already."""
    for kernel, tiles in CANDIDATES.get(family, {}).items():
        n = 160 if kernel.startswith("short") else 1568
        for tile in tiles[1:]:
            kernels = ("long_dq", "long_dkdv") if tile.form == "long" else (kernel,)
            for name in kernels:
                case = _case(name, tile, n, SWEEP_HEAD_DIM, torch.bfloat16, family, False)
                yield replace(case, name=f"{case.name} as {tile}")


def _case(kernel: str, tile: Tile, n: int, d: int, dtype: torch.dtype, family: int, lengths: bool) -> Case:
    t = "*" + _DTYPE[dtype]
    types = dict.fromkeys(("qkv_ptr", "out_ptr", "dout_ptr", "dqkv_ptr"), t)
    types |= {"lse_ptr": "*fp32", "delta_ptr": "*fp32", "len_ptr": "*i64"}
    types |= {"scale": "fp32", "scale_log2": "fp32"}
    label = f"N={n} D={d} {_DTYPE[dtype]}" + (" lengths" if lengths else "")
    constants: dict[str, Any] = {"D": d, "BLOCK_D": head_block(d), "HAS_LENGTHS": lengths}
    constants["BLOCK_M"] = tile.block_m
    if kernel.startswith("short"):
        constants["N"] = n
    own = tile.form in ("two_pass", "persistent")  # has a kernel of its own
    if tile.form == "persistent":
        constants["STAGES"] = tile.num_stages
    if kernel.startswith("short") and tile.form != "two_pass":
        constants["KEYS_A"], constants["KEYS_B"] = key_tiles(n, tile.form)
    else:
        constants["BLOCK_N"] = tile.block_n
    if kernel.startswith("long"):
        constants["PEELED"] = tile.peeled
    return Case(
        name=f"attention/{kernel} {label}",
        family=family,
        module="attention",
        kernel=f"_{kernel}_{tile.form}_kernel" if own else f"_{kernel}_kernel",
        types=types,
        constants=constants,
        aligned=("stride_b", "stride_n", "stride_part", "stride_h", "first")
        + (("N",) if n % 16 == 0 else ()),
        options={"num_warps": tile.num_warps, "num_stages": tile.num_stages},
    )


def _kernels_of(plan: AttentionPlan) -> Iterator[tuple[str, Tile]]:
    if plan.short_fwd is not None:
        yield "short_fwd", plan.short_fwd
    else:
        yield "long_fwd", plan.fwd
    if plan.short_bwd is not None:
        yield "short_bwd", plan.short_bwd
    else:
        yield "long_dq", plan.dq
        yield "long_dkdv", plan.dkdv


def _small_launches(device: str) -> Iterator[tuple[Tensor, Tensor]]:
    gen = torch.Generator().manual_seed(3)
    for n, first in ((17, 0), (160, 0), (261, 0), (261, 100)):
        qkv = torch.randn(1, n, 3, 2, 64, generator=gen).to(device, torch.bfloat16).requires_grad_()
        exact = qkv.detach().double().requires_grad_()
        (got,) = torch.autograd.grad(fused_attention(qkv, first_query=first).float().square().sum(), qkv)
        (ref,) = torch.autograd.grad(fused_attention_reference(exact)[:, first:].square().sum(), exact)
        yield got, ref
    if device == "cuda":
        for tile in CANDIDATES.get(family_here(), {}).get("short_bwd", []):
            qkv = torch.randn(1, 160, 3, 2, 64, generator=gen).to(device, torch.bfloat16)
            plan = with_tiles(default_plan(160, 64, qkv.dtype, family_here()), {"short_bwd": tile})
            out, lse = launch_fwd(qkv, 0.125, None, plan)
            exact = qkv.double().requires_grad_()
            (ref,) = torch.autograd.grad(fused_attention_reference(exact).sum(), exact)
            yield launch_bwd(torch.ones_like(out), qkv, out, lse, 0.125, None, plan=plan), ref


def _use(kernel: str, candidate: str) -> None:
    for tiles in CANDIDATES.values():
        for tile in tiles.get(kernel, []):
            if str(tile) == candidate:
                configs.measured_here[kernel] = tile


OP = Op(
    name="fused_attention",
    folder="attention",
    baselines={"fused_attention": _SDPA},
    bars=(
        Bar(what="encoder attention", bench="fused_attention", tokens=160, timed="fwd", baselines=_SDPA,
            ratio=1.5),
        Bar(what="encoder attention", bench="fused_attention", tokens=160, timed="fwd+bwd", baselines=_SDPA,
            ratio=1.8),
        Bar(what="decoder attention", bench="fused_attention", tokens=1568, timed="fwd+bwd", baselines=_SDPA,
            ratio=1.0),
    ),
    benches=benches,
    choices=choices,
    trial=trial,
    cases=_cases,
    small_launches=_small_launches,
    sweeps=sweeps,
    use=_use,
)  # fmt: skip
