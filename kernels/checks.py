"""Argument checks shared by the ops: every message says what was expected and what came.

Shapes, dtypes and devices are checked on every call, before any launch. Index *values* are checked where
that costs no device synchronisation: on CPU tensors outside `torch.compile`, and on GPU tensors when the
environment sets `VMAE_KERNELS_DEBUG=1`. Elsewhere an index out of range is undefined behaviour.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor

LAYOUTS = ("BCTHW", "BTHWC")
FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class KernelInputError(ValueError):
    """An argument of an op that cannot be used as given; raised before anything is launched."""


def require(condition: bool, expected: str, got: object) -> None:
    """Raise `KernelInputError("expected ...; got ...")` unless `condition` holds."""
    if not condition:
        raise KernelInputError(f"expected {expected}; got {got}")


def describe(x: object) -> str:
    """Return dtype, shape and device of a tensor (or the value's type) for a message."""
    if isinstance(x, Tensor):
        return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)} on {x.device}"
    return f"{type(x).__name__} {x!r}"


def check_video(video: Tensor, layout: str, patch_size: int, tubelet_size: int) -> tuple[int, ...]:
    """Check a clip batch against the patch grid; return `(B, C, T, H, W)` whatever the layout."""
    require(layout in LAYOUTS, f"layout one of {', '.join(LAYOUTS)}", repr(layout))
    require(isinstance(video, Tensor) and video.ndim == 5, f"video with 5 axes ({layout})", describe(video))
    require(
        video.dtype == torch.uint8 or video.dtype in FLOAT_DTYPES,
        "video of dtype uint8, float32, bfloat16, float16 or float64",
        describe(video),
    )
    whole = isinstance(patch_size, (int, torch.SymInt)) and isinstance(tubelet_size, (int, torch.SymInt))
    require(whole and patch_size >= 1 and tubelet_size >= 1,
            "whole numbers patch_size and tubelet_size of at least 1",
            f"patch_size={patch_size!r}, tubelet_size={tubelet_size!r}")  # fmt: skip
    if layout == "BCTHW":
        b, c, t, h, w = video.shape
    else:
        b, t, h, w, c = video.shape
    fits = t % tubelet_size == 0 and h % patch_size == 0 and w % patch_size == 0
    require(
        fits and min(b, c, t, h, w) >= 1,
        f"a non-empty video whose frames divide by tubelet_size={tubelet_size} and "
        f"height and width by patch_size={patch_size}",
        f"batch={b}, channels={c}, frames={t}, height={h}, width={w}",
    )
    return b, c, t, h, w


def check_indices(indices: Tensor, batch: int, num_tokens: int, like: Tensor, name: str = "indices") -> None:
    """Check token indices int64 [B, K], K >= 1, on the device of `like`, and values where that is free."""
    require(
        isinstance(indices, Tensor) and indices.ndim == 2 and indices.dtype == torch.int64,
        f"{name} int64 [B, K]",
        describe(indices),
    )
    require(indices.shape[0] == batch, f"{name} for a batch of {batch}", describe(indices))
    require(indices.shape[1] >= 1, f"{name} with K >= 1 tokens per clip", describe(indices))
    require(indices.device == like.device, f"{name} on {like.device}", describe(indices))
    if values_are_checked(indices):
        low, high = torch.aminmax(indices)
        require(
            int(low) >= 0 and int(high) < num_tokens,
            f"{name} in [0, {num_tokens})",
            f"values from {int(low)} to {int(high)}",
        )


def values_are_checked(x: Tensor) -> bool:
    """Whether reading a value of `x` is allowed here: it is eager, real, and on the CPU or in debug mode."""
    if torch.compiler.is_compiling() or type(x) is not Tensor:
        return False
    if x.device.type == "cpu":
        return True
    return x.device.type == "cuda" and os.environ.get("VMAE_KERNELS_DEBUG") == "1"


def check_stats(mean: Sequence[float] | None, std: Sequence[float] | None, channels: int) -> None:
    """Check that mean and std are both None or both hold one finite number per channel, std > 0."""
    require(
        (mean is None) == (std is None), "mean and std both given or both None", f"mean={mean}, std={std}"
    )
    if mean is not None and std is not None:
        require(
            len(mean) == channels and len(std) == channels,
            f"mean and std with one number per channel ({channels})",
            f"mean={tuple(mean)}, std={tuple(std)}",
        )
        require(all(math.isfinite(m) for m in mean), "finite means", tuple(mean))
        require(all(0 < s < math.inf for s in std), "finite std > 0", tuple(std))
