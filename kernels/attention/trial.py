"""`fused_attention` at a site: the ways to go, inputs, and float64's answer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vmae.kernels.attention import installed
from vmae.kernels.attention.configs import variants
from vmae.kernels.attention.op import fused_attention
from vmae.kernels.attention.reference import fused_attention_reference
from vmae.kernels.descriptor import Inputs, Trial
from vmae.kernels.sites import Site
from vmae.kernels.timing import checked_clips


def choices(site: Site, family: int) -> list[str]:
    """Torch's own choice, our kernels by their tiles, SDPA's backends by name, what else is installed."""
    tiles = variants(site.size("N"), site.size("D"), site.torch_dtype(), family, grad=site.grad)
    ours = [f"triton {name}" for name in tiles]
    others = ["sdpa cudnn", "sdpa flash", *installed.choices(site, family), "sdpa efficient"]
    return ["torch", ours[0], *others, *ours[1:]]


def trial(site: Site, device: str) -> Trial:
    """Packed projections of a standard normal distribution; lengths, where the site has them, are mixed."""
    n, h, d, first = (site.size(name) for name in ("N", "H", "D", "first"))
    with_lengths = "lengths" in site.layout

    def make(seed: int) -> Inputs:
        gen = torch.Generator(device).manual_seed(seed)
        how: Any = {"generator": gen, "device": device}
        qkv = torch.randn(site.batch, n, 3, h, d, **how).to(site.torch_dtype())
        made = {"qkv": qkv.requires_grad_(site.grad)}
        made["dout"] = torch.randn(site.batch, n - first, h * d, **how).to(qkv.dtype)
        if with_lengths:
            made["lengths"] = torch.arange(site.batch, device=device) % n + 1
        return made

    def call(x: Inputs) -> Tensor:
        return fused_attention(x["qkv"], lengths=x.get("lengths"), first_query=first)

    def exact(x: Inputs) -> tuple[Tensor, ...]:
        few = {k: checked_clips(v.detach()) for k, v in x.items()}
        qkv = few["qkv"].double().requires_grad_(site.grad)
        out = fused_attention_reference(qkv, lengths=few.get("lengths"))[:, first:]
        if not site.grad:
            return (out,)
        return out.detach(), *torch.autograd.grad(out, qkv, few["dout"].double())

    return Trial(make=make, call=call, exact=exact, leaves=("qkv",))
