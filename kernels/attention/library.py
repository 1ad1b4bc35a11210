"""`torch.ops.vmae.attention_*`: opaque ops around the kernels, with fake and autograd registrations."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vmae.kernels.attention.configs import AttentionPlan, Tile, attention_plan, head_block, key_tiles
from vmae.kernels.dispatch import call_name
from vmae.kernels.launch import check_offsets, family_of, multiprocessors, on_device, or_plain, runs_kernel
from vmae.kernels.sites import Dims

LOG2E = math.log2(math.e)

torch.library.define(
    "vmae::attention_fwd",
    "(Tensor qkv, float scale, Tensor? lengths, SymInt first, str tiles) -> (Tensor, Tensor)",
)
torch.library.define(
    "vmae::attention_bwd",
    "(Tensor dout, Tensor qkv, Tensor out, Tensor lse, float scale, Tensor? lengths, SymInt first, str tiles)"
    " -> Tensor",
)


def plan_for(qkv: Tensor, first: int = 0, tiles: str = "") -> AttentionPlan:
    """Return the kernels and tiles of a call: the configured ones, or with some tiles replaced by name."""
    plan = attention_plan(qkv.shape[1], qkv.shape[4], qkv.dtype, family_of(qkv), tiles)
    # Only the long kernels leave out the rows before `first`.
    return replace(plan, short_fwd=None, short_bwd=None) if first else plan


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
    keys_a, keys_b = key_tiles(n, tile.form)
    return {"BLOCK_M": tile.block_m, "KEYS_A": keys_a, "KEYS_B": keys_b} | _options(tile)


def _long(tile: Tile) -> dict[str, int]:
    return {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "PEELED": tile.peeled} | _options(tile)


def _options(tile: Tile) -> dict[str, int]:
    return {"num_warps": tile.num_warps, "num_stages": tile.num_stages}


def launch_fwd(
    qkv: Tensor, scale: float, lengths: Tensor | None, plan: AttentionPlan | None = None, first: int = 0
) -> tuple[Tensor, Tensor]:
    """Run the forward kernel of `plan` (None: the configured one) for the queries from `first` on.

    Returns out `[B, N - first, H * D]` and lse `[B, H, N]` (float32, base 2; undefined before `first`).
    """
    from vmae.kernels.attention import triton_kernels as kernels

    plan = plan_for(qkv, first) if plan is None else plan
    if qkv.stride(4) != 1:
        qkv = qkv.contiguous()
    b, n, _, h, d = qkv.shape
    out = torch.empty(b, n - first, h * d, dtype=qkv.dtype, device=qkv.device)
    lse = torch.empty(b, h, n, dtype=torch.float32, device=qkv.device)
    args = _common(qkv, lengths) | {
        "qkv_ptr": qkv,
        "out_ptr": out,
        "lse_ptr": lse,
        "scale_log2": scale * LOG2E,
    }
    with on_device(qkv):
        if plan.short_fwd is not None and not first:
            if plan.short_fwd.form == "persistent":
                programs = min(b * h, 2 * multiprocessors(qkv))
                sizes = _short(n, plan.short_fwd) | {"heads": b * h, "STAGES": plan.short_fwd.num_stages}
                kernels._short_fwd_persistent_kernel[(programs,)](**args, **sizes)
            else:
                kernels._short_fwd_kernel[(b * h,)](**args, **_short(n, plan.short_fwd))
        else:
            grid = (-(-(n - first) // plan.fwd.block_m), b * h)
            kernels._long_fwd_kernel[grid](**args, first=first, **_long(plan.fwd))
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
    first: int = 0,
) -> Tensor:
    """Run the backward kernels of `plan` (None: the configured ones); return dqkv, packed and contiguous.

    dout and out begin at the query `first`; dq is 0 before it.
    """
    from vmae.kernels.attention import triton_kernels as kernels

    plan = plan_for(qkv, first) if plan is None else plan
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
    short = None if first else plan.short_bwd
    with on_device(qkv):
        if short is not None and short.form != "two_pass":
            kernels._short_bwd_kernel[(b * h,)](**args, **_short(n, short))
            return dqkv
        args["delta_ptr"] = torch.empty_like(lse)
        out = out.contiguous()
        if short is not None:
            sizes = {"BLOCK_M": short.block_m, "BLOCK_N": short.block_n} | _options(short)
            kernels._short_bwd_two_pass_kernel[(b * h,)](**args, out_ptr=out, **sizes)
            return dqkv
        if first:
            dqkv[:, :first, 0].zero_()
        args["first"] = first
        grid = (-(-(n - first) // plan.dq.block_m), b * h)
        kernels._long_dq_kernel[grid](**args, out_ptr=out, **_long(plan.dq))
        grid = (-(-n // plan.dkdv.block_n), b * h)
        kernels._long_dkdv_kernel[grid](**args, **_long(plan.dkdv))
    return dqkv


def _scores(qkv: Tensor, scale: float, lengths: Tensor | None, first: int) -> Tensor:
    q, k, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    scores = (q[:, :, first:] * scale) @ k.transpose(-2, -1)  # [B, H, N - first, N]
    if lengths is not None:
        padded = torch.arange(qkv.shape[1], device=qkv.device) >= lengths[:, None]
        scores = scores.masked_fill(padded[:, None, None, :], float("-inf"))
    return scores


def site_dims(qkv: Tensor, first: int) -> Dims:
    """What of a call's shape decides which kernel is fastest."""
    _, n, _, h, d = qkv.shape
    return (("N", int(n)), ("H", int(h)), ("D", int(d)), ("first", int(first)))


