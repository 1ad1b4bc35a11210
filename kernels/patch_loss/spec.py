"""`masked_patch_loss` described: what it is timed against, compiled for and launched with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vmae.kernels.descriptor import Bar, Case, Op, Sweep
from vmae.kernels.patch_gather.bench import use_warps, warps_sweep
from vmae.kernels.patch_gather.configs import WARPS, loss_block
from vmae.kernels.patch_gather.spec import GRIDS, grid_constants, small_clip
from vmae.kernels.patch_loss.bench import benches, loss_bench
from vmae.kernels.patch_loss.op import masked_patch_loss
from vmae.kernels.patch_loss.reference import masked_patch_loss_reference
from vmae.kernels.patch_loss.trial import choices, trial


def _cases(family: int) -> Iterator[Case]:
    for patch, tubelet, runs in GRIDS:
        forms = [("mse", True, False)]
        if (patch, runs) == (16, True):
            more = [("mse", True, True), ("l1", True, False), ("smooth_l1", True, False)]
            forms += [*more, ("mse", False, False)]
        for loss, normalised, weighted in forms:
            for write in (("loss", "grad"), ("loss",), ("grad",)):
                case = _case(family, (patch, tubelet, runs), loss, normalised, weighted, write)
                yield case
                if (patch, runs, loss, normalised, weighted, family) == (16, True, "mse", True, False, 90):
                    for warps in WARPS["loss"][1:]:
                        yield replace(
                            case, name=f"{case.name} as {warps} warps", options={"num_warps": warps}
                        )
    yield Case(
        name="loss/scale_unless_one bf16",
        family=family,
        module="patch_loss",
        kernel="_scale_unless_one_kernel",
        types={"x_ptr": "*bf16", "factor_ptr": "*fp32"},
        constants={"BLOCK": 4096},
        aligned=("total",),
    )


def _case(
    family: int,
    grid: tuple[int, int, bool],
    loss: str,
    normalised: bool,
    weighted: bool,
    write: tuple[str, ...],
) -> Case:
    constants, label, aligned = grid_constants(*grid)
    patch, tubelet, runs = grid
    block_r, cols_a, cols_b, warps = loss_block(tubelet * patch, patch * 3)
    constants |= {"BLOCK_R": block_r, "COLS_A": cols_a, "COLS_B": cols_b, "RUNS": runs, "LOSS": loss}
    constants |= {"NORMALISED": normalised, "HAS_WEIGHTS": weighted, "HAS_DLOSS": write == ("grad",)}
    constants |= {"WRITE_LOSS": "loss" in write, "WRITE_GRAD": "grad" in write}
    target = "normalised" if normalised else "raw"
    return Case(
        name=f"loss/{'+'.join(write)} {label} {loss} {target}" + (" weights" if weighted else ""),
        family=family,
        module="patch_loss",
        kernel="_patch_loss_kernel",
        types=dict.fromkeys(("pred_ptr", "dpred_ptr"), "*bf16")
        | dict.fromkeys(("weight_ptr", "norm_ptr", "dloss_ptr", "channel_ptr", "part_ptr"), "*fp32")
        | {"video_ptr": "*u8", "index_ptr": "*i64"}
        | dict.fromkeys(("unit", "eps", "norm"), "fp32"),
        constants=constants,
        aligned=aligned,
        options={"num_warps": warps},
    )


def _small_launches(device: str) -> Iterator[tuple[Tensor, Tensor]]:
    video, indices, grid = small_clip(device)
    pred = torch.randn(2, 5, 216, generator=torch.Generator().manual_seed(4)).to(device).requires_grad_()
    exact = pred.detach().double().requires_grad_()
    (got,) = torch.autograd.grad(masked_patch_loss(pred, video, indices, **grid), pred)
    (ref,) = torch.autograd.grad(masked_patch_loss_reference(exact, video, indices, **grid), exact)
    yield got, ref


def _sweeps(device: str, family: int, tiny: bool) -> Iterator[Sweep]:
    if family == 90:
        yield warps_sweep("loss", device, tiny, loss_bench)


_BAR: dict[str, Any] = {"what": "loss", "bench": "masked_patch_loss", "timed": "fwd+bwd"}
OP = Op(
    name="masked_patch_loss",
    folder="patch_loss",
    baselines={"masked_patch_loss": ("official: labels, mse", "compiled torch path", "compiled official")},
    bars=(
        Bar(**_BAR, baselines=("official: labels, mse",), ratio=6.0),
        Bar(**_BAR, baselines=("compiled torch path", "compiled official"), ratio=1.5),
    ),
    benches=benches,
    choices=choices,
    trial=trial,
    cases=_cases,
    small_launches=_small_launches,
    sweeps=_sweeps,
    use=use_warps,
)
