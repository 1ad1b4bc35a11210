"""`mlp`: checks, then the path that dispatch chooses."""

from __future__ import annotations

import torch
from torch import Tensor

from vmae.kernels.checks import FLOAT_DTYPES, describe, require
from vmae.kernels.dispatch import use_triton
from vmae.kernels.gelu_mlp import library  # noqa: F401 (registers the ops)
from vmae.kernels.gelu_mlp.reference import mlp_reference


def mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """Return `linear(gelu(linear(x, w1, b1)), w2, b2)` with the exact GELU: `[..., D]` to `[..., D_out]`.

    x: float `[..., D]`; w1 `[F, D]`, b1 `[F]`, w2 `[D_out, F]`, b2 `[D_out]`, all of x's dtype and device.
    Gradients flow to all five.

    A candidate: no GPU has shown yet that it beats torch.compile's fusion around cuBLAS, so the model does
    not call it. Raises KernelInputError (a ValueError) for a wrong shape, dtype or device.
    """
    require(isinstance(x, Tensor) and x.ndim >= 1 and x.numel() > 0, "x [..., D], not empty", describe(x))
    require(x.dtype in FLOAT_DTYPES, "x of a float dtype", describe(x))
    for name, v in (("w1", w1), ("b1", b1), ("w2", w2), ("b2", b2)):
        require(isinstance(v, Tensor), f"{name} a tensor", describe(v))
    require(w1.ndim == 2 and w1.shape[1] == x.shape[-1], f"w1 [F, {x.shape[-1]}]", describe(w1))
    require(b1.shape == w1.shape[:1], f"b1 [{w1.shape[0]}]", describe(b1))
    require(w2.ndim == 2 and w2.shape[1] == w1.shape[0], f"w2 [D_out, {w1.shape[0]}]", describe(w2))
    require(b2.shape == w2.shape[:1], f"b2 [{w2.shape[0]}]", describe(b2))
    for name, v in (("w1", w1), ("b1", b1), ("w2", w2), ("b2", b2)):
        require(v.dtype == x.dtype and v.device == x.device, f"{name} as x: {describe(x)}", describe(v))
    unsupported = "float64 is computed by the reference only" if x.dtype == torch.float64 else None
    if use_triton("mlp", x, unsupported=unsupported, size=x.shape[-1]):
        y, _h, _a = torch.ops.vmae.mlp(x.reshape(-1, x.shape[-1]), w1, b1, w2, b2)
        return y.view(*x.shape[:-1], w2.shape[0])
    return mlp_reference(x, w1, b1, w2, b2)
