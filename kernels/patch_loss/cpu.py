"""The squared-error loss on a CPU: targets, difference and gradient in one sweep over blocks of patches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vmae.kernels.layout import compute_dtype
from vmae.kernels.patch_loss.reference import EPS

# Values handled at a time: 1 MiB in float32 stays in the cache from one pass to the next.
_BLOCK_VALUES = 1 << 18


class SquaredErrorLoss(torch.autograd.Function):
    """Mean squared error of pred [B, K, P] against pixels [B, K, P/C, C], as `masked_patch_loss` defines it.

    `pixels` are unscaled (uint8) or in [0, 1]. Labels never exist as a whole tensor, and the difference is
    written once, as the gradient. Statistics are means over centred values, in float32 (float64 if pred or
    pixels are): per channel sums are products with a 0/1 matrix, for channels lie fastest.
    """

    @staticmethod
    # The statistics' products must stay in float32: under autocast they would run in half precision, where
    # squares of pixels overflow.
    @torch.autocast("cpu", enabled=False)
    def forward(ctx: Any, pred: Tensor, pixels: Tensor, weights: Tensor | None, normalise: bool) -> Tensor:
        work = compute_dtype(pred.dtype, pixels.dtype)
        m, c = pixels.shape[-2:]
        p = m * c
        flat_pred, flat_pixels = pred.reshape(-1, p), pixels.reshape(-1, p)
        rows = flat_pred.shape[0]
        weight = None if weights is None else weights.detach().reshape(-1, 1).to(work)
        # d loss / d pred = 2 * w * (pred - target) / total
        total = rows * p if weight is None else weight.sum() * p
        levels = 255.0 if pixels.dtype == torch.uint8 else 1.0
        channel = torch.eye(c, dtype=work).repeat(m, 1)  # [P, C]
        # A loss scaler's factor comes later: fp16 has no room for the gradient before it.
        grad = torch.empty_like(flat_pred, dtype=work if pred.dtype == torch.float16 else pred.dtype)
        error = flat_pred.new_zeros((), dtype=work)
        step = max(1, _BLOCK_VALUES // p)
        own = normalise or pixels.dtype != work  # x below is ours to overwrite
        for i in range(0, rows, step):
            x = flat_pixels[i : i + step].to(work)  # [r, P]
            if normalise and m > 1:
                x = _subtract(x, (x @ channel).div_(m))
                deviation = ((x * x) @ channel).div_(m - 1).sqrt_()  # [r, C]
                # In 0..255 the published eps of 1e-6 is 255e-6.
                _scale(x, deviation.add_(EPS * levels).reciprocal_())
            elif normalise:
                x = torch.zeros_like(x)
            elif levels != 1.0:
                x.div_(levels)
            difference = torch.sub(flat_pred[i : i + step], x, out=x if own else None)
            squares = torch.linalg.vector_norm(difference, dim=1, keepdim=True).square_()  # [r, 1]
            if weight is None:
                error += squares.sum()
                grad[i : i + step] = difference.mul_(2.0 / total)
            else:
                w = weight[i : i + step]
                error += (squares * w).sum()
                grad[i : i + step] = difference.mul_(w * (2.0 / total))
        ctx.grad = grad.view_as(pred)
        ctx.save_for_backward(pred, pixels, weights)
        ctx.normalise = normalise
        return error / total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        grad, ctx.grad = ctx.grad, None
        dtype = ctx.saved_tensors[0].dtype
        if grad is None:  # a second backward pass: the first gave the gradient away
            pred, pixels, weights = ctx.saved_tensors
            again = pred.detach().requires_grad_()
            with torch.enable_grad():
                loss = SquaredErrorLoss.apply(again, pixels, weights, ctx.normalise)
            (grad,) = torch.autograd.grad(loss, again)
        scale = grads[0].item()
        return (grad if scale == 1.0 else grad.mul_(scale)).to(dtype), None, None, None


def _tile(values: Tensor, p: int) -> Tensor:
    """[r, C] repeated along the row to [r, 1, L], L a multiple of C that divides P: long inner loops."""
    r, c = values.shape
    m = p // c
    repeat = next(k for k in (32, 16, 8, 4, 2, 1) if m % k == 0)
    return values.repeat(1, repeat).view(r, 1, c * repeat)


def _subtract(x: Tensor, values: Tensor) -> Tensor:
    tile = _tile(values, x.shape[1])
    return (x.view(x.shape[0], -1, tile.shape[2]) - tile).flatten(1)


def _scale(x: Tensor, values: Tensor) -> None:
    tile = _tile(values, x.shape[1])
    x.view(x.shape[0], -1, tile.shape[2]).mul_(tile)
