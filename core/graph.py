"""A whole training step as one CUDA graph: a launch instead of hundreds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vmae.core.errors import InputError


def capture_step(
    step: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    warmup: int = 3,
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
    static = [x.clone() for x in inputs]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warmup):
            step(*static)
    torch.cuda.current_stream().wait_stream(stream)
    optimizer.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = step(*static)

    with torch.no_grad():
        for x, kept in before:
            x.copy_(kept)
        for state in optimizer.state.values():
            for v in _tensors(state):
                if id(v) in known:
                    v.copy_(known[id(v)])
                else:
                    v.zero_()  # made by the warm-up: AdamW's moments and step count begin at 0

    def replay(*new: Tensor) -> Tensor:
        for x, y in zip(static, new, strict=True):
            x.copy_(y, non_blocking=True)
        graph.replay()
        return output

    return replay


def _tensors(state: dict[str, object]) -> list[Tensor]:
    return [v for v in state.values() if isinstance(v, Tensor)]
