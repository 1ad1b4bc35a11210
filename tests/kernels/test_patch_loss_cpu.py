"""The CPU sweep under autocast: half-precision predictions, float32 statistics."""

from __future__ import annotations

import pytest
import torch

from vmae.kernels import masked_patch_loss


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_target_statistics_stay_in_float32_under_autocast(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (2, 3, 4, 16, 16), generator=g, dtype=torch.uint8)
    indices = torch.tensor([[0, 3, 5], [1, 2, 7]])
    pred = torch.randn(2, 3, 2 * 8 * 8 * 3, generator=g).to(dtype).requires_grad_()
    shape = {"patch_size": 8, "tubelet_size": 2}
    plain = masked_patch_loss(pred, video, indices, **shape)
    (plain_grad,) = torch.autograd.grad(plain, pred)
    with torch.autocast("cpu", dtype=dtype):
        loss = masked_patch_loss(pred, video, indices, **shape)
    (grad,) = torch.autograd.grad(loss, pred)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain, rtol=0, atol=0)
    torch.testing.assert_close(grad, plain_grad, rtol=0, atol=0)
