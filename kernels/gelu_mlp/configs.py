"""Tiles of the MLP kernels. Pure Python, no Triton import; not tuned on a GPU."""

from __future__ import annotations

from typing import TypedDict

import torch


class Tiles(TypedDict):
    """Compile-time arguments and options of one matrix-product launch."""

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    GROUP: int
    num_warps: int
    num_stages: int


def mlp_tiles(dtype: torch.dtype, family: int) -> Tiles:
    """Return the tiles for a dtype and GPU family; float32 is for correctness, not speed."""
    if dtype == torch.float32:
        return Tiles(BLOCK_M=32, BLOCK_N=32, BLOCK_K=16, GROUP=8, num_warps=4, num_stages=1)
    if family == 80:
        return Tiles(BLOCK_M=128, BLOCK_N=64, BLOCK_K=64, GROUP=8, num_warps=4, num_stages=3)
    return Tiles(BLOCK_M=128, BLOCK_N=128, BLOCK_K=64, GROUP=8, num_warps=8, num_stages=3)
