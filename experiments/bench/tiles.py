"""Which candidate of a kernel is fastest on this GPU: checked, then timed in turns.

The candidates are few and all in the ahead-of-time table, so whichever wins is known not to spill. The GPU
suite uses a winner at once for everything it times afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from vmae.kernels.descriptor import Sweep
from vmae.kernels.dispatch import family
from vmae.kernels.registry import OPS
from vmae.kernels.timing import run_bench


def sweeps(device: str, *, tiny: bool) -> Iterator[Sweep]:
    """The kernels that have candidates on this GPU's family (without a GPU: on Hopper's)."""
    chosen = family() if device == "cuda" else 90
    for op in OPS:
        yield from op.sweeps(device, chosen, tiny)


def measure(
    sweep: Sweep,
    device: str,
    *,
    tiny: bool,
    rounds: int = 5,
    announce: Callable[[str], None] = lambda name: None,
    skip: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Time one kernel's candidates; rounds 0 only checks and compiles.

    Returns {"kernel", "shape", "candidates": [{"tile", "ms", "error", "refused"}], "best": tile or None}.
    A candidate whose result is wrong or that does not launch is listed and not timed.
    """
    bench = sweep.build()
    how: dict[str, Any] = {"sets": 1, "min_ms": 0.1} if tiny else {"sets": 3, "min_ms": 20.0}
    timed = run_bench(bench, device, rounds=rounds, skip=skip, announce=announce, **how)
    rows = [{"tile": t.name, "ms": t.ms, "error": t.error, "refused": t.refused} for t in timed.timings]
    fast = [row for row in rows if row["ms"] is not None]
    best = min(fast, key=lambda row: float(str(row["ms"])))["tile"] if fast else None
    return {"kernel": sweep.kernel, "shape": bench.shape, "candidates": rows, "best": best}


def describe(result: dict[str, Any]) -> str:
    """Lines that say what each candidate took."""
    lines = []
    for row in result["candidates"]:
        took = f"{row['ms'] * 1e3:.1f} us" if row["ms"] is not None else str(row["refused"])
        lines.append(
            f"    {result['kernel']} {row['tile']}: {took}" + (" *" if row["tile"] == result["best"] else "")
        )
    return "\n".join(lines)
