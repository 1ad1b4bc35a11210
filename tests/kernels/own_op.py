"""A program for `test_own_op.py`: uses the op that was added to the kernels, and says what it saw."""

from __future__ import annotations

import json
from dataclasses import asdict

import torch
from torch import Tensor
from torch.profiler import profile

from vmae.kernels import KernelInputError, kernel_status, use_kernels
from vmae.kernels.registry import OPS, bench_cases
from vmae.kernels.scale_rows import op
from vmae.kernels.scale_rows.reference import scale_rows_reference
from vmae.kernels.timing import relative_error, run_bench

draws = torch.Generator().manual_seed(0)
given = [
    torch.randn(37, 48, generator=draws).requires_grad_(),
    torch.randn(37, generator=draws).requires_grad_(),
]
errors, launched = {}, {}


def compare(name: str, found: Tensor, exact: Tensor) -> None:
    errors[name] = relative_error(found.detach(), exact.detach())


wide = [t.detach().double().requires_grad_() for t in given]
exact = scale_rows_reference(*wide)
gradients = torch.autograd.grad(exact.square().sum(), wide)
for mode in ("torch", "triton", "auto"):
    with use_kernels(mode), profile() as seen:
        out = op.scale_rows(*given)
        compare(f"{mode}, result", out, exact)
        for name, found, expected in zip(
            "xs", torch.autograd.grad(out.square().sum(), given), gradients, strict=True
        ):
            compare(f"{mode}, gradient of {name}", found, expected)
    launched[mode] = any(e.key == "vmae::scale_rows" for e in seen.key_averages())
with use_kernels("triton"):
    torch.library.opcheck(torch.ops.vmae.scale_rows.default, tuple(given))
    (own,) = [o for o in OPS if o.name == "scale_rows"]
    for result, reference in own.small_launches("cpu"):
        compare("small launch", result, reference)
(case,) = [c for c in bench_cases("cpu", tiny=True, compiled=False) if c.name == "scale rows"]
try:
    op.scale_rows(given[0], given[1][:36])
    refused = ""
except KernelInputError as e:
    refused = str(e)
print(
    json.dumps(
        {
            "at": op.__file__,
            "errors": errors,
            "launched": launched,
            "refused": refused,
            "status": [asdict(s) for s in kernel_status() if s.op == "scale_rows"],
            "timings": run_bench(case.build(), "cpu", rounds=1, min_ms=0.1).timings,
        },
        default=vars,
    )
)
