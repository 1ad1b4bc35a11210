"""Tile sizes of the attention kernels per GPU family, dtype and head dim. Pure Python; no Triton import.

Every configuration listed here is compiled ahead of time for its family by `vmae bench kernels --aot` and
must not spill. None is tuned yet: they are the ones with no spill and the most matrix work per tile, chosen
without a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

SHORT_MAX_TOKENS = 256
MAX_HEAD_DIM = 128


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One kernel's tile: BLOCK_M query rows, BLOCK_N keys (unused by the short kernels), warps, stages."""

    block_m: int
    block_n: int = 0
    num_warps: int
    num_stages: int = 1


@dataclass(frozen=True, kw_only=True)
class AttentionPlan:
    """Which kernels serve one shape. `short_fwd` / `short_bwd` None: the long kernels do that pass."""

    short_fwd: Tile | None
    short_bwd: Tile | None
    fwd: Tile
    dq: Tile
    dkdv: Tile


def head_block(head_dim: int) -> int:
    """Return the padded head dim, a power of two of at least 16."""
    return max(16, 1 << (head_dim - 1).bit_length())


def key_tiles(n: int) -> tuple[int, int]:
    """Return the one or two power-of-two key tiles that hold n <= 256 keys: 160 is 128 + 32."""
    if n <= 128:
        return max(16, 1 << (n - 1).bit_length()), 0
    if n <= 160:
        return 128, 32
    return 256, 0


# (family, head block) -> tiles for 16-bit dtypes. A100's shared memory and matrix unit want smaller tiles.
_LONG: dict[tuple[int, int], tuple[Tile, Tile, Tile]] = {}
for _block in (16, 32, 64):
    _LONG[80, _block] = (
        Tile(block_m=64, block_n=64, num_warps=4, num_stages=3),
        Tile(block_m=64, block_n=64, num_warps=4, num_stages=2),
        Tile(block_m=64, block_n=64, num_warps=4, num_stages=2),
    )
    for _family in (90, 100):
        _LONG[_family, _block] = (
            Tile(block_m=128, block_n=64, num_warps=4, num_stages=3),
            Tile(block_m=128, block_n=64, num_warps=8, num_stages=2),
            Tile(block_m=64, block_n=128, num_warps=8, num_stages=2),
        )
for _family in (80, 90, 100):
    _LONG[_family, 128] = (
        Tile(block_m=64, block_n=64, num_warps=4, num_stages=2),
        Tile(block_m=64, block_n=64, num_warps=8, num_stages=1),
        Tile(block_m=64, block_n=64, num_warps=8, num_stages=1),
    )
# With a head dim of 16 or less these two spill in the tiles above.
_LONG[80, 16] = (replace(_LONG[80, 16][0], num_stages=2), *_LONG[80, 16][1:])
_LONG[100, 16] = (_LONG[100, 16][0], replace(_LONG[100, 16][1], num_warps=4), _LONG[100, 16][2])

# float32 products run as exact float32 on the plain units: small tiles, correctness before speed. By head
# block, forward, dq and dkdv: the largest of these tiles that do not spill on any family.
_SQUARE = Tile(block_m=32, block_n=32, num_warps=4)
_LONG_FP32 = {
    16: (_SQUARE, _SQUARE, _SQUARE),
    32: (_SQUARE, _SQUARE, _SQUARE),
    64: (_SQUARE, replace(_SQUARE, block_n=16), replace(_SQUARE, block_m=16)),
    128: (
        replace(_SQUARE, block_n=16),
        Tile(block_m=16, block_n=16, num_warps=8),
        Tile(block_m=16, block_n=16, num_warps=4),
    ),
}


def attention_plan(n: int, head_dim: int, dtype: torch.dtype, family: int) -> AttentionPlan:
    """Return the kernels and tiles for a sequence of n tokens on a GPU family (80, 90 or 100)."""
    block = head_block(head_dim)
    if dtype == torch.float32:
        fwd, dq, dkdv = _LONG_FP32[block]
        return AttentionPlan(short_fwd=None, short_bwd=None, fwd=fwd, dq=dq, dkdv=dkdv)
    fwd, dq, dkdv = _LONG[family, block]
    short_fwd = short_bwd = None
    if n <= SHORT_MAX_TOKENS and (block <= 64 or n <= 160):
        short_fwd = Tile(block_m=64, num_warps=4)
        if n > 160:
            short_fwd = replace(short_fwd, num_warps=8) if family >= 90 else replace(short_fwd, block_m=32)
    if n <= SHORT_MAX_TOKENS and block <= 64 and family >= 90:
        short_bwd = Tile(block_m=32, num_warps=8)
    return AttentionPlan(short_fwd=short_fwd, short_bwd=short_bwd, fwd=fwd, dq=dq, dkdv=dkdv)
