"""Which tile is fastest on this GPU: the candidates of a kernel, checked, then timed in turns.

The candidates are few and all in the ahead-of-time table, so whichever wins is known not to spill. The GPU
suite uses a winner at once for everything it times afterwards; `python -m vmae.kernels.evidence` checks it
in.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vmae.experiments.bench import kernels as bench
from vmae.kernels import reference
from vmae.kernels.attention import configs, library
from vmae.kernels.attention.configs import CANDIDATES, Tile, default_plan, with_tiles
from vmae.kernels.dispatch import family
from vmae.kernels.patch_gather import configs as patches

Measure = Callable[[Callable[[str], None], dict[str, str]], dict[str, Any]]


def sweeps(device: str, *, tiny: bool, rounds: int = 5) -> Iterator[tuple[str, Measure]]:
    """(kernel, how to measure its candidates) for this GPU's family; rounds 0 only checks and compiles."""
    chosen = family() if device == "cuda" else 90
    for kernel, tiles in CANDIDATES.get(chosen, {}).items():

        def measure(
            announce: Callable[[str], None],
            skip: dict[str, str],
            kernel: str = kernel,
            tiles: list[Tile] = tiles,
        ) -> dict[str, Any]:
            if tiny:
                shape = (1, 20 if kernel.startswith("short") else 40, 1, 16)
                tiles = [t for t in tiles if t.form != "long"][:2]
            else:
                shape = (64, 160, 12, 64) if kernel.startswith("short") else (64, 1568, 6, 64)
            return measure_tiles(
                kernel, tiles, shape, device, chosen, rounds=rounds, announce=announce, skip=skip
            )

        yield kernel, measure
    if chosen in CANDIDATES:
        for kernel in patches.WARPS:
            yield kernel, _sweep_warps(kernel, device, tiny=tiny, rounds=rounds)


def _sweep_warps(kernel: str, device: str, *, tiny: bool, rounds: int) -> Measure:
    def measure(announce: Callable[[str], None], skip: dict[str, str]) -> dict[str, Any]:
        clip = bench.ClipShape(b=2, frames=4, side=16, patch=8, masked=0.5) if tiny else bench.ClipShape(b=64)
        build = bench.gather_only_bench if kernel == "gather" else bench.loss_bench
        item = build(clip, device=device, compiled=False)
        ours = item.variants[0].run

        def with_warps(warps: int) -> bench.Variant:
            def run(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
                before = patches.measured_here.copy()
                patches.measured_here[kernel] = warps
                try:
                    return ours(x)
                finally:
                    patches.measured_here.clear()
                    patches.measured_here.update(before)

            return bench.Variant(name=f"{warps} warps", run=run)

        item = replace(item, variants=[with_warps(w) for w in patches.WARPS[kernel]])
        how: dict[str, Any] = {"sets": 1, "min_ms": 0.1} if tiny else {"sets": 3, "min_ms": 20.0}
        timed = bench.run_bench(item, device, rounds=rounds, skip=skip, announce=announce, **how)
        rows = [{"tile": t.name, "ms": t.ms, "error": t.error, "refused": t.refused} for t in timed.timings]
        return _result(kernel, item.shape, rows)

    return measure


def _result(kernel: str, shape: dict[str, int], rows: list[dict[str, Any]]) -> dict[str, Any]:
    timed = [row for row in rows if row["ms"] is not None]
    best = min(timed, key=lambda row: float(row["ms"]))["tile"] if timed else None
    return {"kernel": kernel, "shape": shape, "candidates": rows, "best": best}


def measure_tiles(
    kernel: str,
    tiles: list[Tile],
    shape: tuple[int, int, int, int],
    device: str,
    chosen_family: int,
    *,
    rounds: int,
    announce: Callable[[str], None],
    skip: dict[str, str],
) -> dict[str, Any]:
    """Time one kernel's candidates at `shape` (B, N, H, D), the other kernels at their best so far.

    Returns {"kernel", "shape", "candidates": [{"tile", "ms", "error", "refused"}], "best": tile or None}.
    A candidate whose result is wrong or that does not launch is listed and not timed.
    """
    b, n, h, d = shape
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    gen = torch.Generator(device).manual_seed(11)
    qkv = torch.randn(b, n, 3, h, d, generator=gen, device=device, dtype=dtype)
    dout = torch.randn(b, n, h * d, generator=gen, device=device, dtype=dtype)
    scale = d**-0.5
    few = bench.checked_clips(qkv).double().requires_grad_()
    exact = reference.fused_attention(few, scale=scale)
    (dexact,) = torch.autograd.grad(exact, few, bench.checked_clips(dout).double())
    plan = default_plan(n, d, torch.bfloat16, chosen_family)
    plan = with_tiles(plan, {k: v for k, v in configs.measured_here.items() if k[:4] == kernel[:4]})
    forward = kernel.endswith("fwd")
    rows: list[dict[str, Any]] = []
    clocks: list[tuple[dict[str, Any], bench.Clock]] = []
    for tile in tiles:
        row: dict[str, Any] = {"tile": str(tile), "ms": None, "error": None, "refused": None}
        rows.append(row)
        if str(tile) in skip:
            row["refused"] = skip[str(tile)]
            continue
        announce(str(tile))
        mine = with_tiles(plan, {kernel: tile})

        def run(mine: configs.AttentionPlan = mine) -> tuple[Tensor, Tensor]:
            return library.launch_fwd(qkv, scale, None, mine)

        try:
            out, lse = run()

            def back(mine: configs.AttentionPlan = mine, out: Tensor = out, lse: Tensor = lse) -> Tensor:
                return library.launch_bwd(dout, qkv, out, lse, scale, None, plan=mine)

            result, wanted = (out, exact) if forward else (back(), dexact)
            row["error"] = bench.relative_error(bench.checked_clips(result), wanted)
            if row["error"] > bench.TOLERANCE:
                row["refused"] = f"wrong output: relative error {row['error']:.2e}"
            elif rounds:
                clocks.append((row, bench.Clock(run if forward else back, 1, device)))
        except Exception as e:
            row["refused"] = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0][:160]}"
            if device == "cuda":
                torch.cuda.synchronize()  # raises where the GPU is lost to this process: the worker ends
    samples: list[list[float]] = [[] for _ in clocks]
    for _ in range(rounds):
        for values, (row, clock) in zip(samples, clocks, strict=True):
            announce(row["tile"])
            values.append(clock.measure(4.0 if device == "cuda" else 0.1))
    for values, (row, _) in zip(samples, clocks, strict=True):
        row["ms"] = statistics.median(values)
    return _result(kernel, {"B": b, "N": n, "H": h, "D": d}, rows)


def use(result: dict[str, Any]) -> None:
    """Take a measured winner for the rest of this process."""
    kernel = result["kernel"]
    for warps in patches.WARPS.get(kernel, ()):
        if result["best"] == f"{warps} warps":
            patches.measured_here[kernel] = warps
    for tiles in CANDIDATES.values():
        for tile in tiles.get(kernel, []):
            if str(tile) == result["best"]:
                configs.measured_here[kernel] = tile


def describe(result: dict[str, Any]) -> str:
    """Lines that say what each candidate took."""
    lines = []
    for row in result["candidates"]:
        took = f"{row['ms'] * 1e3:.1f} us" if row["ms"] is not None else str(row["refused"])
        lines.append(
            f"    {result['kernel']} {row['tile']}: {took}" + (" *" if row["tile"] == result["best"] else "")
        )
    return "\n".join(lines)
