"""What other programs put around a state dict and before its names, taken off: one reader serves them all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vmae.core.errors import CheckpointError
from vmae.core.model.layers import sincos_pos_embed

_HOLDERS = ("model", "module", "state_dict", "model_state_dict", "model_state")
"""Where a file keeps its state dict: the official code, DeepSpeed, mmaction2 and Lightning, and others."""
_WRAPPERS = re.compile(r"(^|\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile, FSDP and activation checkpointing put before and between names."""
_EMBED, _TO_DECODER = "patch_embed.proj.weight", "encoder_to_decoder.weight"
_MMACTION = (
    ("patch_embed.projection.", "patch_embed.proj."),
    (".mlp.layers.0.0.", ".mlp.fc1."),
    (".mlp.layers.1.", ".mlp.fc2."),
)


def find_state(content: dict[str, Any], source: Path) -> dict[str, Tensor]:
    """The tensors of a file's model under the official names, whatever the file wraps them in.

    Raises CheckpointError where there are tensors of several models, or positions that were learnt.
    """
    inside: Any = content
    while isinstance(inside, dict):
        holder = next((k for k in _HOLDERS if isinstance(inside.get(k), dict)), None)
        if holder is None:
            break
        inside = inside[holder]
    state = strip_prefixes({k: v for k, v in inside.items() if isinstance(v, Tensor)})
    if any("patch_embed.projection." in key for key in state):
        state = _of_mmaction(state, source)
    prefix = _prefix(state, source)
    return {key.removeprefix(prefix): value for key, value in state.items()}


def strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keys without what DDP, DeepSpeed, FSDP and torch.compile put before or between names."""
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key
        while (shorter := _WRAPPERS.sub(r"\1", name).removeprefix("module.")) != name:
            name = shorter
        out[name] = value
    return out


def _prefix(state: dict[str, Tensor], source: Path) -> str:
    """The name of the attribute that a Lightning module and the like keep the model in, with its dot."""
    end = _TO_DECODER if any(key.endswith(_TO_DECODER) for key in state) else _EMBED
    found = sorted(key.removesuffix(end) for key in state if key.endswith(end))
    if len(found) > 1:
        raise CheckpointError(
            f"{source}: expected one model, got {len(found)} (under {', '.join(map(repr, found))})"
        )
    return found[0] if found and (not found[0] or found[0].endswith(".")) else ""


def _of_mmaction(state: dict[str, Tensor], source: Path) -> dict[str, Tensor]:
    """mmaction2's `Recognizer3D` of a VideoMAE: the same tensors under other names, and fixed positions."""
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key.removeprefix("backbone.")
        if name == "pos_embed":
            _require_fixed(value, source)
            continue
        for theirs, official in _MMACTION:
            name = name.replace(theirs, official)
        out[re.sub(r"^cls_head\.fc_cls\.", "head.", name)] = value
    return out


def _require_fixed(positions: Tensor, source: Path) -> None:
    fixed = positions.dim() == 3 and positions.shape[-1] % 2 == 0
    fixed = fixed and torch.allclose(
        positions[0].float(), sincos_pos_embed(positions.shape[1], positions.shape[2]), atol=1e-2
    )
    if not fixed:
        raise CheckpointError(
            f"{source}: expected the fixed sinusoids of VideoMAE in pos_embed, got other positions "
            f"{list(positions.shape)} (learnt?), which the model here cannot hold"
        )
