"""`assemble_decoder_tokens` at a site: the ways to go, inputs, and float64's answer."""

from __future__ import annotations

import torch
from torch import Tensor

from vmae.kernels.decoder_tokens.op import assemble_decoder_tokens
from vmae.kernels.decoder_tokens.reference import assemble_decoder_tokens_reference
from vmae.kernels.descriptor import Inputs, Trial
from vmae.kernels.sites import Site


def choices(site: Site, family: int) -> list[str]:
    """The kernel has one form."""
    return ["torch", "triton default"]


def trial(site: Site, device: str) -> Trial:
    """Random tokens at random places; the mask token's gradient is a sum over all clips."""
    v, m, d = (site.size(name) for name in ("V", "M", "D"))
    out_dtype: torch.dtype = getattr(torch, site.layout)
    leaves = ("visible", "token") if site.grad else ()

    def make(seed: int) -> Inputs:
        gen = torch.Generator(device).manual_seed(seed)
        order = torch.rand(site.batch, v + m, generator=gen, device=device).argsort(dim=1)

        def normal(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.randn(*size, generator=gen, device=device).to(dtype)

        return {
            "visible": normal(site.batch, v, d, dtype=site.torch_dtype()).requires_grad_(site.grad),
            "token": normal(1, 1, d).requires_grad_(site.grad),
            "pos": normal(v + m, d),
            "seen": order[:, :v].sort(dim=1).values,
            "hidden": order[:, v:].sort(dim=1).values,
            "dout": normal(site.batch, v + m, d, dtype=out_dtype),
        }

    def call(x: Inputs) -> Tensor:
        return assemble_decoder_tokens(
            x["visible"], x["token"], x["pos"], x["seen"], x["hidden"], dtype=out_dtype
        )

    def exact(x: Inputs) -> tuple[Tensor, ...]:
        visible, token = (x[k].detach().double().requires_grad_(site.grad) for k in ("visible", "token"))
        places = x["pos"].double(), x["seen"], x["hidden"]
        out = assemble_decoder_tokens_reference(visible, token, *places)
        if not site.grad:
            return (out,)
        return out.detach(), *torch.autograd.grad(out, (visible, token), x["dout"].double())

    return Trial(make=make, call=call, exact=exact, leaves=leaves)
