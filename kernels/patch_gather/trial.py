"""`gather_patches` at a site: the ways to go, inputs, and float64's answer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vmae.kernels.descriptor import Inputs, Trial
from vmae.kernels.patch_gather.configs import variants
from vmae.kernels.patch_gather.op import gather_patches
from vmae.kernels.patch_gather.reference import gather_patches_reference
from vmae.kernels.sites import Site
from vmae.kernels.timing import checked_clips


def choices(site: Site, family: int) -> list[str]:
    """The kernel by its number of warps."""
    patch, rows = site.size("patch"), site.size("tubelet") * site.size("patch")
    return ["torch", *(f"triton {name}" for name in variants("gather", rows, patch * site.size("C")))]


def site_grid(site: Site) -> dict[str, int]:
    """The patch grid of a site over clips, as the ops take it."""
    return {"patch_size": site.size("patch"), "tubelet_size": site.size("tubelet")}


def site_clips(site: Site, seed: int, device: str) -> Inputs:
    """Random clips [B, C, T, H, W] in the site's memory layout, and K different sorted places of each."""
    gen = torch.Generator(device).manual_seed(seed)
    t, height, width, c = (site.size(name) for name in ("T", "height", "width", "C"))
    kind, *words = site.layout.split("+")
    size = (site.batch, t, height, width, c)
    video = torch.randint(0, 256, size, generator=gen, device=device, dtype=torch.uint8)
    if kind != "uint8":
        video = (video / 255).to(getattr(torch, kind))
    video = video.permute(0, 4, 1, 2, 3)
    if "rows" not in words:
        video = video.contiguous()
    tokens = (t // site.size("tubelet")) * (height // site.size("patch")) * (width // site.size("patch"))
    order = torch.rand(site.batch, tokens, generator=gen, device=device).argsort(dim=1)
    return {"video": video, "places": order[:, : site.size("K")].sort(dim=1).values}


def trial(site: Site, device: str) -> Trial:
    """Means and deviations of three channels are ImageNet's, of another number a half."""
    c = site.size("C")
    stats: dict[str, Any] = {"mean": (0.5,) * c, "std": (0.25,) * c}
    args = site_grid(site) | stats | {"dtype": site.torch_dtype()}
    dout_size = (site.batch, site.size("K"), site.size("tubelet") * site.size("patch") ** 2 * c)

    def make(seed: int) -> Inputs:
        made = site_clips(site, seed, device)
        if site.grad:
            made["video"].requires_grad_()
            made["dout"] = torch.ones(dout_size, device=device, dtype=site.torch_dtype())
        return made

    def call(x: Inputs) -> Tensor:
        return gather_patches(x["video"], x["places"], **args)

    def exact(x: Inputs) -> tuple[Tensor, ...]:
        video, places = (checked_clips(x[k].detach()) for k in ("video", "places"))
        if not site.grad:
            return (gather_patches_reference(video, places, **{**args, "dtype": torch.float64}),)
        video = video.double().requires_grad_()
        out = gather_patches_reference(video, places, **{**args, "dtype": torch.float64})
        return out.detach(), *torch.autograd.grad(out.sum(), video)

    # The gradient is summed by atomics: a pixel named twice gets its two shares in either order.
    leaves = ("video",) if site.grad else ()
    return Trial(make=make, call=call, exact=exact, leaves=leaves, deterministic=not site.grad)
