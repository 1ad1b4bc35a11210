"""The CPU's own paths for attention, loss and linear layers, against the plain references."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vmae import kernels
from vmae.kernels.attention.cpu import WrittenOutAttention
from vmae.kernels.attention.reference import fused_attention_reference
from vmae.kernels.dispatch import forced
from vmae.kernels.patch_loss.reference import masked_patch_loss_reference

SIZE = {"patch_size": 4, "tubelet_size": 2}


def seeded(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=dtype)


@pytest.mark.parametrize("first_query", [0, 1, 6])
@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_written_out_attention(monkeypatch: pytest.MonkeyPatch, first_query: int, chunk: int) -> None:
    monkeypatch.setattr("vmae.kernels.attention.cpu.CHUNK_SCORES", chunk)
    qkv = seeded(3, 7, 3, 2, 5).requires_grad_()
    weight = seeded(3, 7 - first_query, 10)
    got = WrittenOutAttention.apply(qkv, 5**-0.5, first_query)
    wanted = fused_attention_reference(qkv)[:, first_query:]
    torch.testing.assert_close(got, wanted)
    (ours,) = torch.autograd.grad((got * weight).sum(), qkv)
    (theirs,) = torch.autograd.grad((wanted * weight).sum(), qkv)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("first_query", [0, 3])
def test_attention_from_a_query_on(dtype: torch.dtype, first_query: int) -> None:
    qkv = seeded(2, 9, 3, 2, 8).to(dtype).requires_grad_()
    got = kernels.fused_attention(qkv, first_query=first_query)
    wanted = fused_attention_reference(qkv.double())[:, first_query:]
    tolerance = 0.02 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=tolerance)
    (ours,) = torch.autograd.grad(got.square().sum(), qkv)
    (theirs,) = torch.autograd.grad(wanted.square().sum(), qkv)
    torch.testing.assert_close(ours, theirs, rtol=5 * tolerance, atol=5 * tolerance)
    with pytest.raises(kernels.KernelInputError, match=r"expected first_query in \[0, 9\); got 9"):
        kernels.fused_attention(qkv, first_query=9)


class Written(TorchDispatchMode):
    """The operators that write at least so many values."""

    def __init__(self, values: int) -> None:
        super().__init__()
        self.values, self.found = values, list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        storages = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
        for x in out if isinstance(out, tuple | list) else [out]:
            large = isinstance(x, Tensor) and x.numel() >= self.values
            name = func.overloadpacket.__name__
            if large and (x.untyped_storage().data_ptr() not in storages or name.endswith("_")):
                self.found.append(name)
        return out


@pytest.mark.parametrize("way", ["torch", "sdpa math"])
@pytest.mark.parametrize("first_query", [0, 3])
def test_the_gradient_of_qkv_is_packed_in_one_pass(way: str, first_query: int) -> None:
    """Torch's path: dq, dk and dv are stacked once, as the Linear before reads them; no more is written."""
    b, n, h, d = 2, 9, 2, 8
    weight = seeded(3 * h * d, h * d, dtype=torch.float32).requires_grad_()
    x = seeded(b, n, h * d, dtype=torch.float32)
    qkv = F.linear(x, weight).view(b, n, 3, h, d)
    grads: list[Tensor] = []
    qkv.register_hook(grads.append)
    with forced(way):
        out = kernels.fused_attention(qkv, first_query=first_query)
    with Written(qkv.numel()) as written:
        out.backward(torch.ones_like(out))
    assert written.found == ["stack"], written.found
    assert grads[0].is_contiguous()


