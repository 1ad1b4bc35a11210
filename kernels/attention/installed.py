"""Attention of packages that a user may have installed: candidates where they are there, never needed.

- `flash_attn 2`: flash-attn's `flash_attn_qkvpacked_func`, which writes dq, dk and dv into views of one
  packed gradient.
- `flash_attn 4`: `flash_attn.cute`, called as torch's own activation of it does
  (`torch.nn.attention.activate_flash_attention_impl`), but for this call alone: the activation replaces
  SDPA's flash backend in the whole process, and what was measured as that would be another kernel. Eager
  only.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from typing import Any

import torch
from torch import Tensor

from vmae.kernels.sites import Site

FAMILIES = {"flash_attn 2": (80, 86, 89, 90, 100, 120), "flash_attn 4": (90, 100)}
"""The GPUs (as configurations name them) that a package has kernels for."""
_MODULES = {"flash_attn 2": "flash_attn", "flash_attn 4": "flash_attn.cute.interface"}


def choices(site: Site, family: int) -> list[str]:
    """What is installed and can serve a site: 16 bits, all keys, all queries."""
    if site.dtype == "float32" or site.size("first") or "lengths" in site.layout:
        return []
    names = [name for name in _MODULES if family in FAMILIES[name] and _is_there(_MODULES[name])]
    return [name for name in names if not (site.compiled and name == "flash_attn 4")]


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, OSError, ValueError, AttributeError):  # a package that does not import is none
        return False


def attend(name: str, qkv: Tensor, scale: float) -> Tensor:
    """[B, N, 3, H, D] -> [B, N, H * D] by one of `choices`."""
    module = importlib.import_module(_MODULES[name])
    out: Tensor
    if name == "flash_attn 2":
        out = module.flash_attn_qkvpacked_func(qkv, softmax_scale=scale)
    else:
        out = _Cute.apply(qkv, scale, module)
    return out.flatten(2)


class _Cute(torch.autograd.Function):
    """Forward and backward of `flash_attn.cute`, with a packed gradient."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, scale: float, module: Any) -> Tensor:
        q, k, v = qkv.unbind(2)
        out, lse = module._flash_attn_fwd(q, k, v, softmax_scale=scale, causal=False, return_lse=True)[:2]
        ctx.save_for_backward(qkv, out, lse)
        ctx.scale, ctx.module = scale, module
        made: Tensor = out
        return made

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        qkv, out, lse = ctx.saved_tensors
        backward = ctx.module._flash_attn_bwd
        dqkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
        how: dict[str, Any] = {"softmax_scale": ctx.scale, "causal": False}
        places = dict(zip(("dq", "dk", "dv"), dqkv.unbind(2), strict=True))
        into = places.keys() <= inspect.signature(backward).parameters.keys()
        made = backward(*qkv.unbind(2), out, grads[0].contiguous(), lse, **how, **(places if into else {}))
        return dqkv if into else torch.stack(made[:3], dim=2), None, None
