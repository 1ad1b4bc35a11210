"""Which path every op takes on this machine, for `vmae doctor`, `vmae bench kernels` and the dashboard."""

from __future__ import annotations

from dataclasses import replace

import torch

from vmae.kernels.dispatch import KernelStatus, decide
from vmae.kernels.registry import OPS


def kernel_status() -> list[KernelStatus]:
    """Return, for every op at ViT-B's sizes, the path taken on this machine in the mode in force, and why.

    Asked for the current CUDA device where there is one, else for CPU tensors; an op with several sizes
    (attention: the encoder's and the decoder's length) is listed once for each.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    index = torch.cuda.current_device() if device == "cuda" else -1
    rows = []
    for op in OPS:
        for size in op.status_sizes:
            status = decide(op.name, device, index, None, size)
            several = len(op.status_sizes) > 1
            rows.append(replace(status, op=f"{op.name} {op.size}={size}") if several else status)
    return rows
