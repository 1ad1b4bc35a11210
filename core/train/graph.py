"""A training step, or its forward and backward, as one CUDA graph: a launch instead of hundreds."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vmae.core.errors import InputError, VmaeError

_WARM_UP = 3


def capture_step(
    step: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> Callable[..., Tensor]:
    """Capture `step(*inputs)`, the whole step up to the optimiser, and return a function that replays it.

    The returned function takes tensors of the same shapes and dtypes, copies them into the captured inputs
    and returns the captured output (overwritten by the next replay: clone what must be kept). On other
    devices than CUDA it is `step` itself.

    step must not wait for the host: index masks, no `.item()`, gradients dropped by
    `zero_grad(set_to_none=True)` inside it, and an optimiser with `capturable=True`. A learning rate that
    changes lives in a tensor (`group["lr"].fill_(...)`), because the graph keeps a number as it was.

    The warm-up runs that a capture needs leave no trace: weights, buffers and optimiser state are put back.
    Raises InputError where the optimiser is not capturable.
    """
    if not inputs or inputs[0].device.type != "cuda":
        return step
    for group in optimizer.param_groups:
        if not group.get("capturable"):
            raise InputError(
                "expected an optimiser with capturable=True for a captured step, got one without"
            )
    before = [(x, x.detach().clone()) for x in (*model.parameters(), *model.buffers())]
    known = {id(v): v.clone() for state in optimizer.state.values() for v in _tensors(state)}
    replay = _capture(step, inputs, model)
    with torch.no_grad():
        for x, kept in before:
            x.copy_(kept)
        for state in optimizer.state.values():
            for v in _tensors(state):
                if id(v) in known:
                    v.copy_(known[id(v)])
                else:
                    v.zero_()  # made by the warm-up: AdamW's moments and step count begin at 0
    return replay


class CapturedBackward:
    """`backward(*inputs)`, which leaves gradients in `model` and returns the loss, as a CUDA graph.

    The optimiser stays outside, so that a step whose gradient is not finite can still be left out, and its
    learning rate may be a number. The graph is captured at the first batch with `rows` rows (of the first
    input); batches of another size (videos left out) run as they are. The gradients stay in the memory that
    the graph writes: a caller must not drop them, and need not clear them, before a call.

    While it captures it holds `quiet`: no other thread may ask anything of the device then. Without a CUDA
    device every batch runs as it is. Raises VmaeError where the capture fails.
    """

    def __init__(
        self,
        backward: Callable[..., Tensor],
        model: nn.Module,
        *,
        rows: int,
        quiet: threading.Lock | None = None,
    ) -> None:
        self._backward, self._model, self._rows, self._quiet = backward, model, rows, quiet
        self._replay: Callable[..., Tensor] | None = None
        self.replays = 0

    def __call__(self, *inputs: Tensor) -> Tensor:
        if len(inputs[0]) != self._rows or inputs[0].device.type != "cuda":
            # Captured gradients are cleared in place: the graph goes on writing to their memory.
            self._model.zero_grad(set_to_none=self._replay is None)
            return self._backward(*inputs)
        if self._replay is None:
            try:
                with self._quiet or contextlib.nullcontext():
                    self._replay = _capture(self._backward, inputs, self._model)
            except RuntimeError as e:
                text = (str(e).splitlines() or [type(e).__name__])[0]
                raise VmaeError(
                    f"expected a step that can be captured, got: {text}; use train.cuda_graph=false"
                ) from e
        self.replays += 1
        return self._replay(*inputs).clone()


def _capture(
    work: Callable[..., Tensor], inputs: Sequence[Tensor], model: nn.Module
) -> Callable[..., Tensor]:
    """Run `work` on a side stream a few times, then record it, its gradients in the graph's own memory."""
    static = [x.clone() for x in inputs]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            model.zero_grad(set_to_none=True)
            work(*static)
    torch.cuda.current_stream().wait_stream(stream)
    model.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    # Loader threads pin memory meanwhile: only calls of this thread may spoil the capture.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        output = work(*static)

    def replay(*new: Tensor) -> Tensor:
        for x, y in zip(static, new, strict=True):
            x.copy_(y, non_blocking=True)
        graph.replay()
        return output

    return replay


def _tensors(state: dict[str, object]) -> list[Tensor]:
    return [v for v in state.values() if isinstance(v, Tensor)]
