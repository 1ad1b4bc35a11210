"""`fused_attention`: checks, then the path that dispatch chooses."""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vmae.kernels.attention import installed
from vmae.kernels.attention.configs import MAX_HEAD_DIM
from vmae.kernels.attention.cpu import WrittenOutAttention
from vmae.kernels.attention.library import site_dims
from vmae.kernels.checks import FLOAT_DTYPES, describe, require, values_are_checked
from vmae.kernels.dispatch import choose

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
"""SDPA's backends by the names that a choice has ("sdpa flash")."""


def fused_attention(
    qkv: Tensor, *, scale: float | None = None, lengths: Tensor | None = None, first_query: int = 0
) -> Tensor:
    """Return multi-head self-attention over packed projections: `[B, N, 3, H, Dh] -> [B, N, H * Dh]`.

    qkv: float32, bfloat16, float16 or float64, `qkv[:, :, 0]` the queries, then keys, then values; any
    strides (the view `linear(x).view(B, N, 3, H, Dh)` needs no copy). Biases belong into that Linear.
    scale: multiplies q k^T; None means Dh**-0.5. lengths: int `[B]`, values in [1, N]: keys at positions
    >= lengths[b] are not attended to (queries there still give rows, which the caller ignores); None = all N.
    first_query: in [0, N); only the rows of queries from there on are returned, [B, N - first_query, H * Dh]
    (a decoder's last block needs no others); all keys are attended to.
    Softmax statistics are float32 in half precision. The gradient with respect to qkv comes packed.

    Raises KernelInputError (a ValueError) for a wrong shape, dtype or device, an empty axis, and, on the CPU
    or with VMAE_KERNELS_DEBUG=1, a length outside [1, N]; unchecked (GPU, torch.compile) a length of 0
    gives undefined rows for that clip alone.

    Source: `Attention` of the official `modeling_finetune.py`, without attention dropout.
    """
    require(
        isinstance(qkv, Tensor) and qkv.ndim == 5 and qkv.shape[2] == 3, "qkv [B, N, 3, H, Dh]", describe(qkv)
    )
    require(qkv.dtype in FLOAT_DTYPES, "qkv float32, bfloat16, float16 or float64", describe(qkv))
    require(qkv.numel() > 0, "qkv without an empty axis", describe(qkv))
    b, n = qkv.shape[:2]
    if lengths is not None:
        require(
            isinstance(lengths, Tensor)
            and lengths.shape == (b,)
            and lengths.dtype in (torch.int32, torch.int64),
            f"lengths int32 or int64 [{b}]",
            describe(lengths),
        )
        require(lengths.device == qkv.device, f"lengths on {qkv.device}", describe(lengths))
        if values_are_checked(lengths):
            low, high = torch.aminmax(lengths)
            require(int(low) >= 1 and int(high) <= n, f"lengths in [1, {n}]", f"{int(low)} to {int(high)}")
    whole = isinstance(first_query, (int, torch.SymInt))
    require(whole and 0 <= first_query < n, f"first_query in [0, {n})", first_query)
    is_number = scale is None or isinstance(scale, (int, float, torch.SymFloat))
    require(is_number and scale == scale, "scale None or a number", repr(scale))  # noqa: PLR0124 (not NaN)
    way = choose(
        "fused_attention",
        qkv,
        unsupported=_unsupported(qkv, scale),
        dims=site_dims(qkv, first_query),
        layout="packed" if lengths is None else "packed+lengths",
        dtype=qkv.dtype,
    )
    if way.startswith("triton"):
        used = qkv.shape[4] ** -0.5 if scale is None else scale
        out, _lse = torch.ops.vmae.attention_fwd(qkv, used, lengths, first_query, way[7:])
        return out
    if way.startswith("flash_attn"):
        return installed.attend(way, qkv, qkv.shape[4] ** -0.5 if scale is None else scale)
    return _attention_torch(qkv, scale, lengths, first_query, way[5:])


def _unsupported(qkv: Tensor, scale: float | None) -> str | None:
    """Why the kernels cannot take this call, or None."""
    if qkv.dtype == torch.float64:
        return "float64 is computed by the reference only"
    if qkv.shape[4] > MAX_HEAD_DIM:
        return f"head dim {qkv.shape[4]} is above {MAX_HEAD_DIM}"
    if scale is not None and not scale > 0:
        return f"the kernels take the largest product for the largest score, but the scale is {scale}"
    return None


def _attention_torch(
    qkv: Tensor, scale: float | None, lengths: Tensor | None, first_query: int, backend: str = ""
) -> Tensor:
    """SDPA as torch chooses, or with the one `backend` of BACKENDS."""
    n, dh = qkv.shape[1], qkv.shape[4]
    # Measured on 2 cores, forward and backward, one layer: in bfloat16 the written-out products take a third
    # (N = 160) to a half (N = 1568) of SDPA's time; in float32 SDPA wins at every length.
    if qkv.device.type == "cpu" and qkv.dtype == torch.bfloat16 and lengths is None:
        return WrittenOutAttention.apply(qkv, dh**-0.5 if scale is None else scale, first_query)
    # Unbound before it is turned: autograd then stacks dq, dk, dv into one packed tensor, in one pass.
    q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))  # [B, H, N, Dh] each
    keep = None
    if lengths is not None:
        keep = (torch.arange(n, device=qkv.device) < lengths[:, None])[:, None, None, :]  # [B, 1, 1, N]
    with sdpa_kernel([BACKENDS[backend]]) if backend else contextlib.nullcontext():
        out = F.scaled_dot_product_attention(q[:, :, first_query:], k, v, attn_mask=keep, scale=scale)
    return out.transpose(1, 2).flatten(2)
