"""Block sizes of the add-and-norm kernels. Pure Python, no Triton import; not tuned on a GPU."""

from __future__ import annotations

from vmae.kernels.launch import next_power_of_2

PROGRAMS = 264  # of the backward pass: two for each of Hopper's 132 multiprocessors
MAX_WIDTH = 8192


def norm_block(d: int) -> tuple[int, int, int]:
    """Return (rows, columns, warps) of a program: whole rows, about 2048 values."""
    block = next_power_of_2(d)
    return max(1, min(16, 2048 // block)), block, max(4, min(16, block // 512))
