"""Block sizes of the gather and loss kernels. Pure Python, no Triton import; not tuned on a GPU."""

from __future__ import annotations

from vmae.kernels.launch import next_power_of_2

MAX_PATCH_VALUES = 16_384  # the loss keeps a whole patch in registers


def gather_block(p: int) -> tuple[int, int]:
    """Return (values per step, warps) for patches of p values; prefers a power of two that divides p."""
    divisor = p & -p
    block = divisor if divisor >= 256 else next_power_of_2(p)
    block = min(block, 1024)
    return block, 4 if block >= 512 else (2 if block >= 256 else 1)


def loss_block(p: int) -> tuple[int, int]:
    """Return (values, warps) for the loss: the whole patch in one block, at least 16 values per thread."""
    block = max(32, next_power_of_2(p))
    return block, max(1, min(16, block // 512))
