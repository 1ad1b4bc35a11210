"""What a step's masks cost the host: drawn and sorted for the whole batch, or kept for one process first.

The way before is written out here: every process draws the masks of all clips of a step, sorts all of them,
and then keeps its own. The way now draws the same numbers, keeps its own clips' and sorts those; both give
the same indices, which is checked before anything is timed. In training the way now runs in the loader's
thread, beside the step before.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vmae.core.errors import VmaeError
from vmae.core.model.grid import TokenGrid
from vmae.core.model.masking import MaskConfig, mask_counts, sample_masks
from vmae.core.numerics import make_generator

V2 = MaskConfig(type="tube", ratio=0.9, decoder_type="running_cell", decoder_ratio=0.5)
GRID = TokenGrid(frames=16, height=224, width=224)
OWN = 64
"""Clips of one process."""


@dataclass(frozen=True, kw_only=True)
class MaskTiming:
    """One process's share of a step of `total` clips, of which `own` are its own: (best, median) milliseconds
    of the processor, which other work on the machine lengthens little."""

    total: int
    own: int
    before_ms: tuple[float, float]
    now_ms: tuple[float, float]


def drawn_for_all(
    total: int, rows: Tensor, generator: torch.Generator, grid: TokenGrid = GRID
) -> tuple[Tensor, Tensor, Tensor]:
    """`(visible, masked, decode)` of `rows` as they were made before: V2's masks, all sorted, then kept."""
    n_vis, n_mask = mask_counts(V2.type, V2.ratio, grid)
    order = torch.rand(total, grid.tokens_per_frame, generator=generator).argsort(dim=1)
    frame = torch.zeros(total, grid.tokens_per_frame, dtype=torch.bool)
    mask = frame.scatter_(1, order[:, : n_mask // grid.t], True).repeat(1, grid.t)
    places = torch.argsort(mask.to(torch.uint8), dim=1, stable=True)
    visible, masked = places[:, :n_vis].contiguous(), places[:, n_vis:].contiguous()
    phase = torch.randint(4, (total, 1, 1, 1), generator=generator)
    slot = torch.arange(1, grid.t + 1).reshape(1, -1, 1, 1)
    row = torch.arange(grid.h).reshape(1, 1, -1, 1) % 2
    column = torch.arange(grid.w).reshape(1, 1, 1, -1) % 2
    cells = ((row * 2 + column + phase + slot) % 4 < 2).flatten(1)
    decode = torch.argsort(cells.to(torch.uint8), dim=1, stable=True)[:, : grid.num_tokens // 2]
    return visible[rows], masked[rows], decode[rows]


def kept_first(
    total: int, rows: Tensor, generator: torch.Generator, grid: TokenGrid = GRID
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as training makes them."""
    mask, decode = sample_masks(V2, grid, total, generator, rows=rows)
    assert decode is not None
    return mask.visible, mask.masked, decode


def bench(totals: tuple[int, ...], repeats: int, own: int = OWN) -> list[MaskTiming]:
    """Time both ways in turns, on one thread; VmaeError where they do not give the same indices."""
    found = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for total in totals:
            rows = torch.arange(total)[:: max(1, total // own)][:own]
            ways: dict[str, Callable[[int, Tensor, torch.Generator], tuple[Tensor, ...]]] = {
                "before": drawn_for_all,
                "now": kept_first,
            }
            made = [way(total, rows, make_generator(total)) for way in ways.values()]
            if not all(torch.equal(a, b) for a, b in zip(*made, strict=True)):
                raise VmaeError(f"expected the same masks of {total} clips both ways, got others")
            spent: dict[str, list[float]] = {name: [] for name in ways}
            for repeat in range(repeats):
                for name, way in ways.items():
                    start = time.thread_time()
                    way(total, rows, make_generator(total, repeat))
                    spent[name].append((time.thread_time() - start) * 1e3)
            before, now = ((min(x), statistics.median(x)) for x in spent.values())
            found.append(MaskTiming(total=total, own=len(rows), before_ms=before, now_ms=now))
    finally:
        torch.set_num_threads(threads)
    return found
