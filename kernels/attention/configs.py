"""Tile sizes of the attention kernels per GPU family, dtype and head dim. Pure Python; no Triton import.

Every configuration listed here is compiled ahead of time for its family by `vmae bench kernels --aot` and
must not spill. The defaults are chosen without a GPU: no spill, the most matrix work per tile. CANDIDATES are
what a user's GPU times against each other (`calibrate.py`), and the GPU suite (`experiments/bench/tiles.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from vmae.kernels.checks import require

SHORT_MAX_TOKENS = 256
MAX_HEAD_DIM = 128


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One kernel's tile: BLOCK_M query rows, BLOCK_N keys (0 where all keys are resident), warps, stages.

    form: of the short kernels. "pair": keys as two power-of-two tiles where that fits closer (160 is
    128 + 32). "single": one tile, padded. "persistent" (forward): as "pair", by as many programs as are
    resident at once, each of which loads the next head while it computes. Of the backward pass also
    "two_pass", and "long": the long kernels do it. peeled: the long kernels' last tile has code of its own,
    which spares the others their masks; where the registers do not suffice for both, it has not.
    """

    block_m: int
    block_n: int = 0
    num_warps: int
    num_stages: int = 1
    form: str = "pair"
    peeled: bool = True

    def __str__(self) -> str:
        return (
            f"{self.block_m}x{self.block_n} {self.num_warps} warps {self.num_stages} stages"
            + (f" {self.form}" if self.form != "pair" else "")
        )  # fmt: skip


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


def key_tiles(n: int, form: str = "pair") -> tuple[int, int]:
    """Return the one or two power-of-two key tiles that hold n <= 256 keys: 160 is 128 + 32, or 256."""
    if n <= 128:
        return max(16, 1 << (n - 1).bit_length()), 0
    if n <= 160 and form != "single":
        return 128, 32
    return 256, 0


# Families without Hopper's matrix unit, whose operands and results all live in registers: smaller tiles. All
# but sm_80 have 99 KB of shared memory.
PLAIN_FAMILIES = (80, 86, 89, 120)
# (family, head block) -> tiles for 16-bit dtypes.
_LONG: dict[tuple[int, int], tuple[Tile, Tile, Tile]] = {}
for _block in (16, 32, 64):
    for _family in PLAIN_FAMILIES:
        _LONG[_family, _block] = (
            Tile(block_m=64, block_n=64, num_warps=4, num_stages=3),
            Tile(block_m=64, block_n=64, num_warps=4, num_stages=2),
            Tile(block_m=64, block_n=64, num_warps=4, num_stages=2, peeled=_family == 80),
        )
    for _family in (90, 100):
        _LONG[_family, _block] = (
            Tile(block_m=128, block_n=64, num_warps=4, num_stages=3),
            Tile(block_m=128, block_n=64, num_warps=8, num_stages=2),
            Tile(block_m=64, block_n=128, num_warps=8, num_stages=2),
        )
for _family in (*PLAIN_FAMILIES, 90, 100):
    _LONG[_family, 128] = (
        Tile(block_m=64, block_n=64, num_warps=4, num_stages=2),
        Tile(block_m=64, block_n=64, num_warps=8, num_stages=1),
        Tile(block_m=64, block_n=64, num_warps=8, num_stages=1),
    )
_fwd, _dq, _dkdv = (replace(tile, peeled=False) for tile in _LONG[80, 128])
for _family in PLAIN_FAMILIES:
    _LONG[_family, 128] = (_fwd, _dq, _dkdv)
_LONG[100, 128] = (_LONG[100, 128][0], _dq, _LONG[100, 128][2])
# With a head dim of 16 or less these two spill in the tiles above.
for _family in PLAIN_FAMILIES:
    _LONG[_family, 16] = (replace(_LONG[_family, 16][0], num_stages=2), *_LONG[_family, 16][1:])
_LONG[100, 16] = (_LONG[100, 16][0], replace(_LONG[100, 16][1], num_warps=4), _LONG[100, 16][2])

# float32 products run as exact float32 on the plain units: small tiles, correctness before speed. By head
# block, forward, dq and dkdv: the largest of these tiles that do not spill on any family.
_SQUARE = Tile(block_m=32, block_n=32, num_warps=4, peeled=False)
_LONG_FP32 = {
    16: (_SQUARE, _SQUARE, _SQUARE),
    32: (_SQUARE, _SQUARE, _SQUARE),
    64: (_SQUARE, replace(_SQUARE, block_n=16), replace(_SQUARE, block_m=16)),
    128: (
        replace(_SQUARE, block_n=16),
        Tile(block_m=16, block_n=16, num_warps=8, peeled=False),
        Tile(block_m=16, block_n=16, num_warps=4, peeled=False),
    ),
}


