"""`add_layer_norm`: checks, then the path that dispatch chooses."""

from __future__ import annotations

import torch
from torch import Tensor

from vmae.kernels.add_norm import library  # noqa: F401 (registers the ops)
from vmae.kernels.add_norm.configs import MAX_WIDTH
from vmae.kernels.add_norm.reference import add_layer_norm_reference
from vmae.kernels.checks import FLOAT_DTYPES, describe, require
from vmae.kernels.dispatch import use_triton


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, *, eps: float, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Return `(layer_norm(x + residual), x + residual)`: a residual add and the next norm in one.

    x: float `[..., D]`, a branch's output. residual: float of the same shape, the stream, which may be
    float32 while x is bfloat16. weight, bias: `[D]`. eps: added to the variance. The first result has `dtype`
    (None: x's), the second residual's dtype; arithmetic is float32 (float64 if x or residual is).
    Gradients flow to x, residual, weight and bias.

    A candidate: no GPU has shown yet that it beats torch.compile's fusion, so the model does not call it.
    Raises KernelInputError (a ValueError) for a wrong shape, dtype or device.
    """
    require(isinstance(x, Tensor) and x.ndim >= 1 and x.numel() > 0, "x [..., D], not empty", describe(x))
    d = x.shape[-1]
    for name, v in (("residual", residual), ("weight", weight), ("bias", bias)):
        require(isinstance(v, Tensor), f"{name} a tensor", describe(v))
    require(residual.shape == x.shape, f"residual {list(x.shape)}", describe(residual))
    for name, v in (("weight", weight), ("bias", bias)):
        require(v.shape == (d,), f"{name} [{d}]", describe(v))
    for name, v in (("x", x), ("residual", residual), ("weight", weight), ("bias", bias)):
        require(v.dtype in FLOAT_DTYPES, f"{name} of a float dtype", describe(v))
        require(v.device == x.device, f"{name} on {x.device}", describe(v))
    require(dtype is None or dtype in FLOAT_DTYPES, "dtype None or a float dtype", dtype)
    unsupported = None
    if torch.float64 in (x.dtype, residual.dtype, weight.dtype, bias.dtype, dtype):
        unsupported = "float64 is computed by the reference only"
    elif d > MAX_WIDTH:
        unsupported = f"a width of {d} is above {MAX_WIDTH}"
    if use_triton("add_layer_norm", x, unsupported=unsupported, size=d):
        y, total = torch.ops.vmae.add_norm(x, residual, weight, bias, eps, dtype or x.dtype)
        return y, total
    return add_layer_norm_reference(x, residual, weight, bias, eps=eps, dtype=dtype)
