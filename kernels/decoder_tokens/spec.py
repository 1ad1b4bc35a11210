"""`assemble_decoder_tokens` described: what it is timed against, compiled for and launched with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vmae.kernels.decoder_tokens.bench import benches
from vmae.kernels.decoder_tokens.configs import ROWS, SPLITS, width_block
from vmae.kernels.decoder_tokens.op import assemble_decoder_tokens
from vmae.kernels.decoder_tokens.reference import assemble_decoder_tokens_reference
from vmae.kernels.decoder_tokens.trial import choices, trial
from vmae.kernels.descriptor import Case, Op


def _cases(family: int) -> Iterator[Case]:
    for d in (192, 384, 512, 640):
        common: dict[str, Any] = {"family": family, "module": "decoder_tokens", "aligned": ("V", "M")}
        common |= {"options": {"num_warps": 4}}
        constants = {"D": d, "BLOCK_R": ROWS, "BLOCK_D": width_block(d)}
        for t in ("bf16", "fp32"):
            yield Case(
                name=f"tokens/fwd D={d} {t}",
                kernel="_assemble_fwd_kernel",
                types={"visible_ptr": f"*{t}", "token_ptr": "*fp32", "pos_ptr": "*fp32", "out_ptr": f"*{t}"}
                | {"visible_index_ptr": "*i64", "masked_index_ptr": "*i64"},
                constants=constants,
                **common,
            )
            yield Case(
                name=f"tokens/bwd D={d} {t}",
                kernel="_assemble_bwd_kernel",
                types={"dout_ptr": f"*{t}", "dvisible_ptr": f"*{t}", "part_ptr": "*fp32"},
                constants=constants | {"SPLITS": SPLITS},
                **common,
            )


def _small_launches(device: str) -> Iterator[tuple[Tensor, Tensor]]:
    gen = torch.Generator().manual_seed(3)
    visible = torch.randn(2, 5, 40, generator=gen).to(device).requires_grad_()
    token, pos = torch.randn(40, generator=gen).to(device), torch.randn(12, 40, generator=gen).to(device)
    order = torch.stack([torch.randperm(12, generator=gen) for _ in range(2)]).to(device)
    out = assemble_decoder_tokens(visible, token, pos, order[:, :5], order[:, 5:])
    yield out, assemble_decoder_tokens_reference(visible, token, pos, order[:, :5], order[:, 5:])
    (grad,) = torch.autograd.grad(out.square().sum(), visible)
    yield grad, 2 * out[:, :5]


OP = Op(
    name="assemble_decoder_tokens",
    folder="decoder_tokens",
    baselines={"assemble_decoder_tokens": ("torch path", "compiled torch path")},
    benches=benches,
    choices=choices,
    trial=trial,
    cases=_cases,
    small_launches=_small_launches,
)