def _name(qkv: Tensor, first: int) -> str:
    return call_name("fused_attention", qkv.dtype, site_dims(qkv, first))


@torch.library.impl("vmae::attention_fwd", ("cpu", "cuda"))
def _attention_fwd(
    qkv: Tensor, scale: float, lengths: Tensor | None, first: int, tiles: str
) -> tuple[Tensor, Tensor]:
    def plain() -> tuple[Tensor, Tensor]:
        return _plain_fwd(qkv, scale, lengths, first)

    if not runs_kernel(qkv):
        return plain()
    plan = plan_for(qkv, first, tiles)
    return or_plain(lambda: _name(qkv, first), lambda: launch_fwd(qkv, scale, lengths, plan, first), plain)


def _plain_fwd(qkv: Tensor, scale: float, lengths: Tensor | None, first: int) -> tuple[Tensor, Tensor]:
    from vmae.kernels.attention.reference import fused_attention_reference

    lse = qkv.new_zeros(qkv.shape[0], qkv.shape[3], qkv.shape[1], dtype=torch.float32)
    lse[:, :, first:] = _scores(qkv, scale, lengths, first).logsumexp(dim=-1) * LOG2E
    return fused_attention_reference(qkv, scale=scale, lengths=lengths)[:, first:].contiguous(), lse


@torch.library.impl("vmae::attention_bwd", ("cpu", "cuda"))
def _attention_bwd(
    dout: Tensor,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    lengths: Tensor | None,
    first: int,
    tiles: str,
) -> Tensor:
    def plain() -> Tensor:
        return _plain_bwd(dout, qkv, scale, lengths, first)

    if not runs_kernel(qkv):
        return plain()
    plan = plan_for(qkv, first, tiles)
    return or_plain(
        lambda: _name(qkv, first),
        lambda: launch_bwd(dout, qkv, out, lse, scale, lengths, plan=plan, first=first),
        plain,
    )


def _plain_bwd(dout: Tensor, qkv: Tensor, scale: float, lengths: Tensor | None, first: int) -> Tensor:
    b, n, _, h, d = qkv.shape
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    do = dout.reshape(b, n - first, h, d).transpose(1, 2)  # [B, H, N - first, D]
    p = _scores(qkv, scale, lengths, first).softmax(dim=-1)
    dp = do @ v.transpose(-2, -1)
    ds = p * (dp - (p * dp).sum(dim=-1, keepdim=True)) * scale
    dq = torch.cat([q.new_zeros(b, h, first, d), ds @ k], dim=2)
    parts = (dq, ds.transpose(-2, -1) @ q[:, :, first:], p.transpose(-2, -1) @ do)
    return torch.stack(parts).permute(1, 3, 0, 2, 4).contiguous()  # [B, N, 3, H, D]


@torch.library.register_fake("vmae::attention_fwd")
def _attention_fwd_fake(
    qkv: Tensor, scale: float, lengths: Tensor | None, first: int, tiles: str
) -> tuple[Tensor, Tensor]:
    b, n, _, h, d = qkv.shape
    return qkv.new_empty(b, n - first, h * d), qkv.new_empty(b, h, n, dtype=torch.float32)


@torch.library.register_fake("vmae::attention_bwd")
def _attention_bwd_fake(
    dout: Tensor,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    lengths: Tensor | None,
    first: int,
    tiles: str,
) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, scale, lengths, first, tiles = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.scale, ctx.first, ctx.tiles = scale, first, tiles
    ctx.save_for_backward(qkv, out, lse, lengths)


def _backward(ctx: Any, dout: Tensor, _dlse: Tensor | None) -> tuple[Tensor, None, None, None, None]:
    qkv, out, lse, lengths = ctx.saved_tensors
    dqkv = torch.ops.vmae.attention_bwd(dout, qkv, out, lse, ctx.scale, lengths, ctx.first, ctx.tiles)
    return dqkv, None, None, None, None


torch.library.register_autograd("vmae::attention_fwd", _backward, setup_context=_setup)