@pytest.mark.parametrize("target", ["normalized", "raw"])
@pytest.mark.parametrize("layout", ["BCTHW", "BTHWC"])
@pytest.mark.parametrize("kind", ["uint8", "float32", "float64"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("block", [1, 1 << 18])
def test_squared_error(
    monkeypatch: pytest.MonkeyPatch, target: str, layout: str, kind: str, weighted: bool, block: int
) -> None:
    monkeypatch.setattr("vmae.kernels.patch_loss.cpu._BLOCK_VALUES", block)
    shape = (2, 3, 4, 8, 12) if layout == "BCTHW" else (2, 4, 8, 12, 3)
    bytes_ = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    video = bytes_ if kind == "uint8" else (bytes_.double() / 255).to(getattr(torch, kind))
    before = video.clone()
    indices = torch.tensor([[0, 3, 7, 11], [1, 2, 5, 8]])
    pred = seeded(2, 4, 96).requires_grad_()
    weights = torch.tensor([[1.0, 0, 0.5, 1], [0, 1, 1, 2]]) if weighted else None
    form = {"target": target, "layout": layout, "weights": weights} | SIZE
    got = kernels.masked_patch_loss(pred, video, indices, **form)
    wanted = masked_patch_loss_reference(pred, video.double() if kind != "uint8" else video, indices, **form)
    tolerance = 1e-5 if kind == "float32" else 1e-10
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)
    (first,) = torch.autograd.grad(3 * got, pred, retain_graph=True)
    (second,) = torch.autograd.grad(got, pred)
    (theirs,) = torch.autograd.grad(wanted, pred)
    torch.testing.assert_close(first, 3 * theirs, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(second, theirs, rtol=tolerance, atol=tolerance)
    assert torch.equal(video, before)


def test_squared_error_gradcheck() -> None:
    video = torch.rand(1, 2, 2, 4, 8, dtype=torch.float64)
    pred = seeded(1, 2, 64).requires_grad_()
    indices = torch.tensor([[0, 1]])
    assert torch.autograd.gradcheck(lambda p: kernels.masked_patch_loss(p, video, indices, **SIZE), pred)


def test_squared_error_keeps_low_contrast_exact() -> None:
    # Nearly flat bright patches: a variance from sums of squares would lose every digit.
    video = torch.full((1, 3, 2, 4, 4), 250, dtype=torch.uint8)
    video[..., 0] = 251
    pred = torch.zeros(1, 1, 96)
    index = torch.zeros(1, 1, dtype=torch.int64)
    exact = kernels.masked_patch_loss(pred.double(), video, index, **SIZE)
    got = kernels.masked_patch_loss(pred, video, index, **SIZE)
    torch.testing.assert_close(got.double(), exact, rtol=1e-6, atol=0)


def test_a_patch_of_one_pixel_has_the_target_0() -> None:
    video = torch.rand(1, 3, 1, 2, 2)
    pred = torch.ones(1, 4, 3)
    got = kernels.masked_patch_loss(pred, video, torch.arange(4)[None], patch_size=1, tubelet_size=1)
    assert got.item() == 1


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7), (1, 1, 7)])
def test_linear(shape: tuple[int, ...], bias: bool) -> None:
    x = seeded(*shape).float().requires_grad_()
    w = seeded(4, 7).float().requires_grad_()
    b = seeded(4).float().requires_grad_() if bias else None
    inputs = [t for t in (x, w, b) if t is not None]
    got, wanted = kernels.linear(x, w, b), torch.nn.functional.linear(x, w, b)
    torch.testing.assert_close(got, wanted)
    weight = seeded(*shape[:-1], 4).float()
    ours = torch.autograd.grad((got * weight).sum(), inputs)
    theirs = torch.autograd.grad((wanted * weight).sum(), inputs)
    torch.testing.assert_close(ours, theirs)


def test_linear_of_a_strided_view_and_a_frozen_weight() -> None:
    x = seeded(3, 6, 8).float()[:, 2:].transpose(0, 1).requires_grad_()
    w = seeded(4, 8).float()
    got = kernels.linear(x, w)
    torch.testing.assert_close(got, torch.nn.functional.linear(x, w))
    (dx,) = torch.autograd.grad(got.sum(), x)
    torch.testing.assert_close(dx, w.sum(0).expand_as(x))


def test_linear_under_autocast_is_torchs() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert kernels.linear(torch.ones(2, 3), torch.ones(4, 3)).dtype == torch.bfloat16