# What the GPU suite times at N = 160 and N = 1568 with a head dim of 64, by kernel: the default first.
CANDIDATES: dict[int, dict[str, list[Tile]]] = {
    90: {
        "short_fwd": [
            Tile(block_m=64, num_warps=4, num_stages=2),
            Tile(block_m=64, num_warps=4),
            Tile(block_m=128, num_warps=8),
            Tile(block_m=128, num_warps=8, num_stages=2),
            Tile(block_m=64, num_warps=4, num_stages=2, form="single"),
            Tile(block_m=64, num_warps=4, num_stages=2, form="persistent"),
        ],
        "short_bwd": [
            Tile(block_m=32, num_warps=8),
            Tile(block_m=32, num_warps=8, num_stages=2, form="single"),
            Tile(block_m=16, num_warps=8, num_stages=2, form="single"),
            Tile(block_m=64, block_n=64, num_warps=4, form="two_pass"),
            Tile(block_m=32, block_n=64, num_warps=4, num_stages=2, form="two_pass"),
            Tile(block_m=64, block_n=64, num_warps=8, num_stages=2, form="two_pass"),
            Tile(block_m=64, block_n=64, num_warps=4, num_stages=2, form="long"),
        ],
        "long_fwd": [
            Tile(block_m=128, block_n=64, num_warps=4, num_stages=3),
            Tile(block_m=128, block_n=64, num_warps=8, num_stages=3),
            Tile(block_m=128, block_n=128, num_warps=8, num_stages=2),
            Tile(block_m=128, block_n=128, num_warps=4, num_stages=2),
            Tile(block_m=64, block_n=64, num_warps=4, num_stages=3),
            Tile(block_m=64, block_n=128, num_warps=4, num_stages=2),
        ],
        "long_dq": [
            Tile(block_m=128, block_n=64, num_warps=8, num_stages=2),
            Tile(block_m=128, block_n=64, num_warps=8, num_stages=3),
            Tile(block_m=64, block_n=64, num_warps=4, num_stages=2),
            Tile(block_m=128, block_n=128, num_warps=8, num_stages=2),
            Tile(block_m=64, block_n=128, num_warps=4, num_stages=2),
        ],
        "long_dkdv": [
            Tile(block_m=64, block_n=128, num_warps=8, num_stages=2),
            Tile(block_m=64, block_n=128, num_warps=8, num_stages=3),
            Tile(block_m=64, block_n=64, num_warps=4, num_stages=2),
            Tile(block_m=32, block_n=128, num_warps=8, num_stages=2),
            Tile(block_m=32, block_n=64, num_warps=4, num_stages=3),
        ],
    }
}
for _family in PLAIN_FAMILIES:
    CANDIDATES[_family] = {
        "short_fwd": [
            Tile(block_m=64, num_warps=4),
            Tile(block_m=64, num_warps=4, num_stages=2),
            Tile(block_m=32, num_warps=4),
            Tile(block_m=128, num_warps=8),
        ],
        "short_bwd": [
            Tile(block_m=32, num_warps=8),
            Tile(block_m=16, num_warps=8),
            Tile(block_m=32, block_n=64, num_warps=4, num_stages=2, form="two_pass"),
            Tile(block_m=32, block_n=64, num_warps=4, num_stages=2, form="long"),
        ],
        "long_fwd": [_LONG[_family, 64][0], Tile(block_m=128, block_n=64, num_warps=8, num_stages=3)],
        "long_dq": [
            _LONG[_family, 64][1],
            Tile(block_m=64, block_n=32, num_warps=4, num_stages=2),
            Tile(block_m=128, block_n=32, num_warps=8, num_stages=2),
            Tile(block_m=128, block_n=64, num_warps=8, num_stages=2),
        ],
        "long_dkdv": [
            _LONG[_family, 64][2],
            Tile(block_m=32, block_n=64, num_warps=4, num_stages=2),
            Tile(block_m=32, block_n=128, num_warps=8, num_stages=2),
        ],
    }
