"""Block sizes of the decoder-input kernels. Pure Python, no Triton import; not tuned on a GPU."""

from __future__ import annotations

from vmae.kernels.launch import next_power_of_2

ROWS = 16
SPLITS = 8  # programs per clip and column block that share the mask token's gradient


def width_block(d: int) -> int:
    """Return a column block: a power of two that divides d if one of 64 to 256 does, else 128."""
    divisor = d & -d
    return min(divisor, 256) if divisor >= 64 else min(128, next_power_of_2(d))
