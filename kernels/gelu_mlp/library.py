"""`torch.ops.vmae.linear_gelu*`: opaque ops around the kernels, with fake and autograd registrations."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vmae.kernels.dispatch import family
from vmae.kernels.gelu_mlp.configs import Tiles, mlp_tiles
from vmae.kernels.launch import on_device, runs_kernel

torch.library.define("vmae::linear_gelu", "(Tensor x, Tensor w1, Tensor b1) -> (Tensor, Tensor)")
torch.library.define("vmae::linear_dgelu", "(Tensor dy, Tensor w2, Tensor h) -> (Tensor, Tensor)")
torch.library.define(
    "vmae::mlp", "(Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2) -> (Tensor, Tensor, Tensor)"
)


def _tiles(x: Tensor) -> Tiles:
    return mlp_tiles(x.dtype, family(x.device.index if x.device.index is not None else -1))


@torch.library.impl("vmae::linear_gelu", ("cpu", "cuda"))
def _linear_gelu(x: Tensor, w1: Tensor, b1: Tensor) -> tuple[Tensor, Tensor]:
    """x [M, K], w1 [N, K], b1 [N]: return h [M, N] before and a [M, N] after the GELU."""
    if not runs_kernel(x):
        h = F.linear(x, w1, b1)
        return h, F.gelu(h)
    from vmae.kernels.gelu_mlp import triton_kernels as kernels

    (m, k), n = x.shape, w1.shape[0]
    h = torch.empty(m, n, dtype=x.dtype, device=x.device)
    a = torch.empty(m, n, dtype=x.dtype, device=x.device)
    tiles = _tiles(x)
    grid = (-(-m // tiles["BLOCK_M"]) * -(-n // tiles["BLOCK_N"]),)
    with on_device(x):
        kernels._linear_gelu_kernel[grid](
            x.contiguous(), w1.contiguous(), b1.contiguous(), h, a, m, n, k, **tiles
        )
    return h, a


@torch.library.impl("vmae::linear_dgelu", ("cpu", "cuda"))
def _linear_dgelu(dy: Tensor, w2: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """dy [M, K], w2 [K, N], h [M, N]: return dh [M, N] and its column sums, the first bias's gradient."""
    if not runs_kernel(dy):
        with torch.enable_grad():
            leaf = h.detach().requires_grad_()
            (dh,) = torch.autograd.grad(F.gelu(leaf), leaf, dy @ w2)
        return dh, dh.sum(dim=0)
    from vmae.kernels.gelu_mlp import triton_kernels as kernels

    (m, k), n = dy.shape, w2.shape[1]
    tiles = _tiles(dy)
    dh = torch.empty(m, n, dtype=h.dtype, device=h.device)
    part = torch.empty(-(-m // tiles["BLOCK_M"]), n, dtype=torch.float32, device=h.device)
    grid = (part.shape[0] * -(-n // tiles["BLOCK_N"]),)
    with on_device(dy):
        kernels._linear_dgelu_kernel[grid](dy.contiguous(), w2.contiguous(), h, dh, part, m, n, k, **tiles)
    return dh, part.sum(dim=0).to(h.dtype)


@torch.library.impl("vmae::mlp", ("cpu", "cuda"))
def _mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x [M, K]: return y [M, K], and h, a [M, N] for the backward pass. The second product is cuBLAS's."""
    h, a = torch.ops.vmae.linear_gelu(x, w1, b1)
    return F.linear(a, w2, b2), h, a


@torch.library.register_fake("vmae::linear_gelu")
def _linear_gelu_fake(x: Tensor, w1: Tensor, b1: Tensor) -> tuple[Tensor, Tensor]:
    h = x.new_empty(x.shape[0], w1.shape[0])
    return h, torch.empty_like(h)


@torch.library.register_fake("vmae::linear_dgelu")
def _linear_dgelu_fake(dy: Tensor, w2: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    return h.new_empty(h.shape), h.new_empty(h.shape[1])


@torch.library.register_fake("vmae::mlp")
def _mlp_fake(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    h = x.new_empty(x.shape[0], w1.shape[0])
    return x.new_empty(x.shape[0], w2.shape[0]), h, torch.empty_like(h)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, w1, _, w2, _ = inputs
    _, h, a = output
    ctx.mark_non_differentiable(h, a)
    ctx.save_for_backward(x, w1, w2, h, a)


def _backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor, ...]:
    x, w1, w2, h, a = ctx.saved_tensors
    dh, db1 = torch.ops.vmae.linear_dgelu(dy, w2, h)
    return dh @ w1, dh.t() @ x, db1, dy.t() @ a, dy.sum(dim=0)


torch.library.register_autograd("vmae::mlp", _backward, setup_context=_setup)
