"""Block sizes of the gather and loss kernels. Pure Python, no Triton import; not tuned on a GPU."""

from __future__ import annotations

from vmae.kernels.launch import next_power_of_2

MAX_PATCH_VALUES = 16_384  # the loss keeps a whole patch in registers


def gather_block(p: int) -> tuple[int, int]:
    """Return (values per step, warps) for patches of p values; prefers a power of two that divides p."""
    divisor = p & -p
    block = min(512, divisor if divisor >= 256 else next_power_of_2(p))
    return block, 1  # 16 values per thread: loads of 16 bytes from uint8, 3 of them in flight at P = 1536


def loss_block(p: int) -> tuple[int, int]:
    """Return (values, warps) for the loss: the whole patch in one block, at least 16 values per thread."""
    block = max(32, next_power_of_2(p))
    return block, max(1, min(16, block // 512))
