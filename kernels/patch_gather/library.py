"""`torch.ops.vmae.gather_patches*`: opaque ops around the kernels, with fake and autograd registrations."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vmae.kernels.dispatch import call_name
from vmae.kernels.launch import on_device, or_plain, row_is_run, runs_kernel, video_strides
from vmae.kernels.layout import channels_last
from vmae.kernels.patch_gather.configs import gather_block
from vmae.kernels.patch_gather.reference import gather_patches_reference
from vmae.kernels.sites import Dims

_GRID = "int patch_size, int tubelet_size, float[]? mean, float[]? std, str layout"
torch.library.define(
    "vmae::gather_patches", f"(Tensor video, Tensor indices, {_GRID}, ScalarType dtype, str tiles) -> Tensor"
)
torch.library.define(
    "vmae::gather_patches_bwd",
    f"(Tensor dout, Tensor indices, SymInt[] video_shape, ScalarType video_dtype, {_GRID}) -> Tensor",
)


@functools.lru_cache(maxsize=32)
def scale_table(
    mean: tuple[float, ...] | None, std: tuple[float, ...] | None, channels: int, unit: float, device: str
) -> Tensor:
    """Return `[2, C]` float32: the factor and offset per channel of `(x * unit - mean) / std`.

    Made once per statistics and device, so that a captured step copies nothing from the host.
    """
    mean = mean or (0.0,) * channels
    std = std or (1.0,) * channels
    factor = [unit / s for s in std]
    offset = [-m / s for m, s in zip(mean, std, strict=True)]
    return torch.tensor([factor, offset], dtype=torch.float32, device=device)


def grid_args(
    video: Tensor, indices: Tensor, patch_size: int, tubelet_size: int, layout: str
) -> dict[str, Any]:
    """Arguments that every kernel over patches takes."""
    _, _, h, w, c = channels_last(video, layout).shape
    stride_b, stride_c, stride_t, stride_h, stride_w = video_strides(video, layout)
    return {
        "index_ptr": indices,
        "stride_b": stride_b,
        "stride_c": stride_c,
        "stride_t": stride_t,
        "stride_h": stride_h,
        "stride_w": stride_w,
        "K": indices.shape[1],
        "nh": h // patch_size,
        "nw": w // patch_size,
        "P": tubelet_size * patch_size**2 * c,
        "C": c,
        "PATCH": patch_size,
        "TUBELET": tubelet_size,
    }


def site_dims(video: Tensor, indices: Tensor, patch_size: int, tubelet_size: int, layout: str) -> Dims:
    """What of a call's shape decides which kernel is fastest."""
    _, t, h, w, c = channels_last(video, layout).shape
    dims = {"K": indices.shape[1], "T": t, "height": h, "width": w, "C": c}
    dims |= {"patch": patch_size, "tubelet": tubelet_size}
    return tuple((name, int(size)) for name, size in dims.items())


def video_words(video: Tensor, layout: str) -> str:
    """The pixels' type, and whether a patch's rows are runs of memory."""
    kind = str(video.dtype).removeprefix("torch.")
    return f"{kind}+rows" if row_is_run(video, layout) else kind


def _as_tuple(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)


@torch.library.impl("vmae::gather_patches", ("cpu", "cuda"))
def _gather(
    video: Tensor,
    indices: Tensor,
    patch_size: int,
    tubelet_size: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    layout: str,
    dtype: torch.dtype,
    tiles: str,
) -> Tensor:
    def plain() -> Tensor:
        return gather_patches_reference(
            video,
            indices,
            patch_size=patch_size,
            tubelet_size=tubelet_size,
            mean=mean,
            std=std,
            layout=layout,
            dtype=dtype,
        )

    def kernel() -> Tensor:
        return _launch(video, indices, patch_size, tubelet_size, mean, std, layout, dtype, tiles)

    def name() -> str:
        dims = site_dims(video, indices, patch_size, tubelet_size, layout)
        return call_name("gather_patches", dtype, dims)

    if not runs_kernel(video) or dtype == torch.float64:
        return plain()
    return or_plain(name, kernel, plain)


