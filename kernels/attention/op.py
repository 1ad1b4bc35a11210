"""`fused_attention`: checks, then the path that dispatch chooses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vmae.kernels.attention import library  # noqa: F401 (registers the ops)
from vmae.kernels.attention.configs import MAX_HEAD_DIM
from vmae.kernels.attention.reference import fused_attention_reference
from vmae.kernels.checks import FLOAT_DTYPES, describe, require, values_are_checked
from vmae.kernels.dispatch import use_triton

# On a CPU in bfloat16 the written-out product beats SDPA up to this length (measured on 2 cores:
# N=392 8 ms forward and 11 ms backward against 11 and 27); in float32 SDPA wins at every decoder length.
CPU_BF16_MATMUL_MAX_TOKENS = 512


def fused_attention(qkv: Tensor, *, scale: float | None = None, lengths: Tensor | None = None) -> Tensor:
    """Return multi-head self-attention over packed projections: `[B, N, 3, H, Dh] -> [B, N, H * Dh]`.

    qkv: float32, bfloat16, float16 or float64, `qkv[:, :, 0]` the queries, then keys, then values; any
    strides (the view `linear(x).view(B, N, 3, H, Dh)` needs no copy). Biases belong into that Linear.
    scale: multiplies q k^T; None means Dh**-0.5. lengths: int `[B]`, values in [1, N]: keys at positions
    >= lengths[b] are not attended to (queries there still give rows, which the caller ignores); None = all N.
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
    if use_triton("fused_attention", qkv, unsupported=_unsupported(qkv), size=n):
        out, _lse = torch.ops.vmae.attention_fwd(
            qkv, qkv.shape[4] ** -0.5 if scale is None else scale, lengths
        )
        return out
    return _attention_torch(qkv, scale, lengths)


def _unsupported(qkv: Tensor) -> str | None:
    """Why the kernels cannot take this call, or None."""
    if qkv.dtype == torch.float64:
        return "float64 is computed by the reference only"
    if qkv.shape[4] > MAX_HEAD_DIM:
        return f"head dim {qkv.shape[4]} is above {MAX_HEAD_DIM}"
    return None


def _attention_torch(qkv: Tensor, scale: float | None, lengths: Tensor | None) -> Tensor:
    b, n, _, h, dh = qkv.shape
    short_bf16 = qkv.dtype == torch.bfloat16 and n <= CPU_BF16_MATMUL_MAX_TOKENS
    if qkv.device.type == "cpu" and short_bf16:
        return fused_attention_reference(qkv, scale=scale, lengths=lengths)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, H, N, Dh] each
    keep = None
    if lengths is not None:
        keep = (torch.arange(n, device=qkv.device) < lengths[:, None])[:, None, None, :]  # [B, 1, 1, N]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=keep, scale=scale)
    return out.transpose(1, 2).reshape(b, n, h * dh)
