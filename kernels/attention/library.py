"""`torch.ops.vmae.attention_*`: opaque ops around the kernels, with fake and autograd registrations."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vmae.kernels.attention.configs import AttentionPlan, Tile, attention_plan, head_block, key_tiles
from vmae.kernels.dispatch import family
from vmae.kernels.launch import check_offsets, on_device, runs_kernel

LOG2E = math.log2(math.e)

torch.library.define("vmae::attention_fwd", "(Tensor qkv, float scale, Tensor? lengths) -> (Tensor, Tensor)")
torch.library.define(
    "vmae::attention_bwd",
    "(Tensor dout, Tensor qkv, Tensor out, Tensor lse, float scale, Tensor? lengths) -> Tensor",
)


def _plan(qkv: Tensor) -> AttentionPlan:
    index = qkv.device.index if qkv.device.index is not None else -1
    return attention_plan(qkv.shape[1], qkv.shape[4], qkv.dtype, family(index))


def _common(qkv: Tensor, lengths: Tensor | None) -> dict[str, Any]:
    """Arguments that all kernels share. qkv has unit stride along the head dim."""
    check_offsets(qkv.shape[1], max(qkv.stride(1), 3 * qkv.shape[3] * qkv.shape[4]), "qkv")
    return {
        "len_ptr": qkv if lengths is None else lengths,  # any pointer where it is not read
        "stride_b": qkv.stride(0),
        "stride_n": qkv.stride(1),
        "stride_part": qkv.stride(2),
        "stride_h": qkv.stride(3),
        "H": qkv.shape[3],
        "N": qkv.shape[1],
        "D": qkv.shape[4],
        "BLOCK_D": head_block(qkv.shape[4]),
        "HAS_LENGTHS": lengths is not None,
    }


def _short(n: int, tile: Tile) -> dict[str, int]:
    keys_a, keys_b = key_tiles(n)
    return {"BLOCK_M": tile.block_m, "KEYS_A": keys_a, "KEYS_B": keys_b} | _options(tile)


def _long(tile: Tile) -> dict[str, int]:
    return {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n} | _options(tile)


def _options(tile: Tile) -> dict[str, int]:
    return {"num_warps": tile.num_warps, "num_stages": tile.num_stages}


def launch_fwd(
    qkv: Tensor, scale: float, lengths: Tensor | None, plan: AttentionPlan | None = None
) -> tuple[Tensor, Tensor]:
    """Run the forward kernel of `plan` (None: the configured one).

    Returns out `[B, N, H * D]` and lse `[B, H, N]` (float32, base 2).
    """
    from vmae.kernels.attention import triton_kernels as kernels

    plan = _plan(qkv) if plan is None else plan
    if qkv.stride(4) != 1:
        qkv = qkv.contiguous()
    b, n, _, h, d = qkv.shape
    out = torch.empty(b, n, h * d, dtype=qkv.dtype, device=qkv.device)
    lse = torch.empty(b, h, n, dtype=torch.float32, device=qkv.device)
    args = _common(qkv, lengths) | {
        "qkv_ptr": qkv,
        "out_ptr": out,
        "lse_ptr": lse,
        "scale_log2": scale * LOG2E,
    }
    with on_device(qkv):
        if plan.short_fwd is not None:
            kernels._short_fwd_kernel[(b * h,)](**args, **_short(n, plan.short_fwd))
        else:
            grid = (-(-n // plan.fwd.block_m), b * h)
            kernels._long_fwd_kernel[grid](**args, **_long(plan.fwd))
    return out, lse


def launch_bwd(
    dout: Tensor,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    lengths: Tensor | None,
    *,
    plan: AttentionPlan | None = None,
) -> Tensor:
    """Run the backward kernels of `plan` (None: the configured ones); return dqkv, packed and contiguous."""
    from vmae.kernels.attention import triton_kernels as kernels

    plan = _plan(qkv) if plan is None else plan
    if qkv.stride(4) != 1:
        qkv = qkv.contiguous()
    b, n, _, h, _ = qkv.shape
    dout = dout.contiguous()
    dqkv = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    args = _common(qkv, lengths) | {
        "qkv_ptr": qkv,
        "dout_ptr": dout,
        "dqkv_ptr": dqkv,
        "lse_ptr": lse,
        "scale": scale,
        "scale_log2": scale * LOG2E,
    }
    with on_device(qkv):
        if plan.short_bwd is not None:
            kernels._short_bwd_kernel[(b * h,)](**args, **_short(n, plan.short_bwd))
            return dqkv
        args["delta_ptr"] = torch.empty_like(lse)
        grid = (-(-n // plan.dq.block_m), b * h)
        kernels._long_dq_kernel[grid](**args, out_ptr=out.contiguous(), **_long(plan.dq))
        grid = (-(-n // plan.dkdv.block_n), b * h)
        kernels._long_dkdv_kernel[grid](**args, **_long(plan.dkdv))
    return dqkv


def _scores(qkv: Tensor, scale: float, lengths: Tensor | None) -> Tensor:
    q, k, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    scores = (q * scale) @ k.transpose(-2, -1)  # [B, H, N, N]
    if lengths is not None:
        padded = torch.arange(qkv.shape[1], device=qkv.device) >= lengths[:, None]
        scores = scores.masked_fill(padded[:, None, None, :], float("-inf"))
    return scores


@torch.library.impl("vmae::attention_fwd", ("cpu", "cuda"))
def _attention_fwd(qkv: Tensor, scale: float, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    if runs_kernel(qkv):
        return launch_fwd(qkv, scale, lengths)
    from vmae.kernels.attention.reference import fused_attention_reference

    lse = _scores(qkv, scale, lengths).logsumexp(dim=-1) * LOG2E
    return fused_attention_reference(qkv, scale=scale, lengths=lengths), lse.float()


@torch.library.impl("vmae::attention_bwd", ("cpu", "cuda"))
def _attention_bwd(
    dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, scale: float, lengths: Tensor | None
) -> Tensor:
    if runs_kernel(qkv):
        return launch_bwd(dout, qkv, out, lse, scale, lengths)
    b, n, _, h, d = qkv.shape
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    do = dout.view(b, n, h, d).transpose(1, 2)  # [B, H, N, D]
    p = _scores(qkv, scale, lengths).softmax(dim=-1)
    dp = do @ v.transpose(-2, -1)
    ds = p * (dp - (p * dp).sum(dim=-1, keepdim=True)) * scale
    parts = (ds @ k, ds.transpose(-2, -1) @ q, p.transpose(-2, -1) @ do)
    return torch.stack(parts).permute(1, 3, 0, 2, 4).contiguous()  # [B, N, 3, H, D]


@torch.library.register_fake("vmae::attention_fwd")
def _attention_fwd_fake(qkv: Tensor, scale: float, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    b, n, _, h, d = qkv.shape
    return qkv.new_empty(b, n, h * d), qkv.new_empty(b, h, n, dtype=torch.float32)


@torch.library.register_fake("vmae::attention_bwd")
def _attention_bwd_fake(
    dout: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, scale: float, lengths: Tensor | None
) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, scale, lengths = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.scale = scale
    ctx.save_for_backward(qkv, out, lse, lengths)


def _backward(ctx: Any, dout: Tensor, _dlse: Tensor | None) -> tuple[Tensor, None, None]:
    qkv, out, lse, lengths = ctx.saved_tensors
    return torch.ops.vmae.attention_bwd(dout, qkv, out, lse, ctx.scale, lengths), None, None


torch.library.register_autograd("vmae::attention_fwd", _backward, setup_context=_setup)
