"""`gather_patches` described: what it is timed against, compiled for and launched with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vmae.kernels.descriptor import Bar, Case, Op, Sweep
from vmae.kernels.patch_gather.bench import benches, gather_only_bench, use_warps, warps_sweep
from vmae.kernels.patch_gather.configs import WARPS, gather_block
from vmae.kernels.patch_gather.op import gather_patches
from vmae.kernels.patch_gather.reference import gather_patches_reference
from vmae.kernels.patch_gather.trial import choices, trial

# (patch, tubelet, channels last): the published grids.
GRIDS = ((16, 2, True), (16, 2, False), (14, 2, True), (8, 2, True))


def grid_constants(patch: int, tubelet: int, runs: bool) -> tuple[dict[str, Any], str, tuple[str, ...]]:
    """Return the compile-time arguments of a kernel over RGB patches, their label and the aligned strides."""
    constants = {"P": tubelet * patch**2 * 3, "C": 3, "PATCH": patch, "TUBELET": tubelet}
    # The launcher bakes in arguments equal to 1: the channel's stride (channels last) or the column's.
    constants |= {"stride_c": 1} if runs else {"stride_w": 1}
    label = f"P={constants['P']} {'channels last' if runs else 'channels first'}"
    return constants, label, ("stride_b", "stride_t", "stride_h", "K") + (() if runs else ("stride_c",))


def _cases(family: int) -> Iterator[Case]:
    for patch, tubelet, runs in GRIDS:
        constants, label, aligned = grid_constants(patch, tubelet, runs)
        block_r, block_w, warps = gather_block(tubelet * patch, patch * 3)
        blocks = {"BLOCK_R": block_r, "BLOCK_W": block_w}
        for out in ("bf16", "fp32"):
            forward = Case(
                name=f"gather/fwd {label} uint8 to {out}",
                family=family,
                module="patch_gather",
                kernel="_gather_fwd_kernel",
                types={"video_ptr": "*u8", "index_ptr": "*i64", "table_ptr": "*fp32", "out_ptr": f"*{out}"},
                constants=constants | blocks | {"RUNS": runs},
                aligned=aligned,
                options={"num_warps": warps},
            )
            yield forward
            if (patch, runs, out) == (16, True, "bf16") and family == 90:
                for other in WARPS["gather"][1:]:
                    yield replace(
                        forward, name=f"{forward.name} as {other} warps", options={"num_warps": other}
                    )
        yield Case(
            name=f"gather/bwd {label} bf16",
            family=family,
            module="patch_gather",
            kernel="_gather_bwd_kernel",
            types={"dout_ptr": "*bf16", "index_ptr": "*i64", "table_ptr": "*fp32", "dvideo_ptr": "*fp32"},
            constants=constants | blocks,
            aligned=aligned,
            options={"num_warps": warps},
        )


def small_clip(device: str) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Two clips whose patches are no power of two, five of their twelve tokens, and the grid's arguments."""
    gen = torch.Generator().manual_seed(3)
    video = torch.randint(0, 256, (2, 4, 12, 18, 3), generator=gen, dtype=torch.uint8).to(device)
    indices = torch.stack([torch.randperm(12, generator=gen)[:5] for _ in range(2)]).to(device)
    return video, indices, {"patch_size": 6, "tubelet_size": 2, "layout": "BTHWC"}


def _small_launches(device: str) -> Iterator[tuple[Tensor, Tensor]]:
    video, indices, grid = small_clip(device)
    yield gather_patches(video, indices, **grid), gather_patches_reference(video, indices, **grid)


def _sweeps(device: str, family: int, tiny: bool) -> Iterator[Sweep]:
    if family == 90:
        yield warps_sweep("gather", device, tiny, gather_only_bench)


OP = Op(
    name="gather_patches",
    folder="patch_gather",
    baselines={
        "gather_patches": ("torch path", "compiled torch path"),
        "patch_embedding": ("official: normalise, conv3d, index", "compiled official"),
    },
    bars=(
        Bar(
            what="gather + linear",
            bench="patch_embedding",
            timed="fwd",
            baselines=("official: normalise, conv3d, index",),
            ratio=10.0,
        ),
    ),
    benches=benches,
    choices=choices,
    trial=trial,
    cases=_cases,
    small_launches=_small_launches,
    sweeps=_sweeps,
    use=use_warps,
)
