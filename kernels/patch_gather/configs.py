"""Block sizes of the gather and loss kernels. Pure Python, no Triton import; not tuned on a GPU."""

from __future__ import annotations

from vmae.kernels.dispatch import load_evidence
from vmae.kernels.launch import next_power_of_2

MAX_PATCH_VALUES = 16_384  # the loss keeps a whole patch in registers


# Warps per patch that the GPU suite times against each other at SWEEP_VALUES (1536 values, padded):
# the default first. A winner that is checked in with the evidence replaces it on that family.
WARPS = {"gather": (1, 2), "loss": (1, 2, 4)}
SWEEP_VALUES = 2048
# Winners of a sweep in this process, before they are checked in: {kernel: warps}.
measured_here: dict[str, int] = {}


def _warps(kernel: str, values: int, family: int | None) -> int | None:
    """The measured winner for blocks of `values`; None where none is."""
    if values != SWEEP_VALUES or family is None:
        return None
    row = load_evidence().get(f"sm_{family}", {}).get("tiles", {}).get(kernel, {})
    checked_in = next((w for w in WARPS[kernel] if row.get("tile") == f"{w} warps"), None)
    return measured_here.get(kernel, checked_in)


def gather_block(rows: int, run: int, family: int | None = None) -> tuple[int, int, int]:
    """Return (rows per step, values per row, warps) for patches of `rows` rows of `run` values.

    Up to 2048 values per step of one warp: 16 bytes per thread and load, four loads in flight. family: of the
    GPU whose measurements count; None for the defaults.
    """
    width = next_power_of_2(run)
    height = min(next_power_of_2(rows), max(1, 2048 // width))
    return height, width, _warps("gather", height * width, family) or 1


def loss_block(rows: int, run: int, family: int | None = None) -> tuple[int, int, int]:
    """Return (rows, values per row, warps) for the loss: the whole patch in registers, 64 values per thread.

    The kernel is bound by instructions as much as by memory: with more warps the sums over rows, which
    every warp makes for itself, cost as much as the rest.
    """
    height, width = next_power_of_2(rows), next_power_of_2(run)
    warps = max(1, min(16, height * width // 2048))
    return height, width, _warps("loss", height * width, family) or warps
