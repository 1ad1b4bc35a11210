"""Timing of the ops side by side: checked first, interleaved, beside the GPU's own ceilings.

Every variant of an op is compared with the float64 reference on a few clips of the inputs that are timed;
a variant whose output is wrong is listed with its error and not timed. On a GPU each variant is captured into
a CUDA graph over several input sets (so that neither launches nor the cache are measured); the variants take
turns and medians are kept with their spread. On a CPU (dry run) the same code runs with a host clock.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from vmae.kernels.descriptor import OpBench, Variant

TOLERANCE = 2e-2  # ||out - ref|| / ||ref|| of bfloat16 results; a wrong kernel is far above it


@dataclass(kw_only=True)
class Timing:
    """Milliseconds per call of one variant: median of the rounds and the quartiles; error against float64."""

    name: str
    ms: float | None = None
    ms_q1: float | None = None
    ms_q3: float | None = None
    error: float | None = None
    refused: str | None = None


@dataclass(kw_only=True)
class OpResult:
    op: str
    shape: dict[str, int]
    what: str
    flops: float
    bytes: float
    timings: list[Timing] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def relative_error(out: Tensor, ref: Tensor) -> float:
    """`||out - ref|| / ||ref||` in float64; NaN counts as infinite."""
    out, ref = out.detach().double(), ref.detach().double()
    value = float((out - ref).norm() / ref.norm().clamp_min(1e-30))
    return value if math.isfinite(value) else float("inf")


def check(bench: OpBench, variant: Variant, inputs: dict[str, Tensor]) -> float:
    """Return the largest relative error of a variant's results on the clips the reference covers."""
    results, exact = variant.run(inputs), bench.exact(inputs)
    worst = 0.0
    for out, ref in zip(results, exact, strict=True):
        part = out if out.shape == ref.shape else checked_clips(out)
        worst = max(worst, relative_error(part, ref))
    return worst


def checked_clips(x: Tensor) -> Tensor:
    """The clips that are compared: the first and the last two, where an index past 2**31 would show."""
    return x if x.shape[0] <= 4 else torch.cat([x[:2], x[-2:]])


class Clock:
    """Times a callable: CUDA-graph replays between events on a GPU, a host clock elsewhere."""

    def __init__(self, run: Callable[[], Any], calls: int, device: str) -> None:
        self.calls, self.device, self.run = calls, device, run
        self.graphed = False
        if device == "cuda":
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    run()
            torch.cuda.current_stream().wait_stream(stream)
            torch.cuda.synchronize()
            try:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    run()
                self.run, self.graphed = graph.replay, True
            except RuntimeError:  # a variant that waits for the host (boolean indexing) is timed as it is
                torch.cuda.synchronize()

    def measure(self, min_ms: float) -> float:
        """Milliseconds per call, over at least `min_ms` of work."""
        repeats, elapsed = 1, 0.0
        while True:
            elapsed = self._elapsed(repeats)
            if elapsed >= min_ms or repeats >= 1 << 14:
                return elapsed / (repeats * self.calls)
            repeats = min(1 << 14, max(repeats * 2, int(repeats * min_ms / max(elapsed, 1e-3))))

    def _elapsed(self, repeats: int) -> float:
        if self.device == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(repeats):
                self.run()
            end.record()
            end.synchronize()
            return start.elapsed_time(end)
        begin = time.perf_counter()
        for _ in range(repeats):
            self.run()
        return (time.perf_counter() - begin) * 1e3


def run_bench(
    bench: OpBench,
    device: str,
    *,
    sets: int = 3,
    rounds: int = 7,
    min_ms: float = 20.0,
    skip: Mapping[str, str] | None = None,
    announce: Callable[[str], None] = lambda name: None,
) -> OpResult:
    """Check, then time all variants in turns; return medians and quartiles in milliseconds per call.

    rounds: 0 only checks (and compiles). skip: variants that are not run, and why. announce is told the
    variant's name before anything of it runs, so that whoever watches knows what hung.
    """
    inputs = [bench.make(seed) for seed in range(sets)]
    result = OpResult(op=bench.op, shape=bench.shape, what=bench.what, flops=bench.flops, bytes=bench.bytes)
    clocks: list[tuple[Timing, Clock]] = []
    for variant in bench.variants:
        timing = Timing(name=variant.name)
        result.timings.append(timing)
        if skip and variant.name in skip:
            timing.refused = skip[variant.name]
            continue
        announce(variant.name)
        try:
            timing.error = check(bench, variant, inputs[0])
            if timing.error > TOLERANCE:
                timing.refused = f"wrong output: relative error {timing.error:.2e}"
                continue

            def once(variant: Variant = variant) -> None:
                for item in inputs:
                    variant.run(item)

            if rounds:
                clocks.append((timing, Clock(once, sets, device)))
        except Exception as e:  # a backend that does not take this shape; said in the table, not hidden
            timing.refused = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0][:160]}"
            if device == "cuda":
                torch.cuda.synchronize()  # raises where the GPU is lost to this process: the worker ends
                torch.cuda.empty_cache()
    samples: dict[str, list[float]] = {t.name: [] for t, _ in clocks}
    for _ in range(rounds):
        for timing, clock in clocks:
            announce(timing.name)
            samples[timing.name].append(clock.measure(min_ms / rounds))
    for timing, clock in clocks:
        values = samples[timing.name]
        timing.ms = statistics.median(values)
        timing.ms_q1, _, timing.ms_q3 = (
            statistics.quantiles(values, n=4) if len(values) > 1 else [timing.ms] * 3
        )
        if device == "cuda" and not clock.graphed:
            timing.refused = "timed without a CUDA graph (it waits for the host)"
    return result


def measure_ceilings(device: str, *, scale: int) -> dict[str, float]:
    """Return this machine's copy bandwidth (bytes/s, read + written) and bf16 matrix rate (FLOP/s)."""
    n = (1 << 30) // scale
    pair = [torch.randint(0, 255, (n,), dtype=torch.uint8, device=device) for _ in range(2)]
    copy_ms = _median_ms(lambda: pair[0].copy_(pair[1]), device)
    pair.clear()
    side = max(64, 8192 // scale)
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    matmul_ms = _median_ms(lambda: a @ b, device)
    return {
        "copy_bytes_per_s": 2 * n / (copy_ms * 1e-3),
        "bf16_flop_per_s": 2 * side**3 / (matmul_ms * 1e-3),
    }


def _median_ms(run: Callable[[], Any], device: str) -> float:
    clock = Clock(run, 1, device)
    return statistics.median(clock.measure(20.0 if device == "cuda" else 1.0) for _ in range(5))
