"""Where kernel tests run, and outputs that start as NaN.

On a machine with an NVIDIA GPU the same tests run the compiled kernels.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vmae.kernels.dispatch import interpreting
from vmae.kernels.registry import OPS


@pytest.fixture(scope="session")
def device() -> str:
    """Where kernels run here: the GPU, or the CPU in Triton's interpreter."""
    if torch.cuda.is_available():
        return "cuda"
    pytest.importorskip("triton")
    if not interpreting():
        pytest.skip("needs an NVIDIA GPU or TRITON_INTERPRET=1")
    return "cpu"


@pytest.fixture(autouse=True, scope="session")
def every_kernel_test_is_honest(honest_interpreter: None) -> None:
    """All tests of this folder run in the interpreter as `tests/conftest.py` corrects it."""


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

    for op in OPS:
        monkeypatch.setattr(f"vmae.kernels.{op.folder}.library.torch", PoisonedTorch())
