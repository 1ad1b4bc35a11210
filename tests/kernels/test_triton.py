"""Every Triton kernel against the float64 reference: on a GPU compiled, elsewhere in the interpreter.

Sizes carry their reason: 1; primes (no tile divides them); one under and one over a tile; the published
lengths with one head. Outputs are NaN before the launch, unmasked loads read NaN (see conftest).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from vmae import kernels
from vmae.kernels import reference
from vmae.kernels.attention import library as attention
from vmae.kernels.attention.configs import AttentionPlan, Tile, attention_plan

# numpy warns where a GPU computes on silently: lanes past the end, clips made of NaN on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

# ||out - ref|| / ||ref||: float32 rounding; bfloat16 operands, as the float32 accumulation leaves them.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}

SMALL = Tile(block_m=16, block_n=16, num_warps=4)
LONG = AttentionPlan(short_fwd=None, short_bwd=None, fwd=SMALL, dq=SMALL, dkdv=SMALL)
SHORT = replace(LONG, short_fwd=Tile(block_m=16, num_warps=4), short_bwd=Tile(block_m=16, num_warps=8))


def error(out: Tensor, exact: Tensor) -> float:
    """Relative RMS error; NaN (an element never written, or garbage read) is infinite."""
    out, exact = out.detach().double().cpu(), exact.detach().double().cpu()
    diff = (out - exact).norm() / exact.norm().clamp_min(1e-30)
    return float("inf") if torch.isnan(diff) else float(diff)


def check_attention(
    qkv: Tensor,
    plan: AttentionPlan | None,
    lengths: Tensor | None = None,
    scale: float | None = None,
    first: int = 0,
) -> None:
    """Forward and packed gradient of the launchers against the float64 reference."""
    used = qkv.shape[4] ** -0.5 if scale is None else scale
    out, lse = attention.launch_fwd(qkv, used, lengths, plan, first)
    dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(qkv)
    dqkv = attention.launch_bwd(dout, qkv, out, lse, used, lengths, plan=plan, first=first)
    exact = qkv.double().requires_grad_()
    ref = reference.fused_attention(exact, scale=scale, lengths=lengths)[:, first:]
    (dref,) = torch.autograd.grad(ref, exact, dout.double())
    assert error(out, ref.detach()) < TOLERANCE[qkv.dtype]
    for part in range(3):
        if dref[:, :, part].norm() > 1e-12:
            assert error(dqkv[:, :, part], dref[:, :, part]) < 2 * TOLERANCE[qkv.dtype], "qkv"[part]
        else:
            assert dqkv[:, :, part].abs().max() < 1e-5


def tile_dtype(device: str) -> torch.dtype:
    """What to test large tiles with: they are for half precision, and a GPU's compiler takes a minute over
    float32 products of their size; the interpreter is faster, and stricter, in float32."""
    return torch.bfloat16 if device == "cuda" else torch.float32


def make_qkv(b: int, n: int, h: int, d: int, dtype: torch.dtype, device: str) -> Tensor:
    gen = torch.Generator().manual_seed(n * 131 + d)
    return torch.randn(b, n, 3, h, d, generator=gen).to(device, dtype)


@pytest.mark.parametrize("plan", [SHORT, LONG], ids=["short", "long"])
@pytest.mark.parametrize(
    ("n", "d"),
    [(1, 16), (13, 16), (15, 32), (16, 16), (17, 80), (31, 24), (33, 64), (40, 128)],
    ids=lambda x: str(x),
)
def test_attention_sizes(plan: AttentionPlan, n: int, d: int, device: str) -> None:
    check_attention(make_qkv(2, n, 2, d, torch.float32, device), plan)


@pytest.mark.parametrize("plan", [SHORT, LONG], ids=["short", "long"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_half_precision(plan: AttentionPlan, dtype: torch.dtype, device: str) -> None:
    check_attention(make_qkv(2, 37, 2, 32, dtype, device), plan)


@pytest.mark.parametrize("n", [129, 160, 161, 196])
def test_short_attention_with_two_key_tiles_or_one_large(n: int, device: str) -> None:
    plan = replace(SHORT, short_fwd=Tile(block_m=64, num_warps=4), short_bwd=Tile(block_m=64, num_warps=8))
    check_attention(make_qkv(1, n, 1, 64, tile_dtype(device), device), plan)


@pytest.mark.parametrize(
    "tile",
    [
        Tile(block_m=32, num_warps=8, num_stages=2, form="single"),
        Tile(block_m=64, block_n=64, num_warps=4, form="two_pass"),
    ],
    ids=str,
)
@pytest.mark.parametrize("n", [7, 129, 160])
def test_short_backward_in_its_other_forms(tile: Tile, n: int, device: str) -> None:
    check_attention(make_qkv(1, n, 1, 16, tile_dtype(device), device), replace(SHORT, short_bwd=tile))


@pytest.mark.parametrize("n", [7, 129, 160])
@pytest.mark.parametrize("with_lengths", [False, True])
def test_short_forward_by_few_programs_that_walk_over_heads(n: int, with_lengths: bool, device: str) -> None:
    heads = 3 if device == "cpu" else 300  # more than programs: the interpreter has two
    qkv = make_qkv(2, n, heads, 16, tile_dtype(device), device)
    lengths = torch.tensor([n, n // 2], device=device) if with_lengths else None
    tile = Tile(block_m=64, num_warps=4, num_stages=2, form="persistent")
    check_attention(qkv, replace(SHORT, short_fwd=tile), lengths)


@pytest.mark.parametrize("first", [1, 16, 17, 32])
def test_attention_from_a_query_on(first: int, device: str) -> None:
    qkv = make_qkv(2, 33, 1, 16, torch.float32, device)
    lengths = torch.tensor([33, 18], device=device)
    check_attention(qkv, LONG, lengths if first == 17 else None, first=first)


def test_the_public_function_passes_on_the_first_query(device: str) -> None:
    qkv = make_qkv(1, 21, 2, 16, torch.float32, device).requires_grad_()
    exact = qkv.detach().double().requires_grad_()
    with kernels.use_kernels("triton"):
        out = kernels.fused_attention(qkv, first_query=5)
    ref = reference.fused_attention(exact)[:, 5:]
    assert error(out, ref) < TOLERANCE[torch.float32]
    dout = torch.randn(ref.shape, generator=torch.Generator().manual_seed(4)).to(device)
    (grad,) = torch.autograd.grad(out, qkv, dout)
    (dref,) = torch.autograd.grad(ref, exact, dout.double())
    assert error(grad, dref) < 2 * TOLERANCE[torch.float32]
    assert not grad[:, :5, 0].any()


def test_a_negative_scale_takes_the_torch_path(device: str) -> None:
    qkv = make_qkv(1, 9, 1, 16, torch.float32, device)
    with kernels.use_kernels("triton"):
        out = kernels.fused_attention(qkv, scale=-0.5)
    assert error(out, reference.fused_attention(qkv.double(), scale=-0.5)) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_encoder_length_as_configured(dtype: torch.dtype, device: str) -> None:
    qkv = make_qkv(1, 160, 1, 64, dtype, device)
    check_attention(qkv, attention_plan(160, 64, dtype if device == "cuda" else torch.bfloat16, 90))


def test_attention_decoder_length_as_configured(device: str) -> None:
    qkv = make_qkv(1, 1568, 1, 64, tile_dtype(device), device)
    plan = attention_plan(1568, 64, torch.bfloat16, 90)
    large = Tile(block_m=256, block_n=256, num_warps=8)  # fewer, larger tiles: the interpreter pays per tile
    check_attention(qkv, plan if device == "cuda" else replace(plan, fwd=large, dq=large, dkdv=large))


@pytest.mark.parametrize("plan", [SHORT, LONG], ids=["short", "long"])
def test_attention_ignores_padded_keys(plan: AttentionPlan, device: str) -> None:
    qkv = make_qkv(3, 33, 2, 16, torch.float32, device)
    for dtype in (torch.int32, torch.int64):
        lengths = torch.tensor([33, 1, 17], device=device, dtype=dtype)
        check_attention(qkv, plan, lengths)
    loud = qkv.clone()
    loud[1, 1:, 1:] = 1e4  # padded keys and values
    used = 16**-0.5
    quiet_out, _ = attention.launch_fwd(qkv, used, lengths, plan)
    loud_out, _ = attention.launch_fwd(loud, used, lengths, plan)
    assert torch.equal(quiet_out, loud_out)


@pytest.mark.parametrize("plan", [SHORT, LONG], ids=["short", "long"])
def test_attention_scale_and_layouts(plan: AttentionPlan, device: str) -> None:
    qkv = make_qkv(2, 19, 2, 16, torch.float32, device)
    check_attention(qkv, plan, scale=0.7)
    heads_first = qkv.permute(0, 2, 3, 1, 4).contiguous().permute(0, 3, 1, 2, 4)  # strided [B, N, 3, H, D]
    check_attention(heads_first, plan)
    every_second = torch.cat([qkv, qkv + 1], dim=1)[:, ::2]
    check_attention(every_second, plan)
    columns_apart = qkv.repeat_interleave(2, dim=4)[..., ::2]  # no unit stride: copied before the launch
    check_attention(columns_apart, plan)


@pytest.mark.parametrize("plan", [SHORT, LONG], ids=["short", "long"])
def test_attention_does_not_leak_between_clips(plan: AttentionPlan, device: str) -> None:
    qkv = make_qkv(3, 17, 2, 16, torch.float32, device)
    other = qkv.clone()
    other[0], other[2] = float("nan"), float("nan")
    dout = torch.randn(3, 17, 32).to(qkv)
    results = []
    for x in (qkv, other):
        out, lse = attention.launch_fwd(x, 0.25, None, plan)
        results.append((out[1], attention.launch_bwd(dout, x, out, lse, 0.25, None, plan=plan)[1]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def clip(shape: tuple[int, ...], kind: str, dtype: torch.dtype, device: str) -> tuple[Tensor, str]:
    """A clip batch of shape (B, C, T, H, W) in one of the memory layouts a caller may bring."""
    b, c, t, h, w = shape
    gen = torch.Generator().manual_seed(sum(shape))
    video = torch.randint(0, 256, (b, t, h, w, c), generator=gen, dtype=torch.uint8).to(device)
    if dtype != torch.uint8:
        video = (video.float() / 255).to(dtype)
    if kind == "BTHWC":
        return video, "BTHWC"
    if kind == "BCTHW":
        return video.permute(0, 4, 1, 2, 3).contiguous(), "BCTHW"
    if kind == "permuted":
        return video.permute(0, 4, 1, 2, 3), "BCTHW"
    return video.repeat_interleave(2, dim=2)[:, :, ::2], "BTHWC"  # every second row of a larger frame


def pick(b: int, n: int, k: int, device: str) -> Tensor:
    gen = torch.Generator().manual_seed(n + k)
    return torch.rand(b, n, generator=gen).argsort(dim=1)[:, :k].to(device)


# (channels, patch, tubelet, K): a patch of one value; primes; one under, at and over a power-of-two block.
PATCHES = [
    (1, 1, 1, 1),
    (3, 5, 1, 5),
    (1, 16, 1, 6),
    (1, 16, 2, 3),
    (3, 7, 2, 4),
    (5, 3, 3, 7),
    (3, 16, 2, 3),
]


@pytest.mark.parametrize("kind", ["BTHWC", "BCTHW", "permuted", "strided"])
@pytest.mark.parametrize(("channels", "patch", "tubelet", "k"), PATCHES)
def test_gather(kind: str, channels: int, patch: int, tubelet: int, k: int, device: str) -> None:
    video, layout = clip((2, channels, 2 * tubelet, 2 * patch, 2 * patch), kind, torch.uint8, device)
    args: dict[str, Any] = {"patch_size": patch, "tubelet_size": tubelet, "layout": layout}
    args |= {"mean": [0.4, 0.5, 0.6, 0.3, 0.2][:channels], "std": [0.2, 0.3, 0.25, 0.1, 0.4][:channels]}
    indices = pick(2, 8, k, device)
    exact = reference.gather_patches(video, indices, dtype=torch.float64, **args)
    with kernels.use_kernels("triton"):
        for dtype in (torch.float32, torch.bfloat16):
            out = kernels.gather_patches(video, indices, dtype=dtype, **args)
            assert out.dtype == dtype
            assert error(out, exact) < (1e-6 if dtype == torch.float32 else 4e-3)


@pytest.mark.parametrize("kind", ["BTHWC", "BCTHW", "strided"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gather_gradient_to_a_float_video(kind: str, dtype: torch.dtype, device: str) -> None:
    video, layout = clip((2, 3, 4, 8, 12), kind, dtype, device)
    video.requires_grad_()
    indices = pick(2, 12, 5, device)
    indices[:, 1] = indices[:, 0]  # a token named twice receives both gradients
    args: dict[str, Any] = {"patch_size": 4, "tubelet_size": 2, "layout": layout}
    args |= {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}
    exact = video.detach().double().requires_grad_()
    ref = reference.gather_patches(exact, indices, dtype=torch.float64, **args)
    dout = torch.randn(ref.shape, generator=torch.Generator().manual_seed(2)).to(device)
    (dref,) = torch.autograd.grad(ref, exact, dout.double())
    with kernels.use_kernels("triton"):
        out = kernels.gather_patches(video, indices, **args)
        (dvideo,) = torch.autograd.grad(out, video, dout)
    assert dvideo.dtype == dtype
    assert error(dvideo, dref) < (1e-6 if dtype == torch.float32 else 4e-3)


@pytest.mark.parametrize("loss", ["mse", "l1", "smooth_l1"])
@pytest.mark.parametrize("target", ["normalized", "raw"])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_forms(loss: str, target: str, weighted: bool, device: str) -> None:
    check_loss((3, 4, 2, 5), "permuted", torch.float32, device, loss=loss, target=target, weighted=weighted)


@pytest.mark.parametrize(
    ("kind", "patches"),
    [(("BTHWC", "BCTHW", "strided")[i % 3], p) for i, p in enumerate(PATCHES[1:])]
    + [(kind, PATCHES[-1]) for kind in ("BTHWC", "BCTHW", "permuted")],
    ids=str,
)
def test_loss_sizes(kind: str, patches: tuple[int, int, int, int], device: str) -> None:
    check_loss(patches, kind, torch.float32, device)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loss_half_precision(dtype: torch.dtype, device: str) -> None:
    check_loss((3, 4, 2, 5), "BTHWC", dtype, device, weighted=True)


def check_loss(
    patches: tuple[int, int, int, int],
    kind: str,
    dtype: torch.dtype,
    device: str,
    *,
    loss: str = "mse",
    target: str = "normalized",
    weighted: bool = False,
) -> None:
    """Loss and gradient, in the eager one-pass form and in the form a compiled graph uses."""
    channels, patch, tubelet, k = patches
    video, layout = clip((2, channels, 2 * tubelet, 2 * patch, 2 * patch), kind, torch.uint8, device)
    indices = pick(2, 8, k, device)
    p = channels * patch**2 * tubelet
    pred = torch.randn(2, k, p, generator=torch.Generator().manual_seed(p)).to(device, dtype).requires_grad_()
    weights = (torch.arange(2 * k, device=device).view(2, k) % 3).float() if weighted else None
    form = (patch, tubelet, loss, target, layout, "")
    args: dict[str, Any] = {"patch_size": patch, "tubelet_size": tubelet, "weights": weights}
    args |= {"loss": loss, "target": target, "layout": layout}
    exact = pred.detach().double().requires_grad_()
    ref = reference.masked_patch_loss(exact, video, indices, **args)
    (dref,) = torch.autograd.grad(ref, exact, torch.tensor(3.0, dtype=torch.float64, device=device))
    with kernels.use_kernels("triton"):
        eager = kernels.masked_patch_loss(pred, video, indices, **args)
    opaque = torch.ops.vmae.patch_loss(pred, video, indices, weights, *form)
    tol = 2e-6 if dtype == torch.float32 else TOLERANCE[dtype]
    for value in (eager, opaque):
        assert value.dtype == torch.float32
        assert abs(value.item() / ref.item() - 1) < 2e-6
        for factor in (1.0, 3.0) if value is opaque else (3.0, 1.0):
            upstream = torch.tensor(factor, device=device)
            (grad,) = torch.autograd.grad(value, pred, upstream, retain_graph=True)
            assert grad.dtype == dtype
            assert error(grad * (3 / factor), dref) < tol


@pytest.mark.parametrize(("channels", "patch", "tubelet"), [(3, 16, 2), (1, 16, 4), (3, 7, 2)])
def test_targets_of_bright_and_almost_flat_pixels_are_exact(
    channels: int, patch: int, tubelet: int, device: str
) -> None:
    """Where float32 sums of squares would cancel: one pixel in 60 is 254, all others 255."""
    shape = (1, 2 * tubelet, 2 * patch, 2 * patch, channels)
    gen = torch.Generator().manual_seed(5)
    video = 255 - (torch.rand(shape, generator=gen) < 1 / 60).to(torch.uint8).to(device)
    pred = torch.zeros(1, 3, channels * tubelet * patch**2, device=device, requires_grad=True)
    args: dict[str, Any] = {"patch_size": patch, "tubelet_size": tubelet, "layout": "BTHWC"}
    indices = pick(1, 8, 3, device)
    exact = pred.detach().double().requires_grad_()
    (dref,) = torch.autograd.grad(reference.masked_patch_loss(exact, video, indices, **args), exact)
    with kernels.use_kernels("triton"):
        (grad,) = torch.autograd.grad(kernels.masked_patch_loss(pred, video, indices, **args), pred)
    assert error(grad, dref) < 2e-7


def test_loss_of_a_flat_patch_is_finite(device: str) -> None:
    video = torch.full((1, 4, 8, 8, 3), 127, dtype=torch.uint8, device=device)
    pred = torch.ones(1, 2, 96, device=device, requires_grad=True)
    with kernels.use_kernels("triton"):
        value = kernels.masked_patch_loss(
            pred, video, pick(1, 8, 2, device), patch_size=4, tubelet_size=2, layout="BTHWC"
        )
    assert value.item() == pytest.approx(1.0, abs=1e-6)  # the target of a flat patch is 0


def test_loss_does_not_leak_between_clips(device: str) -> None:
    video, layout = clip((3, 3, 2, 8, 8), "BTHWC", torch.float32, device)
    indices = pick(3, 4, 2, device)
    pred = torch.randn(3, 2, 96, device=device)
    weights = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]], device=device)
    args: dict[str, Any] = {"patch_size": 4, "tubelet_size": 2, "weights": weights, "layout": layout}
    loud = video.clone()
    loud[0], loud[2] = 1e3, -1e3
    with kernels.use_kernels("triton"):
        values = [kernels.masked_patch_loss(pred, x, indices, **args) for x in (video, loud)]
    assert torch.equal(*values)


@pytest.mark.parametrize(
    ("b", "v", "m", "d"), [(1, 1, 1, 1), (2, 7, 13, 24), (2, 15, 17, 65), (3, 16, 16, 384), (1, 160, 1408, 8)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoder_tokens(b: int, v: int, m: int, d: int, dtype: torch.dtype, device: str) -> None:
    gen = torch.Generator().manual_seed(d)
    visible = torch.randn(b, v, d, generator=gen).to(device, dtype).requires_grad_()
    token = torch.randn(1, 1, d, generator=gen).to(device).requires_grad_()
    pos = torch.randn(v + m, d, generator=gen).to(device).requires_grad_()
    order = pick(b, v + m, v + m, device)
    leaves = (visible, token, pos)
    exact = tuple(x.detach().double().requires_grad_() for x in leaves)
    ref = reference.assemble_decoder_tokens(*exact, order[:, :v], order[:, v:])
    dout = torch.randn(ref.shape, generator=gen).to(device)
    with kernels.use_kernels("triton"):
        out = kernels.assemble_decoder_tokens(*leaves, order[:, :v], order[:, v:], dtype=torch.float32)
    assert error(out, ref.detach()) < 1e-6
    grads = torch.autograd.grad(out, leaves, dout)
    for grad, leaf, dref in zip(grads, leaves, torch.autograd.grad(ref, exact, dout.double()), strict=True):
        assert grad.dtype == leaf.dtype
        assert grad.shape == leaf.shape
        assert error(grad, dref) < (4e-3 if grad.dtype == torch.bfloat16 else 1e-6)


def test_public_functions_reach_the_kernels(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = attention.launch_fwd
    monkeypatch.setattr(attention, "launch_fwd", lambda *a, **k: calls.append(a) or real(*a, **k))
    qkv = make_qkv(1, 5, 1, 16, torch.float32, device)
    kernels.fused_attention(qkv)
    assert not calls  # auto: no measurement of this machine, the torch path
    with kernels.use_kernels("triton"):
        kernels.fused_attention(qkv)
        assert len(calls) == 1
        kernels.fused_attention(qkv.double())  # the reference's domain
    assert len(calls) == 1
