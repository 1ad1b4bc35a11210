"""What a kernel op says of itself: the `OP` of its folder, which everything that walks over the ops reads.

`registry.py` collects the descriptors; dispatch's status, the benchmarks, the ahead-of-time gate, the GPU
suite, the report and the tests iterate over them, so that a new op is a new folder and one line there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vmae.kernels.sites import Site

Inputs = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to compute an op: `run(inputs)` returns the tensors that are checked (outputs, gradients)."""

    name: str
    run: Callable[[Inputs], tuple[Tensor, ...]]


@dataclass(frozen=True, kw_only=True)
class OpBench:
    """One op at one shape. `exact(inputs)` is the float64 result, for `timing.checked_clips`.

    flops and bytes: what the op must at least compute and move, per call.
    """

    op: str
    shape: dict[str, int]
    what: str  # "fwd" or "fwd+bwd"
    make: Callable[[int], Inputs]
    exact: Callable[[Inputs], tuple[Tensor, ...]]
    variants: list[Variant]
    flops: float
    bytes: float


@dataclass(frozen=True, kw_only=True)
class Trial:
    """How a site's op is called while its candidates are measured, on `site.batch` clips.

    make(seed): inputs, with the gradient from above as "dout" where the output is no scalar. call: the op, by
    whichever way dispatch is told. leaves: the inputs that receive gradients. exact(inputs): output, then the
    leaves' gradients, in float64, for `timing.checked_clips`. deterministic: our kernels give the same bits
    twice.
    """

    make: Callable[[int], Inputs]
    call: Callable[[Inputs], Tensor]
    exact: Callable[[Inputs], tuple[Tensor, ...]]
    leaves: tuple[str, ...] = ()
    deterministic: bool = True


@dataclass(frozen=True, kw_only=True)
class BenchCase:
    """One thing to time. barred: a bar is about it, so it comes before whole steps."""

    name: str
    build: Callable[[], OpBench]
    barred: bool = False


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A target: the best of `baselines` must take at least `ratio` times as long as ours.

    bench: the timed op's name; tokens: at this N only; timed: "fwd" or "fwd+bwd".
    """

    what: str
    bench: str
    timed: str
    baselines: tuple[str, ...]
    ratio: float
    tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The candidates of one kernel as the variants of a bench; the first is the default."""

    kernel: str
    build: Callable[[], OpBench]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kernel in one configuration for one GPU family, to be compiled ahead of time.

    types: by argument name, of pointers (`*bf16`) and floats (`fp32`); any other is an int32. constants:
    compile-time arguments and arguments equal to 1, which the launcher bakes in. aligned: integer arguments
    that are multiples of 16 at the named shape.
    """

    name: str
    family: int
    module: str
    kernel: str
    types: dict[str, str]
    constants: dict[str, Any]
    aligned: tuple[str, ...] = ()
    options: dict[str, int] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{self.name} | sm_{self.family}"


@dataclass(frozen=True, kw_only=True)
class Op:
    """One op: its names, what it is measured by, and how each of its kernels is built and tried.

    baselines: for every timed op (an op may be timed inside a larger one) the variants it is held
    against.
    """

    name: str
    folder: str
    baselines: dict[str, tuple[str, ...]]
    bars: tuple[Bar, ...] = ()
    benches: Callable[[str, bool, bool], list[BenchCase]]
    """(device, tiny, compiled): the published shapes at a batch of 64, most telling first; tiny: a few
    tokens, for a dry run on the CPU."""
    choices: Callable[[Site, int], list[str]]
    """(site, family): the ways to measure, "torch" first, most promising next."""
    trial: Callable[[Site, str], Trial]
    """(site, device)."""
    cases: Callable[[int], Iterator[Case]]
    """Every shipped kernel and candidate of a family, at the published shapes."""
    small_launches: Callable[[str], Iterator[tuple[Tensor, Tensor]]]
    """Launch every kernel once on small, awkward shapes of a device; yields (result, float64 reference).
    Short enough for compute-sanitizer, which slows a program down a hundredfold."""
    sweeps: Callable[[str, int, bool], Iterator[Sweep]] = lambda device, family, tiny: iter(())
    """(device, family, tiny): the kernels that have candidates."""
    use: Callable[[str, str], None] = lambda kernel, candidate: None
    """Take a candidate of one of this op's kernels for the rest of the process; others are left alone."""
