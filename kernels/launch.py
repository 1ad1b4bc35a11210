"""What every launcher needs: block sizes, strides, and which implementation an op registers for a device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from vmae.kernels.checks import require
from vmae.kernels.dispatch import any_refused, family, interpreting, is_refused, refuse
from vmae.kernels.layout import channels_last

Result = TypeVar("Result")


def on_device(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Make the tensor's GPU current: Triton launches on the current device, whatever its arguments'."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def family_of(x: Tensor) -> int:
    """Return the configuration family of the tensor's GPU (90 without one)."""
    return family(x.device.index if x.device.index is not None else -1)


def multiprocessors(x: Tensor) -> int:
    """How many the tensor's GPU has (the interpreter, which runs programs one after another: 1)."""
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1


def next_power_of_2(n: int) -> int:
    """Return the smallest power of two not below n."""
    return 1 << (n - 1).bit_length()


def runs_kernel(x: Tensor) -> bool:
    """Whether an op called on this tensor launches its kernel: on a GPU, or on the CPU in the interpreter.

    Otherwise (a CPU tensor reaches the op through opcheck, export or a moved compiled graph) the op
    computes its reference.
    """
    kernel_dtypes = (torch.uint8, torch.float32, torch.bfloat16, torch.float16)
    return x.dtype in kernel_dtypes and (x.is_cuda or (x.device.type == "cpu" and interpreting()))


def video_strides(video: Tensor, layout: str) -> tuple[int, int, int, int, int]:
    """Return the strides `(B, C, T, H, W)` of a clip batch; one clip must span fewer than 2**31 elements."""
    x = channels_last(video, layout)
    b, t, h, w, c = x.stride()
    span = sum((n - 1) * s for n, s in zip(x.shape[1:], (t, h, w, c), strict=True))
    require(span < 2**31, "a clip whose elements lie within 2**31 of each other", f"{span}")
    return b, c, t, h, w


def or_plain(name: Callable[[], str], kernel: Callable[[], Result], plain: Callable[[], Result]) -> Result:
    """The kernel's result; where it does not compile or asks for more than the chip has, that of `plain`.

    Such a kernel is refused for the rest of the process under `name()` (`dispatch.call_name`), with a
    warning; any other error is raised. What an asynchronous launch does wrong is seen by no one here.
    """
    if any_refused() and is_refused(name()):
        return plain()
    try:
        return kernel()
    except Exception as e:
        if not type(e).__module__.startswith("triton."):
            raise
        text = (str(e).splitlines() or [""])[0][:200]
        refuse(name(), f"{type(e).__name__}: {text}")
        return plain()


def row_is_run(video: Tensor, layout: str) -> bool:
    """Whether the channels of a pixel, and the pixels of a row, follow each other in memory."""
    x = channels_last(video, layout)
    return x.stride(4) == 1 and x.stride(3) == x.shape[4]


def check_offsets(rows: int, stride: int, what: str) -> None:
    """The kernels index one clip with 32 bits."""
    require(rows * stride < 2**31, f"{what} of fewer than 2**31 elements per clip", f"{rows} x {stride}")
