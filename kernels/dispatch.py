"""Which path an op takes, and why: `auto | torch | triton`, per site (`sites.py`).

- `torch`: the plain path everywhere.
- `triton`: the kernel wherever it can run; where it cannot, the torch path, and the reason is logged once.
- `auto` (the default): on a GPU what was measured on this very machine (`calibrate.py`) and installed here;
  the torch path where nothing was. An unmeasured kernel is never chosen by itself.

The mode is that of the innermost `use_kernels`, else the environment's `VMAE_KERNELS`, else `auto`.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from vmae.kernels.checks import require
from vmae.kernels.sites import Dims, Site, power_of_two, recorder, site_of
from vmae.kernels.table import Rows

Answer = TypeVar("Answer", bound=Callable[..., Any])

MODES = ("auto", "torch", "triton")
# The compute capabilities (x10) that the kernels are compiled and configured for: Ampere (A100; 3090), Ada,
# Hopper, Blackwell (B200; 5090).
FAMILIES = (80, 86, 89, 90, 100, 120)

# Triton's interpreter takes bfloat16 for integers (triton issue 11585). Tests that correct it say so here;
# everywhere else an op refuses bfloat16 there rather than return nonsense.
interpreter_rounds_bfloat16 = False

_override: str | None = None
_forced = ""
_rows: Rows = {}
_refused: dict[str, str] = {}
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
    """Return the configuration family of a GPU, whose tiles it takes; 0 below sm_80.

    Without a GPU (interpreter, ahead-of-time compilation) 90.
    """
    return _family(device_index)


@functools.cache
def _family(device_index: int) -> int:
    if not torch.cuda.is_available():
        return 90
    major, minor = torch.cuda.get_device_capability(None if device_index < 0 else device_index)
    return tiles_of(major * 10 + minor)


def tiles_of(capability: int) -> int:
    """The family for a compute capability (x10): the newest that is no newer than the GPU."""
    return max((f for f in FAMILIES if f <= capability), default=0)


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


def refuse(what: str, reason: str) -> None:
    """Never choose a kernel for these calls again in this process (`what`: see `call_name`); say so once."""
    if what not in _refused:
        _refused[what] = reason
        _log.warning("%s takes the torch path from now on: %s", what, reason)


def any_refused() -> bool:
    """Whether anything was."""
    return bool(_refused)


def is_refused(what: str) -> bool:
    """Whether `refuse` was told so."""
    return what in _refused


def call_name(op: str, dtype: torch.dtype, dims: Dims) -> str:
    """What a kernel is compiled for, in words: "fused_attention bfloat16 N=160 H=12 D=64 first=0"."""
    return " ".join([op, str(dtype).removeprefix("torch."), *(f"{k}={v}" for k, v in dims)])


def install(rows: Rows) -> None:
    """Let mode auto choose by these rows from now on; what is compiled already keeps what it was given."""
    _rows.clear()
    _rows.update(rows)


def installed() -> Rows:
    """The rows in force."""
    return dict(_rows)


@contextmanager
def forced(choice: str) -> Iterator[None]:
    """Every op called inside takes this choice, whatever the mode (measuring; for the whole process)."""
    global _forced
    before, _forced = _forced, choice
    try:
        yield
    finally:
        _forced = before


def choose(
    op: str, x: Tensor, *, unsupported: str | None, dims: Dims, layout: str, dtype: torch.dtype
) -> str:
    """Return which way a call goes: "torch", "sdpa <backend>" (attention), "triton" or "triton <variant>".

    x: `[clips, ...]`, whose gradient is the call's, on the call's device. unsupported: why the kernel cannot
    take this call's dtype or shape, or None. dims, layout, dtype: of the call's site (`sites.Site`).
    """
    if recorder() is not None:
        return _note(op, x, unsupported, dims, layout, dtype)
    if _forced:
        return _forced
    chosen = mode()
    if chosen == "torch":
        return "torch"
    if x.dtype == torch.bfloat16 and x.device.type == "cpu" and not interpreter_rounds_bfloat16:
        unsupported = unsupported or "the interpreter multiplies bfloat16 bit patterns (triton issue 11585)"
    index = x.device.index if x.device.index is not None else -1
    obstacle = _unusable(x.device.type, index) or unsupported
    compiling = torch.compiler.is_compiling()
    if chosen == "triton":
        if obstacle is not None:
            if not compiling:
                _say_once(op, obstacle)
            return "torch"
        return "torch" if _was_refused(op, dtype, dims) else "triton"
    if x.device.type != "cuda":
        return "torch"
    grad = torch.is_grad_enabled() and x.requires_grad
    wanted = _by_table(op, dtype, dims, int(x.shape[0]), grad, layout, compiling)
    return "torch" if obstacle is not None and wanted.startswith("triton") else wanted


def _note(op: str, x: Tensor, unsupported: str | None, dims: Dims, layout: str, dtype: torch.dtype) -> str:
    record = recorder()
    assert record is not None
    if unsupported is not None:
        return "torch"
    site = site_of(op, x, dims, layout, dtype=dtype, compiled=record.compiled)
    record.calls[site] = record.calls.get(site, 0) + 1
    # The opaque op: it knows what it returns for fake tensors, and calls nothing of torch's.
    return "triton"


@_assume_constant_result
def _was_refused(op: str, dtype: torch.dtype, dims: Dims) -> bool:
    return bool(_refused) and call_name(op, dtype, dims) in _refused


@_assume_constant_result
def _by_table(
    op: str, dtype: torch.dtype, dims: Dims, batch: int, grad: bool, layout: str, compiled: bool
) -> str:
    if _was_refused(op, dtype, dims):
        return "torch"
    site = Site(
        op=op,
        dtype=str(dtype).removeprefix("torch."),
        dims=dims,
        batch=power_of_two(batch),
        grad=grad,
        layout=layout,
        compiled=compiled,
    )
    row = _rows.get(site.key)
    return row.choice if row is not None and row.choice else "torch"


def _say_once(op: str, reason: str) -> None:
    if (op, reason) not in _said:
        _said.add((op, reason))
        _log.warning("%s takes the torch path although VMAE_KERNELS=triton: %s", op, reason)


def obstacle_here() -> str | None:
    """Why no Triton kernel can run in this process's first device, or None."""
    on_gpu = torch.cuda.is_available()
    return _unusable("cuda" if on_gpu else "cpu", torch.cuda.current_device() if on_gpu else -1)
