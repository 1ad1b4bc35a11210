"""The loss's gradient in half precision: the scaler's factor is in it before it is rounded to fp16."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vmae import kernels

FACTOR = 65536.0  # GradScaler's first


@pytest.mark.parametrize("mode", ["torch", "triton"])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weights"])
def test_it_is_float32s_within_fp16s_precision(mode: str, weighted: bool, device: str) -> None:
    """Over half a million values a gradient is near 1e-6, and near 1e-8 where the prediction is good: below
    what fp16 has."""
    gen = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (2, 16, 128, 176, 3), generator=gen, dtype=torch.uint8).to(device)
    places = torch.arange(171).expand(2, -1).contiguous().to(device)
    grid: dict[str, Any] = {"patch_size": 16, "tubelet_size": 2, "layout": "BTHWC"}
    grid["weights"] = torch.ones(2, 171, device=device) if weighted else None
    target = kernels.patch_targets(video, places, patch_size=16, tubelet_size=2, layout="BTHWC")
    off = torch.randn(target.shape, generator=gen).to(device) * torch.logspace(-2, 0, 1536, device=device)
    half = (target + off).half()
    assert half.numel() > 5e5

    def gradient(pred: torch.Tensor, path: str) -> torch.Tensor:
        pred = pred.detach().requires_grad_()
        with kernels.use_kernels(path):
            loss = kernels.masked_patch_loss(pred, video, places, **grid)
        (grad,) = torch.autograd.grad(loss * FACTOR, pred)
        assert grad.dtype == pred.dtype
        return grad.double()

    got, exact = gradient(half, mode), gradient(half.double(), "torch")
    assert float((exact / FACTOR).abs().median()) < 1e-6  # unscaled, fp16 would keep few bits of it
    assert float((got - exact).abs().max() / exact.abs().max()) < 2**-10
    large = exact.abs() > 1e-3
    assert float(((got - exact) / exact)[large].abs().max()) < 2**-9
    assert float((got[~large] - exact[~large]).abs().max()) < 2**-18
    assert float((got == 0).double().mean()) < 0.01
