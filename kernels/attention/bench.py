"""`fused_attention` timed against every SDPA backend, and its candidate tiles against each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vmae.kernels.attention import configs, library
from vmae.kernels.attention.configs import CANDIDATES, Tile, default_plan, with_tiles
from vmae.kernels.attention.op import fused_attention
from vmae.kernels.attention.reference import fused_attention_reference
from vmae.kernels.descriptor import BenchCase, Inputs, OpBench, Sweep, Variant
from vmae.kernels.dispatch import in_mode
from vmae.kernels.timing import checked_clips


def _sdpa(qkv: Tensor, backends: list[SDPBackend] | None) -> Tensor:
    """SDPA from packed and back: what a model calls around it. Its backward packs dq, dk, dv."""
    b, n, _, h, d = qkv.shape
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    if backends is None:
        out = F.scaled_dot_product_attention(q, k, v)
    else:
        with sdpa_kernel(backends):
            out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).reshape(b, n, h * d)


def attention_bench(
    b: int, n: int, h: int, d: int, *, backward: bool, device: str, compiled: bool
) -> OpBench:
    """`fused_attention` against every SDPA backend, packing included."""

    def make(seed: int) -> Inputs:
        gen = torch.Generator(device).manual_seed(seed)
        qkv = torch.randn(b, n, 3, h, d, generator=gen, device=device, dtype=torch.bfloat16)
        dout = torch.randn(b, n, h * d, generator=gen, device=device, dtype=torch.bfloat16)
        return {"qkv": qkv.requires_grad_(backward), "dout": dout}

    def through(attend: Callable[[Tensor], Tensor]) -> Callable[[Inputs], tuple[Tensor, ...]]:
        def run(x: Inputs) -> tuple[Tensor, ...]:
            out = attend(x["qkv"])
            return (out, *torch.autograd.grad(out, x["qkv"], x["dout"])) if backward else (out,)

        return run

    def exact(x: Inputs) -> tuple[Tensor, ...]:
        qkv = checked_clips(x["qkv"].detach()).double().requires_grad_(backward)
        out = fused_attention_reference(qkv)
        if not backward:
            return (out,)
        return out.detach(), *torch.autograd.grad(out, qkv, checked_clips(x["dout"]).double())

    backends: list[tuple[str, list[SDPBackend] | None]] = [("sdpa default", None)]
    if device == "cuda":
        backends += [
            ("sdpa flash", [SDPBackend.FLASH_ATTENTION]),
            ("sdpa cudnn", [SDPBackend.CUDNN_ATTENTION]),
            ("sdpa efficient", [SDPBackend.EFFICIENT_ATTENTION]),
        ]
    variants = [Variant(name="ours", run=through(in_mode("triton", fused_attention)))]
    if n <= 256:
        variants.append(Variant(name="ours, long kernels", run=through(_long_attention)))
    variants += [
        Variant(name=name, run=through(lambda qkv, which=which: _sdpa(qkv, which)))  # type: ignore[misc]
        for name, which in backends
    ]
    if n <= 512:
        variants.append(Variant(name="eager", run=through(fused_attention_reference)))
    if compiled:
        variants.append(Variant(name="compiled eager", run=through(torch.compile(fused_attention_reference))))
    unit = b * n * h * d * 2  # bytes of one of q, k, v, out in bfloat16
    return OpBench(
        op="fused_attention",
        shape={"B": b, "N": n, "H": h, "D": d},
        what="fwd+bwd" if backward else "fwd",
        make=make,
        exact=exact,
        variants=variants,
        # 2 products forward, 5 backward; bytes: qkv + out, then qkv + out + dout + dqkv
        flops=4.0 * b * h * n * n * d * (3.5 if backward else 1.0),
        bytes=unit * (12.0 if backward else 4.0),
    )


def _long_attention(qkv: Tensor) -> Tensor:
    """The long-sequence kernels at a short length: the alternative that dispatch may find better."""
    plan = replace(library.plan_for(qkv), short_fwd=None, short_bwd=None)
    scale = qkv.shape[4] ** -0.5

    class Long(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, qkv: Tensor) -> Tensor:
            out, lse = library.launch_fwd(qkv, scale, None, plan)
            ctx.save_for_backward(qkv, out, lse)
            return out

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            qkv, out, lse = ctx.saved_tensors
            return library.launch_bwd(grads[0], qkv, out, lse, scale, None, plan=plan)

    out: Tensor = Long.apply(qkv)
    return out


def benches(device: str, tiny: bool, compiled: bool) -> list[BenchCase]:
    """The published lengths, heads and head dims at a batch of 64."""
    shapes = [
        (64, 160, 12, 64, False, True),
        (64, 160, 12, 64, True, True),
        (64, 1568, 6, 64, True, True),
        (64, 1568, 6, 64, False, True),
        (64, 80, 12, 64, True, False),
        (64, 392, 12, 64, True, False),
        (64, 160, 16, 80, True, False),
        (64, 944, 6, 64, True, False),
        (64, 1568, 8, 80, True, False),
    ]
    if tiny:
        shapes = [(2, 20, 2, 16, True, True), (1, 20, 1, 16, False, True)]
    return [
        BenchCase(
            name=f"attention {n} x {h} x {d} {'fwd+bwd' if backward else 'fwd'}",
            barred=barred,
            build=lambda b=b, n=n, h=h, d=d, backward=backward: attention_bench(  # type: ignore[misc]
                b, n, h, d, backward=backward, device=device, compiled=compiled
            ),
        )
        for b, n, h, d, backward, barred in shapes
    ]


def sweeps(device: str, family: int, tiny: bool) -> Iterator[Sweep]:
    """The kernels that have candidate tiles on this family, at ViT-B's lengths."""
    for kernel, candidates in CANDIDATES.get(family, {}).items():
        short, tiles = kernel.startswith("short"), candidates
        shape = (64, 160, 12, 64) if short else (64, 1568, 6, 64)
        if tiny:
            shape = (1, 20 if short else 40, 1, 16)
            tiles = [t for t in candidates if t.form != "long"][:2]

        def build(
            kernel: str = kernel, tiles: list[Tile] = tiles, shape: tuple[int, int, int, int] = shape
        ) -> OpBench:
            return _tiles_bench(kernel, tiles, shape, device, family)

        yield Sweep(kernel=kernel, build=build)