SWEEP_HEAD_DIM = 64
# Winners of a sweep in this process: {kernel: tile}. A call that names its tiles does not look here.
measured_here: dict[str, Tile] = {}


def attention_plan(n: int, head_dim: int, dtype: torch.dtype, family: int, tiles: str = "") -> AttentionPlan:
    """Return the kernels and tiles for a sequence of n tokens on a GPU family.

    tiles: "default", or the kernels whose tile is another of CANDIDATES, as `variants` writes them. Empty:
    the default, or what a sweep found in this process for the shapes it is about (129 to 160 tokens and more
    than 256, head dims 33 to 64, 16-bit).
    """
    plan = default_plan(n, head_dim, dtype, family)
    if tiles:
        return with_tiles(plan, _named_tiles(tiles, family))
    swept = variant_kernels(n, head_dim, dtype)
    return with_tiles(plan, {k: measured_here.get(k) for k in swept}) if measured_here else plan


def variant_kernels(n: int, head_dim: int, dtype: torch.dtype) -> tuple[str, ...]:
    """The kernels of a shape that CANDIDATES are meant for."""
    if dtype == torch.float32 or head_block(head_dim) != SWEEP_HEAD_DIM:
        return ()
    if n > SHORT_MAX_TOKENS:
        return ("long_fwd", "long_dq", "long_dkdv")
    return ("short_fwd", "short_bwd") if 128 < n <= 160 else ()


def variants(n: int, head_dim: int, dtype: torch.dtype, family: int, *, grad: bool) -> list[str]:
    """Names of the plans worth measuring: the default, and each candidate tile of one kernel in turn.

    "short_fwd=64x0 4 warps 1 stages"; several tiles are joined by ";".
    """
    kernels = [k for k in variant_kernels(n, head_dim, dtype) if grad or k.endswith("fwd")]
    known = CANDIDATES.get(family, {})
    return ["default", *(f"{kernel}={tile}" for kernel in kernels for tile in known.get(kernel, [])[1:])]


def _named_tiles(tiles: str, family: int) -> dict[str, Tile | None]:
    named: dict[str, Tile | None] = {}
    for part in tiles.split(";") if tiles != "default" else ():
        kernel, _, name = part.partition("=")
        known = {str(t): t for t in CANDIDATES.get(family, {}).get(kernel, [])}
        require(name in known, f"a tile of {kernel} on sm_{family} among {', '.join(known)}", repr(name))
        named[kernel] = known[name]
    return named


def with_tiles(plan: AttentionPlan, tiles: dict[str, Tile | None]) -> AttentionPlan:
    """Return the plan with some kernels' tiles replaced (None: left as they are)."""
    fields = {"long_fwd": "fwd", "long_dq": "dq", "long_dkdv": "dkdv"}
    for kernel, tile in tiles.items():
        if tile is None:
            continue
        if tile.form == "long":
            plan = replace(plan, short_bwd=None, dq=tile, dkdv=tile)
        else:
            plan = replace(plan, **{fields.get(kernel, kernel): tile})
    return plan


def default_plan(n: int, head_dim: int, dtype: torch.dtype, family: int) -> AttentionPlan:
    """Return what is used without a measurement."""
    block = head_block(head_dim)
    if dtype == torch.float32:
        fwd, dq, dkdv = _LONG_FP32[block]
        return AttentionPlan(short_fwd=None, short_bwd=None, fwd=fwd, dq=dq, dkdv=dkdv)
    fwd, dq, dkdv = _LONG[family, block]
    short_fwd = short_bwd = None
    plain = family in PLAIN_FAMILIES
    if n <= SHORT_MAX_TOKENS and (block <= 64 or n <= 160):
        short_fwd = Tile(block_m=64, num_warps=4, num_stages=1 if plain or block > 64 else 2)
        if n > 160:
            short_fwd = replace(short_fwd, block_m=32) if plain else replace(short_fwd, num_warps=8)
            if family == 100:  # with two stages N = 196 spills 12 bytes
                short_fwd = replace(short_fwd, num_stages=1)
    if n <= SHORT_MAX_TOKENS and block <= 64:
        short_bwd = Tile(block_m=32, num_warps=8)
        if plain and n > 160:  # all keys resident need 116 KB there, and spill
            short_bwd = Tile(block_m=32, block_n=64, num_warps=4, num_stages=2, form="two_pass")
    return AttentionPlan(short_fwd=short_fwd, short_bwd=short_bwd, fwd=fwd, dq=dq, dkdv=dkdv)