def _launch(
    video: Tensor,
    indices: Tensor,
    patch_size: int,
    tubelet_size: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    layout: str,
    dtype: torch.dtype,
    tiles: str,
) -> Tensor:
    from vmae.kernels.patch_gather import triton_kernels as kernels

    args = grid_args(video, indices, patch_size, tubelet_size, layout)
    unit = 1 / 255 if video.dtype == torch.uint8 else 1.0
    out = torch.empty(*indices.shape, args["P"], dtype=dtype, device=video.device)
    block_r, block_w, warps = gather_block(tubelet_size * patch_size, patch_size * args["C"], tiles)
    with on_device(video):
        kernels._gather_fwd_kernel[(indices.numel(),)](
            video_ptr=video,
            table_ptr=scale_table(_as_tuple(mean), _as_tuple(std), args["C"], unit, str(video.device)),
            out_ptr=out,
            **args | {"index_ptr": indices.contiguous()},
            BLOCK_R=block_r,
            BLOCK_W=block_w,
            RUNS=row_is_run(video, layout),
            num_warps=warps,
        )
    return out


@torch.library.impl("vmae::gather_patches_bwd", ("cpu", "cuda"))
def _gather_bwd(
    dout: Tensor,
    indices: Tensor,
    video_shape: Sequence[int],
    video_dtype: torch.dtype,
    patch_size: int,
    tubelet_size: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    layout: str,
) -> Tensor:
    def plain() -> Tensor:
        zero = torch.zeros(list(video_shape), dtype=video_dtype, device=dout.device, requires_grad=True)
        with torch.enable_grad():
            out = gather_patches_reference(
                zero,
                indices,
                patch_size=patch_size,
                tubelet_size=tubelet_size,
                mean=mean,
                std=std,
                layout=layout,
                dtype=dout.dtype,
            )
            return torch.autograd.grad(out, zero, dout)[0]

    def kernel() -> Tensor:
        return _launch_bwd(
            dout, indices, video_shape, video_dtype, patch_size, tubelet_size, mean, std, layout
        )

    if not runs_kernel(dout) or video_dtype == torch.float64:
        return plain()
    return or_plain(lambda: f"gather_patches gradient {list(video_shape)}", kernel, plain)


def _launch_bwd(
    dout: Tensor,
    indices: Tensor,
    video_shape: Sequence[int],
    video_dtype: torch.dtype,
    patch_size: int,
    tubelet_size: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    layout: str,
) -> Tensor:
    from vmae.kernels.patch_gather import triton_kernels as kernels

    dvideo = torch.zeros(list(video_shape), dtype=torch.float32, device=dout.device)
    args = grid_args(dvideo, indices, patch_size, tubelet_size, layout)
    block_r, block_w, warps = gather_block(tubelet_size * patch_size, patch_size * args["C"])
    with on_device(dout):
        kernels._gather_bwd_kernel[(indices.numel(),)](
            dout_ptr=dout.contiguous(),
            table_ptr=scale_table(_as_tuple(mean), _as_tuple(std), args["C"], 1.0, str(dout.device)),
            dvideo_ptr=dvideo,
            **args | {"index_ptr": indices.contiguous()},
            BLOCK_R=block_r,
            BLOCK_W=block_w,
            num_warps=warps,
        )
    return dvideo.to(video_dtype)


@torch.library.register_fake("vmae::gather_patches")
def _gather_fake(
    video: Tensor,
    indices: Tensor,
    patch_size: int,
    tubelet_size: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    layout: str,
    dtype: torch.dtype,
    tiles: str,
) -> Tensor:
    channels = video.shape[1] if layout == "BCTHW" else video.shape[4]
    return video.new_empty(*indices.shape, tubelet_size * patch_size**2 * channels, dtype=dtype)


@torch.library.register_fake("vmae::gather_patches_bwd")
def _gather_bwd_fake(
    dout: Tensor, indices: Tensor, video_shape: Sequence[int], video_dtype: torch.dtype, *rest: Any
) -> Tensor:
    return dout.new_empty(list(video_shape), dtype=video_dtype)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    video, indices, *ctx.grid, _dtype, _tiles = inputs
    ctx.video_shape, ctx.video_dtype = video.shape, video.dtype
    ctx.save_for_backward(indices)


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    dvideo = None
    if ctx.needs_input_grad[0]:
        (indices,) = ctx.saved_tensors
        dvideo = torch.ops.vmae.gather_patches_bwd(dout, indices, ctx.video_shape, ctx.video_dtype, *ctx.grid)
    return (dvideo, *[None] * 8)


torch.library.register_autograd("vmae::gather_patches", _backward, setup_context=_setup)
