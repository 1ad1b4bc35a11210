"""A step's gradients, in whichever way is fastest; and its numbers, read by the host when they are there.

Nothing between two steps waits for the device: whether a gradient is finite is decided there (the optimiser
is told by `found_inf`), and what the host wants to know of a step it reads while the next one is under way.
"""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vmae.core.numerics import autocast
from vmae.core.train.config import TrainConfig
from vmae.core.train.graph import CapturedBackward
from vmae.core.train.parallel import transformer_blocks

Mode = Literal["eager", "compile", "graph", "compile+graph"]


class Late:
    """Numbers that a device is computing, for the host to read later: their copy is queued behind them."""

    def __init__(self, values: Tensor) -> None:
        self._values, self._copied = values, None
        if values.device.type == "cuda":
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> list[float]:
        """Wait for these numbers, and for nothing queued after them."""
        if self._copied is not None:
            self._copied.synchronize()
        numbers: list[float] = self._values.tolist()
        return numbers


class Window:
    """What came since the last `step` event."""

    def __init__(self) -> None:
        self.start, self.wait_s, self.clips = time.perf_counter(), 0.0, 0


def compile_blocks(model: nn.Module) -> None:
    """torch.compile each transformer block, at its next call."""
    # The compiler looks at every input's gradient; a block's input is no leaf, and need not be one.
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
    for blocks in transformer_blocks(model):
        for block in blocks:
            # Each shape is compiled for itself: there are three (encoder, decoder, decoder's last).
            block.compile(dynamic=False)


class Gradients:
    """`gradients(*inputs)` leaves the gradients of a micro-batch in `model` and returns its loss, float32.

    `loss` is the task's, `module` what it calls (`model`, wrapped), `share` the weight of a micro-batch in
    its step. `set_mode` chooses how it runs: eager; with each transformer block compiled; forward and
    backward as one CUDA graph; both. A batch that has not `rows` rows (videos were left out) always runs
    eagerly: nothing is compiled or captured for it.
    """

    def __init__(
        self,
        loss: Callable[..., Tensor],
        module: nn.Module,
        model: nn.Module,
        *,
        rows: int,
        share: float,
        precision: str,
        device: torch.device,
        scaler: torch.amp.GradScaler,
        quiet: threading.Lock,
    ) -> None:
        self._loss, self._module, self._model, self._rows = loss, module, model, rows
        self._share, self._precision, self._device, self._scaler = share, precision, device, scaler
        self._quiet = quiet
        self._compiled = False
        self._captured: CapturedBackward | None = None
        self.mode: Mode = "eager"

    def set_mode(self, mode: Mode) -> None:
        """Run so from now on; compiling and capturing happen at the next batch."""
        self.mode = mode
        self._captured = None
        if "compile" in mode and not self._compiled:
            compile_blocks(self._model)
            self._compiled = True
        if "graph" in mode:
            self._captured = CapturedBackward(self._run, self._model, rows=self._rows, quiet=self._quiet)

    def clear(self) -> None:
        """Forget the gradients of the step before; a captured step clears its own."""
        if self._captured is None:
            for parameter in self._model.parameters():
                parameter.grad = None

    def is_whole(self, inputs: Sequence[Tensor]) -> bool:
        """Whether a micro-batch has all its rows; what has not runs eagerly in any mode."""
        return len(inputs[0]) == self._rows

    def __call__(self, *inputs: Tensor, weight: float = 1.0) -> Tensor:
        whole = self.is_whole(inputs) and weight == 1.0
        with contextlib.nullcontext() if whole and "compile" in self.mode else self.eager():
            if self._captured is not None:
                return self._captured(*inputs)
            return self._run(*inputs, weight=weight)

    def eager(self) -> contextlib.AbstractContextManager[Any]:
        """Inside, compiled blocks run as they are written (evaluation, batches of another size)."""
        return torch.compiler.set_stance("force_eager") if self._compiled else contextlib.nullcontext()

    def _run(self, *inputs: Tensor, weight: float = 1.0) -> Tensor:
        with autocast(self._precision, self._device):
            loss = self._loss(self._module, *inputs)
            share = weight * self._share
            self._scaler.scale(loss if share == 1.0 else loss * share).backward()
        return loss.detach().float()


def update(
    optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, *, bad: Tensor, skips: bool
) -> None:
    """Step the optimiser unless `bad`: a float scalar, 1 or 0, on the device; gradients are unscaled already.

    `skips`: the optimiser can be told so on the device (fused AdamW). For another one the host waits.
    """
    if skips:
        optimizer.found_inf, optimizer.grad_scale = bad, None  # type: ignore[attr-defined]
        optimizer.step()
        del optimizer.found_inf, optimizer.grad_scale  # type: ignore[attr-defined]
    elif not bad.item():
        optimizer.step()
    scaler.update()


@contextlib.contextmanager
def seeded(seed: int, device: torch.device, needed: bool) -> Iterator[None]:
    """Drop path and dropout draw from torch's global generator: seed it inside, put it back after."""
    if not needed:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def draws_in_forward(model: nn.Module) -> bool:
    """True when some module has a dropout or drop-path probability above zero."""
    return any(
        isinstance(value := getattr(module, name, 0.0), float) and value > 0
        for module in model.modules()
        for name in ("p", "drop_prob", "drop_path", "dropout")
    )


def mode_of(train: TrainConfig) -> Mode:
    """How a step runs by what the configuration says outright; what it leaves to `auto` is off."""
    compiled, captured = train.compile is True, train.cuda_graph is True
    if compiled:
        return "compile+graph" if captured else "compile"
    return "graph" if captured else "eager"
