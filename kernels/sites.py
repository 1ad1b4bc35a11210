"""Where in a step an op is called: the site, by which kernels are measured and chosen.

Two calls with the same site take the same time, near enough; whatever changes which kernel is fastest (dtype,
widths, batch, whether a gradient is wanted, eager or compiled) is part of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Dims = tuple[tuple[str, int], ...]


@dataclass(frozen=True, kw_only=True)
class Site:
    """One kind of call of one op.

    dims: the sizes that decide (attention: tokens, heads, head dim, first query; patches: their number, the
    clip, patch and tubelet size, channels; decoder tokens: counts and width). batch: clips, rounded to a
    power of two. grad: whether a gradient will be asked for. layout: words about memory and form, no spaces.
    """

    op: str
    dtype: str
    dims: Dims
    batch: int
    grad: bool
    layout: str
    compiled: bool

    @property
    def key(self) -> str:
        """The site as one line; `parse` is its inverse."""
        dims = " ".join(f"{name}={size}" for name, size in self.dims)
        how = f"{'grad' if self.grad else 'forward'} {'compiled' if self.compiled else 'eager'}"
        return f"{self.op} {self.dtype} {dims} B={self.batch} {self.layout} {how}"

    @classmethod
    def parse(cls, key: str) -> Site:
        """The site of a key."""
        op, dtype, *sizes, layout, grad, how = key.split(" ")
        pairs = [(name, int(size)) for name, _, size in (s.partition("=") for s in sizes)]
        return cls(
            op=op,
            dtype=dtype,
            dims=tuple(pairs[:-1]),
            batch=pairs[-1][1],
            grad=grad == "grad",
            layout=layout,
            compiled=how == "compiled",
        )

    def size(self, name: str) -> int:
        """One of `dims`."""
        return dict(self.dims)[name]

    def scaled(self, factor: float) -> Site:
        """The same with another number of clips."""
        return replace(self, batch=power_of_two(round(self.batch * factor)))

    def torch_dtype(self) -> torch.dtype:
        found: torch.dtype = getattr(torch, self.dtype)
        return found


class Recorder:
    """What `recorded` finds: each site and how often a step calls it.

    compiled: whether what is called now is what a compiled step would have compiled.
    """

    def __init__(self) -> None:
        self.calls: dict[Site, int] = {}
        self.compiled = False


_recorder: Recorder | None = None


def recorder() -> Recorder | None:
    """Who records now, or None. While somebody does, tensors are fake and nothing is launched."""
    return _recorder


@contextmanager
def recorded() -> Iterator[Recorder]:
    """Inside, every call of an op by fake tensors is noted instead of decided."""
    global _recorder
    before, _recorder = _recorder, Recorder()
    try:
        yield _recorder
    finally:
        _recorder = before


def power_of_two(n: int) -> int:
    """The power of two nearest to n >= 1 in ratio: 48 gives 64, 45 gives 32."""
    below = 1 << (max(n, 1).bit_length() - 1)
    return below if n * n < 2 * below * below else 2 * below


def site_of(op: str, x: Tensor, dims: Dims, layout: str, *, dtype: torch.dtype, compiled: bool) -> Site:
    """The site of a call whose gradient, if any, is that of x `[clips, ...]`."""
    return Site(
        op=op,
        dtype=str(dtype).removeprefix("torch."),
        dims=dims,
        batch=power_of_two(x.shape[0]),
        grad=torch.is_grad_enabled() and x.requires_grad,
        layout=layout,
        compiled=compiled,
    )
