"""The torch path of every op against its written-out reference, in float64 and in several layouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vmae import kernels
from vmae.kernels import reference


def _clip(shape: tuple[int, ...], kind: str, dtype: torch.dtype) -> tuple[Tensor, str]:
    b, c, t, h, w = shape
    gen = torch.Generator().manual_seed(b * 1000 + h)
    video = torch.randint(0, 256, (b, t, h, w, c), generator=gen, dtype=torch.uint8)
    if dtype != torch.uint8:
        video = video.to(dtype) / 255
    if kind == "BTHWC":
        return video, "BTHWC"
    if kind == "BCTHW":
        return video.permute(0, 4, 1, 2, 3).contiguous(), "BCTHW"
    if kind == "permuted":
        return video.permute(0, 4, 1, 2, 3), "BCTHW"
    wide = torch.cat([video, video.flip(1)], dim=1)  # every second frame of a longer clip
    wide[:, ::2] = video
    return wide[:, ::2], "BTHWC"


def _some(b: int, n: int, k: int) -> Tensor:
    gen = torch.Generator().manual_seed(n + k)
    return torch.rand(b, n, generator=gen).argsort(dim=1)[:, :k].sort(dim=1).values


@pytest.mark.parametrize("kind", ["BTHWC", "BCTHW", "permuted", "strided"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize(("channels", "patch", "tubelet"), [(3, 4, 2), (1, 5, 1), (2, 3, 3)])
def test_gather_equals_patchify_then_index(
    kind: str, dtype: torch.dtype, channels: int, patch: int, tubelet: int
) -> None:
    video, layout = _clip((2, channels, 2 * tubelet, 2 * patch, 3 * patch), kind, dtype)
    args = {"patch_size": patch, "tubelet_size": tubelet, "layout": layout, "dtype": torch.float64}
    args |= {"mean": (0.4, 0.5, 0.6)[:channels], "std": (0.2, 0.3, 0.25)[:channels]}
    for k in (1, 7, 12):
        indices = _some(2, 12, k)
        got = kernels.gather_patches(video, indices, **args)  # type: ignore[arg-type]
        torch.testing.assert_close(got, reference.gather_patches(video, indices, **args))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("n", [1, 17, 40])
def test_attention_equals_the_written_out_product(dtype: torch.dtype, n: int) -> None:
    torch.manual_seed(n)
    qkv = torch.randn(2, n, 3, 3, 16, dtype=dtype, requires_grad=True)
    exact = qkv.detach().double().requires_grad_()
    lengths = torch.tensor([n, max(1, n // 2)])
    tol = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float64: 1e-12}[dtype]
    for kwargs in ({}, {"scale": 0.3}, {"lengths": lengths}):
        out = kernels.fused_attention(qkv, **kwargs)  # type: ignore[arg-type]
        ref = reference.fused_attention(exact, **kwargs)  # type: ignore[arg-type]
        torch.testing.assert_close(out.double(), ref, atol=tol, rtol=tol)
        grad = torch.randn_like(ref)
        (dqkv,) = torch.autograd.grad(out, qkv, grad.to(dtype))
        (dref,) = torch.autograd.grad(ref, exact, grad.to(dtype).double())
        torch.testing.assert_close(dqkv.double(), dref, atol=3 * tol, rtol=3 * tol)


@pytest.mark.parametrize("loss", ["mse", "l1", "smooth_l1"])
@pytest.mark.parametrize("target", ["normalized", "raw"])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_gradient_equal_materialised_labels(loss: str, target: str, weighted: bool) -> None:
    video, layout = _clip((2, 3, 4, 8, 12), "permuted", torch.uint8)
    indices = _some(2, 12, 5)
    weights = (torch.arange(10).view(2, 5) % 3 > 0) if weighted else None
    pred = torch.randn(2, 5, 2 * 16 * 3, dtype=torch.float64, requires_grad=True)
    args = {
        "patch_size": 4,
        "tubelet_size": 2,
        "weights": weights,
        "loss": loss,
        "target": target,
        "layout": layout,
    }
    got = kernels.masked_patch_loss(pred, video, indices, **args)  # type: ignore[arg-type]
    ref = reference.masked_patch_loss(pred, video, indices, **args)  # type: ignore[arg-type]
    torch.testing.assert_close(got, ref, atol=1e-12, rtol=1e-12)
    grads = [torch.autograd.grad(x, pred)[0] for x in (got, ref)]
    torch.testing.assert_close(*grads, atol=1e-12, rtol=1e-12)


def test_decoder_tokens_hold_each_position_once() -> None:
    visible = torch.zeros(2, 4, 8)
    pos = torch.arange(12.0)[:, None].expand(12, 8)
    order = torch.stack([torch.randperm(12) for _ in range(2)])
    out = kernels.assemble_decoder_tokens(
        visible, torch.full((1, 1, 8), 100.0), pos, order[:, :4], order[:, 4:]
    )
    assert torch.equal(out[:, :4, 0], order[:, :4].float())
    assert torch.equal(out[:, 4:, 0], order[:, 4:].float() + 100)


BAD_CALLS = {
    "K = 0": ({"indices": torch.zeros(2, 0, dtype=torch.int64)}, r"K >= 1.*\[2, 0\]"),
    "index too large": ({"indices": torch.full((2, 3), 12)}, r"\[0, 12\); got values from 12 to 12"),
    "negative index": ({"indices": torch.full((2, 3), -1)}, r"got values from -1 to -1"),
    "int32 indices": ({"indices": torch.zeros(2, 3, dtype=torch.int32)}, r"int64.*int32"),
    "batch": ({"indices": torch.zeros(3, 3, dtype=torch.int64)}, r"batch of 2.*\[3, 3\]"),
    "4 axes": ({"video": torch.zeros(2, 3, 8, 8)}, r"5 axes.*\[2, 3, 8, 8\]"),
    "int video": ({"video": torch.zeros(2, 3, 4, 8, 12, dtype=torch.int32)}, r"dtype uint8.*int32"),
    "odd size": ({"video": torch.zeros(2, 3, 4, 9, 12)}, r"patch_size=4; got .*height=9"),
    "layout": ({"layout": "TCHW"}, r"BCTHW, BTHWC; got 'TCHW'"),
    "mean without std": ({"mean": (0.5, 0.5, 0.5)}, r"both given or both None"),
    "two means": ({"mean": (0.5, 0.5), "std": (1.0, 1.0)}, r"one number per channel \(3\)"),
    "dtype": ({"dtype": torch.int32}, r"dtype float32.*int32"),
    "half a patch": ({"patch_size": 4.5}, r"whole numbers.*got patch_size=4.5"),
    "mean that is no number": ({"mean": (float("nan"),) * 3, "std": (1.0,) * 3}, r"finite means; got \(nan"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_input_says_expected_and_got(case: str) -> None:
    changes, message = BAD_CALLS[case]
    call = {
        "video": torch.zeros(2, 3, 4, 8, 12),
        "indices": torch.zeros(2, 3, dtype=torch.int64),
        "patch_size": 4,
        "tubelet_size": 2,
    }
    with pytest.raises(kernels.KernelInputError, match=message):
        kernels.gather_patches(**(call | changes))  # type: ignore[arg-type]


def test_bad_input_of_the_other_ops_too() -> None:
    qkv, x = torch.zeros(2, 5, 3, 2, 16), torch.zeros(2, 8)
    clip, index = torch.zeros(2, 3, 4, 8, 12), torch.zeros(2, 3, dtype=torch.int64)
    grid = {"patch_size": 4, "tubelet_size": 2}
    pred = torch.zeros(2, 3, 96)
    none: Any = None
    bad: list[tuple[str, Callable[[], object]]] = [
        (r"qkv \[B, N, 3, H, Dh\]; got NoneType", lambda: kernels.fused_attention(none)),
        (r"first_query in \[0, 5\); got 1.5", lambda: kernels.fused_attention(qkv, first_query=none or 1.5)),
        (r"scale None or a number; got 'a'", lambda: kernels.fused_attention(qkv, scale=none or "a")),
        (r"scale None or a number; got nan", lambda: kernels.fused_attention(qkv, scale=float("nan"))),
        (r"lengths in \[1, 5\]; got 0", lambda: kernels.fused_attention(qkv, lengths=torch.tensor([0, 5]))),
        (r"pred float \[2, 3, 96\]", lambda: kernels.masked_patch_loss(pred[:1], clip, index, **grid)),
        (r"weights \[2, 3\]", lambda: kernels.masked_patch_loss(pred, clip, index, weights=x, **grid)),
        (r"K >= 1", lambda: kernels.masked_patch_loss(pred[:, :0], clip, index[:, :0], **grid)),
        (r"mask_token a tensor", lambda: kernels.assemble_decoder_tokens(pred, none, pred[0], index, index)),
    ]
    for message, call in bad:
        with pytest.raises(kernels.KernelInputError, match="expected .*" + message):
            call()


def test_an_unknown_mode_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(kernels.KernelInputError, match="one of auto, torch, triton; got 'fast'"), \
         kernels.use_kernels("fast"):  # fmt: skip
        pass
    monkeypatch.setenv("VMAE_KERNELS", "cuda")
    with pytest.raises(kernels.KernelInputError, match="got 'cuda'"):
        kernels.kernel_status()
