"""Which path an op takes, and why: `auto | torch | triton`, from the environment or a context manager."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from vmae.kernels.checks import require

MODES = ("auto", "torch", "triton")
OPS = ("gather_patches", "fused_attention", "masked_patch_loss", "assemble_decoder_tokens")

_override: str | None = None


@dataclass(frozen=True, kw_only=True)
class KernelStatus:
    """One op's active path ("torch" or "triton") on this machine and the reason in a sentence."""

    op: str
    path: str
    reason: str


def mode() -> str:
    """Return the mode in force: that of the innermost `use_kernels`, else `VMAE_KERNELS`, else "auto"."""
    chosen = _override or os.environ.get("VMAE_KERNELS") or "auto"
    require(chosen in MODES, f"VMAE_KERNELS or use_kernels one of {', '.join(MODES)}", repr(chosen))
    return chosen


@contextmanager
def use_kernels(chosen: str) -> Iterator[None]:
    """Choose the path of every op inside the block: "auto", "torch" or "triton" (process-wide)."""
    global _override
    require(chosen in MODES, f"one of {', '.join(MODES)}", repr(chosen))
    before, _override = _override, chosen
    try:
        yield
    finally:
        _override = before


def kernel_status() -> list[KernelStatus]:
    """Return, for every op, the path taken on this machine in the mode in force, and why."""
    return [KernelStatus(op=op, path="torch", reason=f"mode {mode()}: no Triton kernel yet") for op in OPS]
