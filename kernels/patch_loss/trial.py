"""`masked_patch_loss` at a site: the ways to go, inputs, and float64's answer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vmae.kernels.descriptor import Inputs, Trial
from vmae.kernels.patch_gather.configs import variants
from vmae.kernels.patch_gather.trial import site_clips, site_grid
from vmae.kernels.patch_loss.op import masked_patch_loss
from vmae.kernels.patch_loss.reference import masked_patch_loss_reference
from vmae.kernels.sites import Site
from vmae.kernels.timing import checked_clips


def choices(site: Site, family: int) -> list[str]:
    """The kernel by its number of warps."""
    patch, rows = site.size("patch"), site.size("tubelet") * site.size("patch")
    return ["torch", *(f"triton {name}" for name in variants("loss", rows, patch * site.size("C")))]


def trial(site: Site, device: str) -> Trial:
    """Random clips and predictions; the loss over all clips, its gradient of a few."""
    words = site.layout.split("+")
    loss, target = (
        next(w for w in words if w in known) for known in (("mse", "l1", "smooth_l1"), ("normalized", "raw"))
    )
    args: dict[str, Any] = site_grid(site) | {"loss": loss, "target": target}
    values = site.size("tubelet") * site.size("patch") ** 2 * site.size("C")
    size = (site.batch, site.size("K"), values)

    def make(seed: int) -> Inputs:
        made = site_clips(site, seed, device)
        gen = torch.Generator(device).manual_seed(seed + 1)
        pred = torch.randn(size, generator=gen, device=device).to(site.torch_dtype())
        made["pred"] = pred.requires_grad_(site.grad)
        if "weights" in words:
            made["weights"] = (torch.rand(size[:2], generator=gen, device=device) < 0.9).float()
        return made

    def call(x: Inputs) -> Tensor:
        return masked_patch_loss(x["pred"], x["video"], x["places"], weights=x.get("weights"), **args)

    def exact(x: Inputs) -> tuple[Tensor, ...]:
        total = torch.zeros((), dtype=torch.float64, device=device)
        share = 1.0 / site.batch
        whole = None if "weights" not in x else x["weights"].double().sum()

        def part(clips: Inputs, pred: Tensor) -> Tensor:
            """These clips' share of the loss over all."""
            weights = clips.get("weights")
            value = masked_patch_loss_reference(
                pred, clips["video"], clips["places"], weights=weights, **args
            )
            if weights is None or whole is None:
                return value * (len(pred) * share)
            return value * (weights.double().sum() / whole)

        for i in range(site.batch):
            clip = {k: v[i : i + 1].detach() for k, v in x.items()}
            total = total + part(clip, clip["pred"].double())
        if not site.grad:
            return (total,)
        few = {k: checked_clips(v.detach()) for k, v in x.items()}
        pred = few["pred"].double().requires_grad_()
        return total, *torch.autograd.grad(part(few, pred), pred)

    return Trial(make=make, call=call, exact=exact, leaves=("pred",) if site.grad else ())
