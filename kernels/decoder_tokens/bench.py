"""`assemble_decoder_tokens` timed, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vmae.kernels.decoder_tokens.op import assemble_decoder_tokens
from vmae.kernels.decoder_tokens.reference import assemble_decoder_tokens_reference
from vmae.kernels.descriptor import BenchCase, Inputs, OpBench, Variant
from vmae.kernels.dispatch import in_mode


def tokens_bench(b: int, visible: int, masked: int, d: int, *, device: str, compiled: bool) -> OpBench:
    """The decoder's input, forward and backward."""

    def make(seed: int) -> Inputs:
        gen = torch.Generator(device).manual_seed(seed)
        n = visible + masked
        order = torch.rand(b, n, generator=gen, device=device).argsort(dim=1)
        bf16: dict[str, Any] = {"generator": gen, "device": device, "dtype": torch.bfloat16}
        return {
            "visible": torch.randn(b, visible, d, **bf16).requires_grad_(),
            "token": torch.randn(1, 1, d, generator=gen, device=device).requires_grad_(),
            "pos": torch.randn(n, d, generator=gen, device=device),
            "seen": order[:, :visible].sort(dim=1).values,
            "hidden": order[:, visible:].sort(dim=1).values,
            "dout": torch.randn(b, n, d, **bf16),
        }

    def through(op: Callable[..., Tensor]) -> Callable[[Inputs], tuple[Tensor, ...]]:
        def run(x: Inputs) -> tuple[Tensor, ...]:
            out = op(x["visible"], x["token"], x["pos"], x["seen"], x["hidden"])
            return (out, *torch.autograd.grad(out, (x["visible"], x["token"]), x["dout"]))

        return run

    def exact(x: Inputs) -> tuple[Tensor, ...]:
        leaves = [x[k].detach().double().requires_grad_() for k in ("visible", "token")]
        visible, token = leaves
        out = assemble_decoder_tokens_reference(visible, token, x["pos"].double(), x["seen"], x["hidden"])
        return out.detach(), *torch.autograd.grad(out, leaves, x["dout"].double())

    torch_path = in_mode("torch", assemble_decoder_tokens)
    variants = [
        Variant(name="ours", run=through(in_mode("triton", assemble_decoder_tokens))),
        Variant(name="torch path", run=through(torch_path)),
    ]
    if compiled:
        variants.append(Variant(name="compiled torch path", run=through(torch.compile(torch_path))))
    rows = b * (visible + masked)
    return OpBench(
        op="assemble_decoder_tokens",
        shape={"B": b, "V": visible, "M": masked, "D": d},
        what="fwd+bwd",
        make=make,
        exact=exact,
        variants=variants,
        flops=2.0 * rows * d,
        bytes=2.0 * d * (2 * rows + 2 * b * visible),
    )


def benches(device: str, tiny: bool, compiled: bool) -> list[BenchCase]:
    """ViT-B's decoder at a mask ratio of 0.9 and a batch of 64."""
    shape = (2, 3, 5, 16) if tiny else (64, 160, 1408, 384)
    return [
        BenchCase(
            name="decoder tokens",
            barred=True,
            build=lambda: tokens_bench(*shape, device=device, compiled=compiled),
        )
    ]