def _tiles_bench(
    kernel: str, tiles: list[Tile], shape: tuple[int, int, int, int], device: str, family: int
) -> OpBench:
    """One kernel's candidates as variants, the other kernels at their best so far."""
    b, n, h, d = shape
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    scale, forward = d**-0.5, kernel.endswith("fwd")
    plan = default_plan(n, d, torch.bfloat16, family)
    plan = with_tiles(plan, {k: v for k, v in configs.measured_here.items() if k[:4] == kernel[:4]})

    def make(seed: int) -> Inputs:
        gen = torch.Generator(device).manual_seed(seed + 11)
        qkv = torch.randn(b, n, 3, h, d, generator=gen, device=device, dtype=dtype)
        dout = torch.randn(b, n, h * d, generator=gen, device=device, dtype=dtype)
        if forward:
            return {"qkv": qkv}
        out, lse = library.launch_fwd(qkv, scale, None, plan)
        return {"qkv": qkv, "dout": dout, "out": out, "lse": lse}

    def exact(x: Inputs) -> tuple[Tensor, ...]:
        few = checked_clips(x["qkv"]).double().requires_grad_()
        out = fused_attention_reference(few, scale=scale)
        if forward:
            return (out.detach(),)
        return torch.autograd.grad(out, few, checked_clips(x["dout"]).double())

    def variant(tile: Tile) -> Variant:
        mine = with_tiles(plan, {kernel: tile})

        def fwd(x: Inputs) -> tuple[Tensor, ...]:
            return (library.launch_fwd(x["qkv"], scale, None, mine)[0],)

        def bwd(x: Inputs) -> tuple[Tensor, ...]:
            return (library.launch_bwd(x["dout"], x["qkv"], x["out"], x["lse"], scale, None, plan=mine),)

        return Variant(name=str(tile), run=fwd if forward else bwd)

    unit = b * n * h * d * torch.finfo(dtype).bits // 8
    return OpBench(
        op="fused_attention",
        shape={"B": b, "N": n, "H": h, "D": d},
        what="fwd" if forward else "bwd",
        make=make,
        exact=exact,
        variants=[variant(tile) for tile in tiles],
        flops=4.0 * b * h * n * n * d * (1.0 if forward else 2.5),
        bytes=unit * (4.0 if forward else 8.0),
    )
