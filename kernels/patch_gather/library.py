"""`torch.ops.vmae.gather_patches*`: opaque ops around the kernels, with fake and autograd registrations."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

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


class Form(NamedTuple):
    """The arguments of a call that are no tensors and no types."""

    patch_size: int
    tubelet_size: int
    mean: Sequence[float] | None
    std: Sequence[float] | None
    layout: str

    @property
    def rows(self) -> int:
        """Rows of pixels in a patch."""
        return self.tubelet_size * self.patch_size

    def table(self, channels: int, unit: float, device: torch.device) -> Tensor:
        """`scale_table` of these statistics."""
        mean, std = (None if values is None else tuple(values) for values in (self.mean, self.std))
        return scale_table(mean, std, channels, unit, str(device))

    def args(self, video: Tensor, indices: Tensor) -> dict[str, Any]:
        """`grid_args`, of indices side by side."""
        return grid_args(video, indices.contiguous(), self.patch_size, self.tubelet_size, self.layout)


@torch.library.impl("vmae::gather_patches", ("cpu", "cuda"))
def _gather(video: Tensor, indices: Tensor, *call: Any) -> Tensor:
    form, (dtype, tiles) = Form(*call[:-2]), call[-2:]  # the schema has no defaults: all are given

    def plain() -> Tensor:
        return gather_patches_reference(video, indices, **form._asdict(), dtype=dtype)

    def name() -> str:
        dims = site_dims(video, indices, form.patch_size, form.tubelet_size, form.layout)
        return call_name("gather_patches", dtype, dims)

    if not runs_kernel(video) or dtype == torch.float64:
        return plain()
    return or_plain(name, lambda: _launch(video, indices, form, dtype, tiles), plain)


def _launch(video: Tensor, indices: Tensor, form: Form, dtype: torch.dtype, tiles: str) -> Tensor:
    from vmae.kernels.patch_gather import triton_kernels as kernels

    args = form.args(video, indices)
    unit = 1 / 255 if video.dtype == torch.uint8 else 1.0
    out = torch.empty(*indices.shape, args["P"], dtype=dtype, device=video.device)
    block_r, block_w, warps = gather_block(form.rows, form.patch_size * args["C"], tiles)
    with on_device(video):
        kernels._gather_fwd_kernel[(indices.numel(),)](
            video_ptr=video,
            table_ptr=form.table(args["C"], unit, video.device),
            out_ptr=out,
            **args,
            BLOCK_R=block_r,
            BLOCK_W=block_w,
            RUNS=row_is_run(video, form.layout),
            num_warps=warps,
        )
    return out


@torch.library.impl("vmae::gather_patches_bwd", ("cpu", "cuda"))
def _gather_bwd(
    dout: Tensor, indices: Tensor, video_shape: Sequence[int], video_dtype: torch.dtype, *call: Any
) -> Tensor:
    form = Form(*call)

    def plain() -> Tensor:
        zero = torch.zeros(list(video_shape), dtype=video_dtype, device=dout.device, requires_grad=True)
        with torch.enable_grad():
            out = gather_patches_reference(zero, indices, **form._asdict(), dtype=dout.dtype)
            return torch.autograd.grad(out, zero, dout)[0]

    def kernel() -> Tensor:
        return _launch_bwd(dout, indices, video_shape, form).to(video_dtype)

    if not runs_kernel(dout) or video_dtype == torch.float64:
        return plain()
    return or_plain(lambda: f"gather_patches gradient {list(video_shape)}", kernel, plain)


def _launch_bwd(dout: Tensor, indices: Tensor, video_shape: Sequence[int], form: Form) -> Tensor:
    """The video's gradient, in float32."""
    from vmae.kernels.patch_gather import triton_kernels as kernels

    dvideo = torch.zeros(list(video_shape), dtype=torch.float32, device=dout.device)
    args = form.args(dvideo, indices)
    block_r, block_w, warps = gather_block(form.rows, form.patch_size * args["C"])
    with on_device(dout):
        kernels._gather_bwd_kernel[(indices.numel(),)](
            dout_ptr=dout.contiguous(),
            table_ptr=form.table(args["C"], 1.0, dout.device),
            dvideo_ptr=dvideo,
            **args,
            BLOCK_R=block_r,
            BLOCK_W=block_w,
            num_warps=warps,
        )
    return dvideo


@torch.library.register_fake("vmae::gather_patches")
def _gather_fake(video: Tensor, indices: Tensor, *call: Any) -> Tensor:
    form, dtype = Form(*call[:-2]), call[-2]
    channels = video.shape[1] if form.layout == "BCTHW" else video.shape[4]
    return video.new_empty(*indices.shape, form.rows * form.patch_size * channels, dtype=dtype)


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
