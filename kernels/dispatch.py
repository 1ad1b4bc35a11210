"""Which path an op takes, and why: `auto | torch | triton`, per op and shape.

- `torch`: the plain path everywhere.
- `triton`: the kernel wherever it can run; where it cannot, the torch path, and the reason is logged once.
- `auto` (the default): the kernel where a measurement of this GPU family, checked in under
  `kernels/results/evidence.json`, says that it wins for the shape; the torch path otherwise. A family
  without measurements takes the torch path: an unmeasured kernel is never chosen by itself.

The mode is that of the innermost `use_kernels`, else the environment's `VMAE_KERNELS`, else `auto`.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from vmae.kernels.checks import require

Answer = TypeVar("Answer", bound=Callable[..., Any])

MODES = ("auto", "torch", "triton")
EVIDENCE_FILE = Path(__file__).parent / "results" / "evidence.json"
FAMILIES = (80, 90, 100)  # the compute capabilities (x10) that the kernels are compiled and configured for

# Triton's interpreter takes bfloat16 for integers (triton issue 11585). Tests that correct it say so here;
# everywhere else an op refuses bfloat16 there rather than return nonsense.
interpreter_rounds_bfloat16 = False

_override: str | None = None
_log = logging.getLogger("vmae.kernels")
_said: set[tuple[str, str]] = set()


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
    """Choose the path of every op inside the block: "auto", "torch" or "triton" (for the whole process)."""
    global _override
    require(chosen in MODES, f"one of {', '.join(MODES)}", repr(chosen))
    before, _override = _override, chosen
    try:
        yield
    finally:
        _override = before


def in_mode(chosen: str, op: Callable[..., Any]) -> Callable[..., Any]:
    """Return `op` as called inside `use_kernels(chosen)`."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with use_kernels(chosen):
            return op(*args, **kwargs)

    return run


def interpreting() -> bool:
    """Whether Triton kernels run in its interpreter (`TRITON_INTERPRET=1`), on CPU tensors too."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _triton_missing() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    return None


def _assume_constant_result(function: Answer) -> Answer:
    # What torch.compiler.assume_constant_result does, without the second its import of torch._dynamo takes
    # every command that never compiles. tests/kernels/test_library.py compiles whole steps through it.
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@_assume_constant_result
def family(device_index: int = -1) -> int:
    """Return the configuration family of a GPU: the largest of 80, 90, 100 not above it; 0 below sm_80.

    Without a GPU (interpreter, ahead-of-time compilation) 90.
    """
    return _family(device_index)


@functools.cache
def _family(device_index: int) -> int:
    if not torch.cuda.is_available():
        return 90
    major, minor = torch.cuda.get_device_capability(None if device_index < 0 else device_index)
    return max((f for f in FAMILIES if f <= major * 10 + minor), default=0)


@_assume_constant_result
def _unusable(device_type: str, device_index: int) -> str | None:
    """Why no Triton kernel can run on tensors of this device; None where one can."""
    missing = _triton_missing()
    if missing:
        return missing
    if device_type == "cpu":
        return None if interpreting() else "the tensors are on the CPU"
    if device_type != "cuda":
        return f"no kernels for device type {device_type}"
    if torch.version.hip is not None:
        return "the kernels are compiled and configured for NVIDIA GPUs only"
    if _family(device_index) == 0:
        return f"needs compute capability 8.0, this GPU has {torch.cuda.get_device_capability(device_index)}"
    return None


@functools.cache
def load_evidence() -> dict[str, Any]:
    """Return the checked-in measurements, empty where there are none (`vmae.kernels.evidence` writes them).

    `{family: {op: [{"min_size", "max_size", "path", "why"}], "tiles": {kernel: {"tile", "why"}}}}`.
    """
    if not EVIDENCE_FILE.is_file():
        return {}
    table: dict[str, Any] = json.loads(EVIDENCE_FILE.read_text())
    return table


def decide(op: str, device_type: str, device_index: int, unsupported: str | None, size: int) -> KernelStatus:
    """Return the path of one call and why.

    unsupported: why the kernel cannot take this call's dtype or shape, or None. size: the number the
    evidence is ordered by (tokens for attention, values per patch or token for the rest).
    """
    chosen = mode()
    if chosen == "torch":
        return KernelStatus(op=op, path="torch", reason="mode torch")
    obstacle = _unusable(device_type, device_index) or unsupported
    if obstacle:
        return KernelStatus(op=op, path="torch", reason=obstacle)
    if chosen == "triton":
        return KernelStatus(op=op, path="triton", reason="mode triton")
    if device_type == "cpu":
        return KernelStatus(op=op, path="torch", reason="the interpreter is only used in mode triton")
    return _by_evidence(op, f"sm_{family(device_index)}", size)


@_assume_constant_result
def _by_evidence(op: str, gpu: str, size: int) -> KernelStatus:
    for row in load_evidence().get(gpu, {}).get(op, []):
        if row["min_size"] <= size <= row["max_size"]:
            return KernelStatus(op=op, path=row["path"], reason=f"measured on {gpu}: {row['why']}")
    return KernelStatus(
        op=op,
        path="torch",
        reason=f"unmeasured on {gpu} at size {size}: the torch path until "
        "`python -m vmae.experiments.bench.gpu_suite` has run (VMAE_KERNELS=triton chooses the kernel now)",
    )


def use_triton(op: str, x: Tensor, *, unsupported: str | None, size: int) -> bool:
    """Whether this call takes the Triton path; in mode triton, a refusal's reason is logged once per op."""
    if x.dtype == torch.bfloat16 and x.device.type == "cpu" and not interpreter_rounds_bfloat16:
        unsupported = unsupported or "the interpreter multiplies bfloat16 bit patterns (triton issue 11585)"
    index = x.device.index if x.device.index is not None else -1
    status = decide(op, x.device.type, index, unsupported, size)
    if status.path == "triton":
        return True
    if not torch.compiler.is_compiling() and mode() == "triton":
        _say_once(op, status.reason)
    return False


def _say_once(op: str, reason: str) -> None:
    if (op, reason) not in _said:
        _said.add((op, reason))
        _log.warning("%s takes the torch path although VMAE_KERNELS=triton: %s", op, reason)
