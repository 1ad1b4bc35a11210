"""`torch.ops.vmae.decoder_tokens*`: opaque ops around the kernels, with fake and autograd registrations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vmae.kernels.decoder_tokens.configs import ROWS, SPLITS, width_block
from vmae.kernels.decoder_tokens.reference import assemble_decoder_tokens_reference
from vmae.kernels.dispatch import call_name
from vmae.kernels.launch import on_device, or_plain, runs_kernel
from vmae.kernels.sites import Dims

torch.library.define(
    "vmae::decoder_tokens",
    "(Tensor visible, Tensor mask_token, Tensor pos, Tensor visible_indices, Tensor masked_indices, "
    "ScalarType dtype) -> Tensor",
)
torch.library.define(
    "vmae::decoder_tokens_bwd", "(Tensor dout, SymInt num_visible, ScalarType dtype) -> (Tensor, Tensor)"
)


def site_dims(visible: Tensor, masked_indices: Tensor) -> Dims:
    """What of a call's shape decides which way is fastest."""
    _, v, d = visible.shape
    return (("V", int(v)), ("M", int(masked_indices.shape[1])), ("D", int(d)))


@torch.library.impl("vmae::decoder_tokens", ("cpu", "cuda"))
def _tokens(*call: Any) -> Tensor:
    *given, dtype = call
    visible, mask_token, pos, _, masked_indices = given

    def plain() -> Tensor:
        return assemble_decoder_tokens_reference(*given, dtype=dtype)

    if not all(runs_kernel(x) for x in (visible, mask_token, pos)) or dtype == torch.float64:
        return plain()

    def name() -> str:
        return call_name("assemble_decoder_tokens", visible.dtype, site_dims(visible, masked_indices))

    return or_plain(name, lambda: _launch(*call), plain)


def _launch(
    visible: Tensor,
    mask_token: Tensor,
    pos: Tensor,
    visible_indices: Tensor,
    masked_indices: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    from vmae.kernels.decoder_tokens import triton_kernels as kernels

    b, v, d = visible.shape
    m = masked_indices.shape[1]
    out = torch.empty(b, v + m, d, dtype=dtype, device=visible.device)
    block = width_block(d)
    with on_device(visible):
        kernels._assemble_fwd_kernel[(-(-(v + m) // ROWS), -(-d // block), b)](
            visible.contiguous(),
            mask_token.contiguous(),
            pos.contiguous(),
            visible_indices.contiguous(),
            masked_indices.contiguous(),
            out,
            v,
            m,
            D=d,
            BLOCK_R=ROWS,
            BLOCK_D=block,
            num_warps=4,
        )
    return out


@torch.library.impl("vmae::decoder_tokens_bwd", ("cpu", "cuda"))
def _tokens_bwd(dout: Tensor, num_visible: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return (dvisible of `dtype`, the mask token's gradient `[D]` in float32 or float64)."""

    def plain() -> tuple[Tensor, Tensor]:
        work = torch.float64 if dout.dtype == torch.float64 else torch.float32
        dtoken = dout[:, num_visible:].sum(dim=(0, 1), dtype=work)
        return dout[:, :num_visible].to(dtype, copy=True).contiguous(), dtoken

    def name() -> str:
        dims = (("V", num_visible), ("M", dout.shape[1] - num_visible), ("D", dout.shape[2]))
        return call_name("assemble_decoder_tokens", dtype, dims)

    if not runs_kernel(dout) or dtype == torch.float64:
        return plain()
    return or_plain(name, lambda: _launch_bwd(dout, num_visible, dtype), plain)


def _launch_bwd(dout: Tensor, num_visible: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    b, n, d = dout.shape
    from vmae.kernels.decoder_tokens import triton_kernels as kernels

    dvisible = torch.empty(b, num_visible, d, dtype=dtype, device=dout.device)
    part = torch.empty(b * SPLITS, d, dtype=torch.float32, device=dout.device)
    block = width_block(d)
    with on_device(dout):
        kernels._assemble_bwd_kernel[(SPLITS, -(-d // block), b)](
            dout.contiguous(),
            dvisible,
            part,
            num_visible,
            n - num_visible,
            D=d,
            BLOCK_R=ROWS,
            BLOCK_D=block,
            SPLITS=SPLITS,
            num_warps=4,
        )
    return dvisible, part.sum(dim=0)


@torch.library.register_fake("vmae::decoder_tokens")
def _tokens_fake(visible: Tensor, *rest: Any) -> Tensor:
    *_, masked_indices, dtype = rest
    b, v, d = visible.shape
    return visible.new_empty(b, v + masked_indices.shape[1], d, dtype=dtype)


@torch.library.register_fake("vmae::decoder_tokens_bwd")
def _tokens_bwd_fake(dout: Tensor, num_visible: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    b, _, d = dout.shape
    work = torch.float64 if dout.dtype == torch.float64 else torch.float32
    return dout.new_empty(b, num_visible, d, dtype=dtype), dout.new_empty(d, dtype=work)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    visible, mask_token, pos, visible_indices, masked_indices, _ = inputs
    ctx.num_visible, ctx.dtype = visible.shape[1], visible.dtype
    ctx.token_shape, ctx.token_dtype = mask_token.shape, mask_token.dtype
    ctx.pos_shape, ctx.pos_dtype = pos.shape, pos.dtype
    ctx.save_for_backward(visible_indices, masked_indices)


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    dvisible, dtoken = torch.ops.vmae.decoder_tokens_bwd(dout, ctx.num_visible, ctx.dtype)
    dpos = None
    if ctx.needs_input_grad[2]:  # a learned position embedding; the published models' is fixed
        places = torch.cat(ctx.saved_tensors, dim=1).flatten()  # [B * (N_vis + N_mask)]
        dpos = torch.zeros(ctx.pos_shape, dtype=dtoken.dtype, device=dout.device)
        dpos = dpos.index_add(0, places, dout.flatten(0, 1).to(dtoken.dtype)).to(ctx.pos_dtype)
    return dvisible, dtoken.to(ctx.token_dtype).view(ctx.token_shape), dpos, None, None, None


torch.library.register_autograd("vmae::decoder_tokens", _backward, setup_context=_setup)
