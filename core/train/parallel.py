"""One process or many: what the training loop needs to know about the others.

Alone nothing here does anything. Under `torch.distributed` (Ray Train, torchrun) the model is wrapped in DDP,
or its blocks are sharded (FSDP2) so that L, H and g fit. Checkpoints are always whole and plain: a run can be
resumed with another number of processes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class World:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> World:
        """Of the process group that is initialised, or one process alone."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def sum(self, values: Tensor) -> Tensor:
        """`values` added up over all processes, on the device: nothing here waits for it."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, values: list[str]) -> list[str]:
        """The lists of all processes, one after the other."""
        if self.size == 1:
            return values
        lists: list[Any] = [None] * self.size
        dist.all_gather_object(lists, values)
        return [v for part in lists for v in part]

    def any(self, flag: bool, device: torch.device) -> bool:
        """True on all processes when it is on one."""
        if self.size == 1:
            return flag
        tensor = torch.tensor(float(flag), device=device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return bool(tensor.item())


def transformer_blocks(model: nn.Module) -> Iterator[nn.ModuleList]:
    """The lists of transformer blocks of a model: the encoder's, and the decoder's where there is one."""
    for name, blocks in model.named_modules():
        if isinstance(blocks, nn.ModuleList) and name.rpartition(".")[2] == "blocks":
            yield blocks


def wrap(model: nn.Module, *, shard: bool, device: torch.device) -> nn.Module:
    """The module to call in a step; it shares `model`'s parameters.

    With `shard` the parameters of `model` become DTensors, in place.
    """
    world = World.current()
    if shard and world.size > 1:
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        for blocks in transformer_blocks(model):
            for block in blocks:
                fully_shard(block)
        fully_shard(model)
        # These run parts of the model outside forward(): their weights must be gathered first too.
        for method in ("predict", "encode", "features", "forward_features"):
            if hasattr(model, method):
                register_fsdp_forward_method(model, method)
    module: nn.Module = model
    if world.size > 1 and not shard:
        ids = [device.index] if device.type == "cuda" else None
        module = nn.parallel.DistributedDataParallel(
            module, device_ids=ids, gradient_as_bucket_view=True, broadcast_buffers=False
        )
    return module


def no_sync(module: nn.Module, wanted: bool) -> contextlib.AbstractContextManager[Any]:
    """DDP reduces gradients once per step, with the last micro-batch."""
    if wanted and isinstance(module, nn.parallel.DistributedDataParallel):
        return module.no_sync()
    return contextlib.nullcontext()


def whole(tree: Any) -> Any:
    """The same containers with every sharded tensor gathered; all processes must call it."""
    if isinstance(tree, dict):
        return {k: whole(v) for k, v in tree.items()}
    if isinstance(tree, list):
        return [whole(v) for v in tree]
    return tree.full_tensor() if hasattr(tree, "full_tensor") else tree


def like(value: Tensor, reference: Tensor) -> Tensor:
    """`value` sharded and placed as `reference` is."""
    if hasattr(reference, "full_tensor") and value.shape == reference.shape:
        from torch.distributed.tensor import distribute_tensor

        sharded: Any = reference
        return distribute_tensor(value.to(sharded.device), sharded.device_mesh, sharded.placements)
    return value


def load_model_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load whole tensors into a model that may be sharded."""
    own = model.state_dict()
    model.load_state_dict({k: like(v, own[k]) if k in own else v for k, v in state.items()})


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a whole optimiser state over parameters that may be sharded."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        i: {k: like(v, parameters[i]) if isinstance(v, Tensor) else v for k, v in values.items()}
        for i, values in state["state"].items()
    }
    optimizer.load_state_dict({"state": moments, "param_groups": state["param_groups"]})
