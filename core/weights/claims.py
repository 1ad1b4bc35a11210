"""What a checkpoint claims to hold, against what it holds: memory is taken for a model after that alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vmae.core.errors import CheckpointError
from vmae.core.model.encoder import EncoderConfig
from vmae.core.model.target import SIGREG

MAX_POSITIONS = 2**28
"""Numbers of a table of fixed positions (1 GiB), of which a file holds none."""


def require_held(config: EncoderConfig, state: Mapping[str, Any], source: str, num_classes: int = 0) -> None:
    """Raise CheckpointError where a model of `config` has more layers or weights than `state` has numbers.

    `state` are a file's tensors, of which one may repeat a few numbers as often as it likes (stride 0). A
    header of 100 bytes that claims ten million layers would cost 11 GiB otherwise.
    """
    tensors = [v for v in state.values() if isinstance(v, Tensor)]
    storages = {(s := v.untyped_storage()).data_ptr(): s.nbytes() // v.element_size() for v in tensors}
    held = sum(storages.values())
    dim, depth = config.embed_dim, config.depth
    other, more = (getattr(config, f"decoder_{name}", 0) for name in ("embed_dim", "depth"))
    if getattr(config, "target", "") == SIGREG:  # no decoder, whatever the fields say
        other = more = 0
    if depth + more > len(tensors):
        raise CheckpointError(
            f"{source}: its header claims {depth + more:,} layers, it has {len(tensors):,} tensors"
        )
    claimed = (
        depth * (4 * dim**2 + 2 * dim * config.mlp_dim)
        + more * 4 * other**2
        + config.grid.patch_dim * dim
        + num_classes * dim
    )
    if claimed > held:
        raise CheckpointError(
            f"{source}: its header claims {claimed:,} weights or more, it has {held:,} numbers"
        )
    tokens = max(config.grid.num_tokens, math.prod(config.pos_grid or ()))
    if tokens * max(dim, other) > MAX_POSITIONS:
        raise CheckpointError(
            f"{source}: its header claims clips of {tokens:,} tokens; expected at most "
            f"{MAX_POSITIONS // max(dim, other):,} of width {max(dim, other)}"
        )
