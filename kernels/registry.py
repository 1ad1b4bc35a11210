"""Every op's descriptor, in the order of the step's cost."""

from __future__ import annotations

from collections.abc import Iterator

from vmae.kernels.attention.spec import OP as ATTENTION
from vmae.kernels.decoder_tokens.spec import OP as DECODER_TOKENS
from vmae.kernels.descriptor import BenchCase, Case, Op
from vmae.kernels.dispatch import FAMILIES
from vmae.kernels.patch_gather.spec import OP as PATCH_GATHER
from vmae.kernels.patch_loss.spec import OP as PATCH_LOSS

OPS: tuple[Op, ...] = (ATTENTION, PATCH_GATHER, PATCH_LOSS, DECODER_TOKENS)
# For every timed op the variants it is held against.
BASELINES: dict[str, tuple[str, ...]] = {name: held for op in OPS for name, held in op.baselines.items()}


def op_named(name: str) -> Op:
    """The descriptor of a public function."""
    return next(op for op in OPS if op.name == name)


def bench_cases(device: str, *, tiny: bool, compiled: bool) -> list[BenchCase]:
    """Everything to time, those with a bar first."""
    found = [case for op in OPS for case in op.benches(device, tiny, compiled)]
    return sorted(found, key=lambda case: not case.barred)


def compile_cases(families: tuple[int, ...] = FAMILIES) -> Iterator[Case]:
    """Every shipped kernel and configuration, at the published shapes."""
    for family in families:
        for op in OPS:
            yield from op.cases(family)


def use_candidate(kernel: str, candidate: str) -> None:
    """Take a measured winner for the rest of this process; an unknown name changes nothing."""
    for op in OPS:
        op.use(kernel, candidate)
