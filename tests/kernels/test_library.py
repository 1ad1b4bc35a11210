"""The ops as torch sees them: opcheck, gradcheck, `torch.compile(fullgraph=True)`, no device synchronisation.

These run with Triton's interpreter off for CPU tensors where float64 is asked for (the ops then compute
their reference), so registration, fake shapes and gradients are tested apart from the kernels.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from vmae import kernels

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def _qkv(n: int = 5) -> Tensor:
    return torch.randn(2, n, 3, 2, 4, dtype=torch.float64, requires_grad=True)


def _video(dtype: torch.dtype = torch.uint8) -> Tensor:
    video = torch.randint(0, 256, (2, 4, 8, 12, 3), dtype=torch.uint8)
    return video if dtype == torch.uint8 else video.to(dtype) / 255


INDICES = torch.tensor([[0, 5, 7], [11, 2, 3]])
PLACES = torch.tensor([[0, 1, 2, 3, 4], [4, 2, 0, 1, 3]])


def _sample_calls() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    ops = torch.ops.vmae
    stats = ([0.4, 0.5, 0.6], [0.2, 0.3, 0.25])
    pred = torch.randn(2, 3, 96, dtype=torch.float64, requires_grad=True)
    form = (4, 2, "mse", "normalized", "BTHWC", "")
    tokens = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 2, 6), (1, 1, 6), (5, 6))]
    strided = torch.randn(2, 3, 2, 5, 4, dtype=torch.float64).permute(0, 3, 1, 2, 4).requires_grad_()
    layout_args = (4, 2, *stats, "BTHWC")
    gather = (INDICES, *layout_args)
    return {
        "attention": (ops.attention_fwd.default, (_qkv(), 0.5, None, 0, "")),
        "attention, strided": (ops.attention_fwd.default, (strided, 0.5, None, 0, "")),
        "attention, lengths": (ops.attention_fwd.default, (_qkv(), 0.5, torch.tensor([5, 2]), 3, "")),
        "gather uint8": (ops.gather_patches.default, (_video(), *gather, torch.float32, "")),
        "gather float": (
            ops.gather_patches.default,
            (_video(torch.float64).requires_grad_(), *gather, torch.float64, ""),
        ),
        "loss": (ops.patch_loss.default, (pred, _video(), INDICES, None, *form)),
        "loss, weights": (ops.patch_loss.default, (pred, _video(), INDICES, torch.rand(2, 3), *form)),
        "tokens": (ops.decoder_tokens.default, (*tokens, PLACES[:, :2], PLACES[:, 2:], torch.float64)),
    }


@pytest.mark.parametrize("name", list(_sample_calls()))
def test_opcheck(name: str) -> None:
    op, args = _sample_calls()[name]
    opcheck(op, args, test_utils=CHECKS)


@pytest.mark.parametrize("name", ["attention", "attention, lengths", "gather float", "loss", "tokens"])
def test_gradcheck(name: str) -> None:
    op, args = _sample_calls()[name]
    leaves = [i for i, x in enumerate(args) if isinstance(x, Tensor) and x.requires_grad]

    def call(*values: Tensor) -> Tensor:
        filled = list(args)
        for i, value in zip(leaves, values, strict=True):
            filled[i] = value
        out = op(*filled)
        return out[0] if isinstance(out, tuple) else out

    assert torch.autograd.gradcheck(call, [args[i] for i in leaves], fast_mode=True)


def step(qkv: Tensor, video: Tensor, pred: Tensor, tokens: tuple[Tensor, ...]) -> Tensor:
    """One scalar through every public op, as a model's step has them."""
    patches = kernels.gather_patches(video, INDICES, patch_size=4, tubelet_size=2, layout="BTHWC")
    attended = kernels.fused_attention(qkv)
    assembled = kernels.assemble_decoder_tokens(*tokens, PLACES[:, :2], PLACES[:, 2:])
    loss = kernels.masked_patch_loss(
        pred + patches, video, INDICES, patch_size=4, tubelet_size=2, layout="BTHWC"
    )
    return loss + attended.square().mean() + assembled.square().mean()


@pytest.mark.parametrize("mode", ["torch", "triton"])
def test_compiles_without_a_graph_break(mode: str, device: str) -> None:
    torch.manual_seed(0)
    torch.compiler.reset()
    qkv = torch.randn(2, 5, 3, 2, 4, requires_grad=True)
    pred = torch.randn(2, 3, 96, requires_grad=True)
    tokens = tuple(torch.randn(s, requires_grad=True) for s in ((2, 2, 6), (1, 1, 6), (5, 6)))
    leaves = (qkv, pred, *tokens)
    with kernels.use_kernels(mode):
        eager = step(qkv, _video(), pred, tokens)
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        torch.manual_seed(0)
        video = _video()
        eager = step(qkv, video, pred, tokens)
        value = compiled(qkv, video, pred, tokens)
        torch.testing.assert_close(value, eager)
        for a, b in zip(torch.autograd.grad(value, leaves), torch.autograd.grad(eager, leaves), strict=True):
            torch.testing.assert_close(a, b)
    with kernels.use_kernels("torch" if mode == "triton" else "triton"):
        torch.testing.assert_close(compiled(qkv, video, pred, tokens), eager)  # the mode is guarded


def test_bad_shapes_are_refused_before_a_launch(device: str) -> None:
    with kernels.use_kernels("triton"), pytest.raises(kernels.KernelInputError, match="expected qkv"):
        kernels.fused_attention(torch.zeros(1, 2, 4, 1, 16))
    with kernels.use_kernels("triton"), pytest.raises(kernels.KernelInputError, match="K >= 1"):
        kernels.gather_patches(
            _video(), torch.zeros(2, 0, dtype=torch.int64), patch_size=4, tubelet_size=2, layout="BTHWC"
        )
