"""Block sizes of the gather and loss kernels. Pure Python, no Triton import; not tuned on a GPU."""

from __future__ import annotations

from vmae.kernels.checks import require
from vmae.kernels.launch import next_power_of_2

MAX_PATCH_VALUES = 16_384  # the loss keeps a whole patch in registers


# Warps per patch that are timed against each other at SWEEP_VALUES (1536 values, padded): the default first.
WARPS = {"gather": (1, 2), "loss": (1, 2)}
SWEEP_VALUES = 2048
# Winners of a sweep in this process: {kernel: warps}. A call that names its warps does not look here.
measured_here: dict[str, int] = {}


def variants(kernel: str, rows: int, run: int) -> list[str]:
    """Names of what is worth measuring: the default, and each other number of warps ("2 warps")."""
    if next_power_of_2(rows) * next_power_of_2(run) != SWEEP_VALUES:
        return ["default"]
    return ["default", *(f"{w} warps" for w in WARPS[kernel][1:])]


def _warps(kernel: str, values: int, tiles: str, default: int) -> int:
    if tiles and tiles != "default":
        known = {f"{w} warps": w for w in WARPS[kernel]}
        require(tiles in known, f"{kernel}: one of {', '.join(known)}", repr(tiles))
        return known[tiles]
    return measured_here.get(kernel, default) if values == SWEEP_VALUES and not tiles else default


def gather_block(rows: int, run: int, tiles: str = "") -> tuple[int, int, int]:
    """Return (rows per step, values per row, warps) for patches of `rows` rows of `run` values.

    Up to 2048 values per step of one warp: 16 bytes per thread and load, four loads in flight. tiles: one of
    `variants`; empty: the default, or what a sweep found in this process.
    """
    width = next_power_of_2(run)
    height = min(next_power_of_2(rows), max(1, 2048 // width))
    return height, width, _warps("gather", height * width, tiles, 1)


def loss_block(rows: int, run: int, tiles: str = "") -> tuple[int, int, int, int]:
    """Return (rows, values of a row in two tiles, warps) for the loss: 48 values are 32 + 16.

    The whole patch is in registers, at most 64 values per thread. The kernel is bound by instructions as
    much as by memory: with more warps the sums over rows, which
    every warp makes for itself, cost as much as the rest.
    """
    height, width = next_power_of_2(rows), next_power_of_2(run)
    first = max(1, width // 2)
    second = next_power_of_2(max(1, run - first))
    warps = min(16, next_power_of_2(-(-height * (first + second) // 2048)))
    return height, first, second, _warps("loss", height * width, tiles, warps)
