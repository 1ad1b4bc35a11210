"""What a step's matrix products alone take on this processor, and how much of it others had meanwhile."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from vmae.core.model.videomae import VideoMAEConfig

BUSY = 0.1
"""Above this share of the threads' cores, used by others, figures are not to be believed."""


@dataclass(frozen=True, kw_only=True)
class Product:
    """[batch, m, k] x [batch, k, n]; a linear layer's where batch is 1."""

    batch: int
    m: int
    k: int
    n: int

    @property
    def flops(self) -> int:
        return 2 * self.batch * self.m * self.k * self.n


def products(config: VideoMAEConfig, *, batch: int, visible: int) -> Counter[Product]:
    """Every product of one pre-training step, forward and both gradients, and how often it is made.

    The step that needs least: only visible tokens are embedded and encoded, only masked ones predicted. As
    `vmae plan` counts it, layer by layer.
    """
    total = config.grid.num_tokens
    found: Counter[Product] = Counter()

    def linear(rows: int, inputs: int, outputs: int, times: int = 1, *, first: bool = False) -> None:
        found[Product(batch=1, m=rows, k=inputs, n=outputs)] += times
        found[Product(batch=1, m=outputs, k=rows, n=inputs)] += times  # the weight's gradient
        if not first:
            found[Product(batch=1, m=rows, k=outputs, n=inputs)] += times

    def blocks(tokens: int, width: int, hidden: int, heads: int, depth: int) -> None:
        rows = batch * tokens
        for inputs, outputs in ((width, 3 * width), (width, width), (width, hidden), (hidden, width)):
            linear(rows, inputs, outputs, depth)
        d = width // heads
        # q k^T, and as often the two gradients' products of that shape; p v likewise.
        found[Product(batch=batch * heads, m=tokens, k=d, n=tokens)] += 2 * depth
        found[Product(batch=batch * heads, m=tokens, k=tokens, n=d)] += 4 * depth

    linear(batch * visible, config.grid.patch_dim, config.embed_dim, first=True)
    blocks(visible, config.embed_dim, config.mlp_dim, config.num_heads, config.depth)
    linear(batch * visible, config.embed_dim, config.decoder_embed_dim)
    blocks(total, config.decoder_embed_dim, config.decoder_mlp_dim, config.decoder_num_heads,
           config.decoder_depth)  # fmt: skip
    linear(batch * (total - visible), config.decoder_embed_dim, config.predicted_dim)
    return found


def ceiling_ms(found: Counter[Product], dtype: torch.dtype, *, rounds: int = 3) -> float:
    """Milliseconds for all of them one after another, each at the best of its rounds, operands resident.

    Rounds go over all products in turn, so that a moment of other work spoils one round of few of them.
    """
    best: dict[Product, float] = dict.fromkeys(found, math.inf)
    for _ in range(rounds):
        for p in found:
            a = torch.randn(p.batch, p.m, p.k).to(dtype)
            b = torch.randn(p.batch, p.n, p.k).to(dtype).transpose(1, 2)
            out = torch.empty(p.batch, p.m, p.n, dtype=dtype)
            for _ in range(2):  # the first call prepares
                begin = time.perf_counter()
                torch.bmm(a, b, out=out) if p.batch > 1 else torch.mm(a[0], b[0], out=out[0])
                best[p] = min(best[p], (time.perf_counter() - begin) * 1e3)
    return sum(times * best[p] for p, times in found.items())


class Others:
    """From its making on: how many cores other processes used. Linux's count, of the machine."""

    def __init__(self) -> None:
        self._begin, self._own, self._all = time.monotonic(), time.process_time(), _busy_s()

    def cores(self) -> float | None:
        """On average; None where the system does not count."""
        if self._all is None:
            return None
        busy = _busy_s()
        assert busy is not None
        took = max(time.monotonic() - self._begin, 1e-3)
        return max(0.0, busy - self._all - (time.process_time() - self._own)) / took


def _busy_s() -> float | None:
    """Seconds that all cores have worked so far, or were taken away by the host."""
    stat = Path("/proc/stat")
    if not stat.is_file():
        return None
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, stat.read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def too_busy(cores: float | None, threads: int) -> bool:
    """Whether others used so much that the figures are theirs too."""
    free = (os.cpu_count() or 1) - threads
    return cores is not None and cores > max(0, free) + BUSY * threads
