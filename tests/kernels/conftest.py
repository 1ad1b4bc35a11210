"""The interpreter made honest for kernel tests: bfloat16 as a GPU has it, NaN where a GPU reads garbage.

On a machine with an NVIDIA GPU the same tests run the compiled kernels and nothing here is patched.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from vmae.kernels.dispatch import interpreting


@pytest.fixture(scope="session")
def device() -> str:
    """Where kernels run here: the GPU, or the CPU in Triton's interpreter."""
    if torch.cuda.is_available():
        return "cuda"
    pytest.importorskip("triton")
    if not interpreting():
        pytest.skip("needs an NVIDIA GPU or TRITON_INTERPRET=1")
    return "cpu"


def _bf16_to_f32(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _f32_to_bf16(x: np.ndarray) -> np.ndarray:
    """Round to nearest even, as the hardware does; NaN stays NaN."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(x), 0x7FC0, rounded).astype(np.uint16)


@pytest.fixture(autouse=True, scope="session")
def honest_interpreter() -> Iterator[None]:
    """Patch Triton's interpreter (3.6 and 3.7): it multiplies bfloat16 bit patterns and truncates casts
    (triton issue 11585), and returns 0 for masked loads without `other`, where a GPU returns anything.
    """
    if torch.cuda.is_available() or not interpreting():
        yield
        return
    tl: Any = pytest.importorskip("triton.language")
    from triton.runtime import interpreter

    builder: Any = interpreter.InterpreterBuilder
    old_dot, old_convert, old_load = (
        builder.create_dot,
        interpreter._convert_float,
        builder.create_masked_load,
    )

    def create_dot(self: Any, a: Any, b: Any, d: Any, precision: Any, imprecise: Any) -> Any:
        def up(x: Any) -> Any:
            if x.dtype.scalar != tl.bfloat16:
                return x
            return interpreter.TensorHandle(_bf16_to_f32(x.data), tl.float32)

        return old_dot(self, up(a), up(b), d, precision, imprecise)

    def convert_float(x: Any, source: Any, target: Any, rounding: Any) -> Any:
        if source == tl.float32 and target == tl.bfloat16:
            return _f32_to_bf16(np.asarray(x, dtype=np.float32))
        if source == tl.bfloat16 and target == tl.float32:
            return _bf16_to_f32(x)
        return old_convert(x, source, target, rounding)

    def create_masked_load(self: Any, ptrs: Any, mask: Any, other: Any, *rest: Any) -> Any:
        out = old_load(self, ptrs, mask, other, *rest)
        if other is None and out.dtype.scalar.is_floating():
            garbage = 0x7FC0 if out.dtype.scalar == tl.bfloat16 else np.nan
            out.data = np.where(mask.data, out.data, np.asarray(garbage, dtype=out.data.dtype))
        return out

    old_call = interpreter.GridExecutor.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        # The interpreter drops arguments that a kernel does not have; a GPU launch refuses them.
        unknown = set(kwargs) - set(self.arg_names) - {"num_warps", "num_stages", "warmup"}
        assert not unknown, f"{self.fn.__name__} has no arguments {unknown}"
        return old_call(self, *args, **kwargs)

    interpreter.GridExecutor.__call__ = call
    builder.create_dot, builder.create_masked_load = create_dot, create_masked_load
    interpreter._convert_float = convert_float
    yield
    builder.create_dot, builder.create_masked_load = old_dot, old_load
    interpreter._convert_float = old_convert
    interpreter.GridExecutor.__call__ = old_call


@pytest.fixture(autouse=True)
def poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what launchers allocate with NaN, so that an element nobody writes shows."""
    real_empty, real_empty_like = torch.empty, torch.empty_like

    def poison(x: torch.Tensor) -> torch.Tensor:
        return x.fill_(float("nan")) if x.is_floating_point() and type(x) is torch.Tensor else x

    class PoisonedTorch:
        """The torch module with two allocating functions replaced, for the launchers alone."""

        def __getattr__(self, name: str) -> Any:
            if name == "empty":
                return lambda *a, **k: poison(real_empty(*a, **k))
            if name == "empty_like":
                return lambda *a, **k: poison(real_empty_like(*a, **k))
            return getattr(torch, name)

    for op in ("attention", "patch_gather", "patch_loss", "decoder_tokens", "gelu_mlp", "add_norm"):
        monkeypatch.setattr(f"vmae.kernels.{op}.library.torch", PoisonedTorch())
