"""Which way every op goes on this machine, for `vmae doctor`, `vmae bench kernels` and the dashboard."""

from __future__ import annotations

import torch

from vmae.kernels.device import Device
from vmae.kernels.dispatch import KernelStatus, installed, mode, obstacle_here
from vmae.kernels.registry import OPS
from vmae.kernels.table import Rows, Store

UNMEASURED = (
    "nothing is measured on this GPU yet: a training run of more than ten minutes measures at its start, "
    "`vmae bench kernels --calibrate` does now"
)


def kernel_status(known: Rows | None = None) -> list[KernelStatus]:
    """Return, for every op, the path taken on this machine in the mode in force, and why.

    known: a table (None: what is installed in this process, or else this machine's); in mode auto every site
    that it has is listed by itself.
    """
    rows = installed() if known is None else known
    if known is None and not rows and torch.cuda.is_available():
        rows = Store(Device().facts()).load()
    found = []
    for op in OPS:
        obstacle, chosen = obstacle_here(), mode()
        path, why = "torch", obstacle or UNMEASURED
        if chosen == "auto" and obstacle is None and not torch.cuda.is_available():
            why = "the interpreter is only used in mode triton"
        if chosen == "torch":
            why = "mode torch"
        elif obstacle is None and chosen == "triton":
            path, why = "triton", "mode triton"
        sites = [(key, row) for key, row in rows.items() if key.split(" ")[0] == op.name and row.choice]
        if chosen == "auto" and obstacle is None and sites:
            found += [KernelStatus(op=key, path=row.choice, reason=row.why) for key, row in sorted(sites)]
        else:
            found.append(KernelStatus(op=op.name, path=path, reason=why))
    return found
