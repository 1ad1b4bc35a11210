"""`gather_patches` timed, alone and with the embedding behind it, against the official embedding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vmae.kernels.descriptor import BenchCase, Inputs, OpBench, Sweep, Variant
from vmae.kernels.dispatch import in_mode
from vmae.kernels.patch_gather import configs
from vmae.kernels.patch_gather.op import gather_patches
from vmae.kernels.patch_gather.reference import gather_patches_reference
from vmae.kernels.timing import checked_clips

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class ClipShape:
    """A clip batch and its mask: 16 x 224 x 224 at patch 16 and tube masking unless said."""

    b: int
    frames: int = 16
    side: int = 224
    patch: int = 16
    tubelet: int = 2
    masked: float = 0.9

    @property
    def tokens(self) -> int:
        return (self.frames // self.tubelet) * (self.side // self.patch) ** 2

    @property
    def num_masked(self) -> int:
        slots = (self.side // self.patch) ** 2
        return int(self.masked * slots) * (self.frames // self.tubelet)

    @property
    def values(self) -> int:
        return self.tubelet * self.patch**2 * 3

    @property
    def labels(self) -> dict[str, int]:
        """The shape as a table names it; K are the visible tokens."""
        return {"B": self.b, "N": self.tokens, "K": self.tokens - self.num_masked, "P": self.values}

    def make_clip(self, seed: int, device: str) -> Inputs:
        gen = torch.Generator(device).manual_seed(seed)
        size = (self.b, self.frames, self.side, self.side, 3)
        video = torch.randint(0, 256, size, generator=gen, device=device, dtype=torch.uint8)
        order = torch.rand(self.b, self.tokens, generator=gen, device=device).argsort(dim=1)
        visible = order[:, self.num_masked :].sort(dim=1).values
        return {
            "video": video.permute(0, 4, 1, 2, 3),  # [B, C, T, H, W] over channels-last memory
            "visible": visible,
            "masked": order[:, : self.num_masked].sort(dim=1).values,
        }


def gather_bench(shape: ClipShape, width: int, *, device: str, compiled: bool) -> OpBench:
    """The masked-token gather, against the official embedding of all tokens (normalise, Conv3d, index)."""
    grid = {"patch_size": shape.patch, "tubelet_size": shape.tubelet}
    args: dict[str, Any] = {**grid, "mean": MEAN, "std": STD, "dtype": torch.bfloat16}
    gen = torch.Generator(device).manual_seed(99)
    weight = torch.randn(width, shape.values, generator=gen, device=device) / shape.values**0.5
    linear = weight.to(torch.bfloat16)
    conv = linear.view(width, shape.tubelet, shape.patch, shape.patch, 3).permute(0, 4, 1, 2, 3).contiguous()
    stride = (shape.tubelet, shape.patch, shape.patch)
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1, 1) for v in (MEAN, STD))

    def official(x: Inputs) -> tuple[Tensor, ...]:
        clip = ((x["video"].float() / 255 - mean) / std).to(torch.bfloat16)
        tokens = F.conv3d(clip, conv, stride=stride).flatten(2).transpose(1, 2)  # [B, N, D]
        return (tokens.gather(1, x["visible"][..., None].expand(-1, -1, width)),)

    def exact(x: Inputs) -> tuple[Tensor, ...]:
        clip = {k: checked_clips(v) for k, v in x.items()}
        patches = gather_patches_reference(clip["video"], clip["visible"], **{**args, "dtype": torch.float64})
        return (patches @ linear.double().T,)

    def embed(mode: str) -> Callable[[Inputs], tuple[Tensor, ...]]:
        gather = in_mode(mode, gather_patches)
        return lambda x: (F.linear(gather(x["video"], x["visible"], **args), linear),)

    variants = [
        Variant(name="ours + linear", run=embed("triton")),
        Variant(name="torch path + linear", run=embed("torch")),
        Variant(name="official: normalise, conv3d, index", run=official),
    ]
    if compiled:
        variants.append(Variant(name="compiled official", run=torch.compile(official)))
    visible = shape.b * (shape.tokens - shape.num_masked)
    return OpBench(
        op="patch_embedding",
        shape=shape.labels | {"D": width},
        what="fwd",
        make=lambda seed: shape.make_clip(seed, device),
        exact=exact,
        variants=variants,
        flops=2.0 * visible * shape.values * width,
        bytes=visible * (shape.values + 2.0 * shape.values + 2.0 * width),
    )


def gather_only_bench(shape: ClipShape, *, device: str, compiled: bool) -> OpBench:
    """The gather alone: uint8 read once, bfloat16 written once."""
    args: dict[str, Any] = {"patch_size": shape.patch, "tubelet_size": shape.tubelet}
    args |= {"mean": MEAN, "std": STD, "dtype": torch.bfloat16}

    def exact(x: Inputs) -> tuple[Tensor, ...]:
        clip = {k: checked_clips(v) for k, v in x.items()}
        return (gather_patches_reference(clip["video"], clip["visible"], **{**args, "dtype": torch.float64}),)

    def run(gather: Callable[..., Tensor]) -> Callable[[Inputs], tuple[Tensor, ...]]:
        return lambda x: (gather(x["video"], x["visible"], **args),)

    torch_path = in_mode("torch", gather_patches)
    variants = [
        Variant(name="ours", run=run(in_mode("triton", gather_patches))),
        Variant(name="torch path", run=run(torch_path)),
    ]
    if compiled:
        variants.append(Variant(name="compiled torch path", run=run(torch.compile(torch_path))))
    moved = shape.b * (shape.tokens - shape.num_masked) * shape.values
    return OpBench(
        op="gather_patches",
        shape=shape.labels,
        what="fwd",
        make=lambda seed: shape.make_clip(seed, device),
        exact=exact,
        variants=variants,
        flops=2.0 * moved,
        bytes=3.0 * moved,
    )


TINY = ClipShape(b=2, frames=4, side=16, patch=8, masked=0.5)


def benches(device: str, tiny: bool, compiled: bool) -> list[BenchCase]:
    """Tube masking 0.9 and none, at a batch of 64."""
    clip, width = (TINY, 32) if tiny else (ClipShape(b=64), 768)
    cases = [
        BenchCase(
            name="gather",
            barred=True,
            build=lambda: gather_only_bench(clip, device=device, compiled=compiled),
        ),
        BenchCase(
            name="patch embedding",
            barred=True,
            build=lambda: gather_bench(clip, width, device=device, compiled=compiled),
        ),
    ]
    if not tiny:
        whole = ClipShape(b=64, masked=0.0)
        cases.append(
            BenchCase(
                name="gather of every token",
                build=lambda: gather_only_bench(whole, device=device, compiled=compiled),
            )
        )
    return cases


def warps_sweep(kernel: str, device: str, tiny: bool, bench: Callable[..., OpBench]) -> Sweep:
    """Ours of `bench` with each of the kernel's numbers of warps."""

    def build() -> OpBench:
        item = bench(TINY if tiny else ClipShape(b=64), device=device, compiled=False)
        ours = item.variants[0].run

        def with_warps(warps: int) -> Variant:
            def run(x: Inputs) -> tuple[Tensor, ...]:
                before = configs.measured_here.copy()
                configs.measured_here[kernel] = warps
                try:
                    return ours(x)
                finally:
                    configs.measured_here.clear()
                    configs.measured_here.update(before)

            return Variant(name=f"{warps} warps", run=run)

        return replace(item, variants=[with_warps(w) for w in configs.WARPS[kernel]])

    return Sweep(kernel=kernel, build=build)


def use_warps(kernel: str, candidate: str) -> None:
    """Take a measured number of warps of the gather or the loss for the rest of this process."""
    for warps in configs.WARPS.get(kernel, ()):
        if candidate == f"{warps} warps":
            configs.measured_here[kernel] = warps
