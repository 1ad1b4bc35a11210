"""The token grid: from a clip's shape to tokens, once, for positions, masks, targets and reconstruction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vmae.core.errors import InputError

MAX_CHANNELS = 8


@dataclass(frozen=True, kw_only=True)
class TokenGrid:
    """How a clip `[C, T, H, W]` is cut into `N = t*h*w` tokens of `P` values each.

    Token order: `n = (t_i * h + h_i) * w + w_i`. Order inside a patch: (p0 p1 p2 c), channel fastest
    (MCG-NJU/VideoMAE, `engine_for_pretraining.py`). `patch_size` is in pixels, `tubelet_size` in frames.
    Raises InputError where a size is not a whole multiple, with the sizes in the message.
    """

    frames: int
    height: int
    width: int
    channels: int = 3
    patch_size: int = 16
    tubelet_size: int = 2

    def __post_init__(self) -> None:
        for name in ("frames", "height", "width", "channels", "patch_size", "tubelet_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"expected {name} to be an integer of at least 1, got {value!r}")
        if self.channels > MAX_CHANNELS:
            raise InputError(f"expected 1 to {MAX_CHANNELS} channels, got {self.channels}")
        if self.frames % self.tubelet_size:
            raise InputError(
                f"expected frames to be a multiple of tubelet_size {self.tubelet_size}, got {self.frames}"
            )
        for name in ("height", "width"):
            if getattr(self, name) % self.patch_size:
                raise InputError(
                    f"expected {name} to be a multiple of patch_size {self.patch_size},"
                    f" got {getattr(self, name)}"
                )

    @property
    def t(self) -> int:
        """Time slots."""
        return self.frames // self.tubelet_size

    @property
    def h(self) -> int:
        """Token rows."""
        return self.height // self.patch_size

    @property
    def w(self) -> int:
        """Token columns."""
        return self.width // self.patch_size

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of one time slot, `h*w`."""
        return self.h * self.w

    @property
    def num_tokens(self) -> int:
        """`N = t*h*w`."""
        return self.t * self.h * self.w

    @property
    def patch_dim(self) -> int:
        """`P = tubelet_size * patch_size**2 * channels`."""
        return self.tubelet_size * self.patch_size**2 * self.channels

    @property
    def clip_shape(self) -> tuple[int, int, int, int]:
        """`(C, T, H, W)`."""
        return self.channels, self.frames, self.height, self.width

    def describe(self) -> str:
        """For example `8x14x14 tokens of 2x16x16`."""
        return f"{self.t}x{self.h}x{self.w} tokens of {self.tubelet_size}x{self.patch_size}x{self.patch_size}"

    def check_video(self, video: Tensor) -> None:
        """Raise InputError unless `video` is uint8 or floating `[B, C, T, H, W]` of this grid's size."""
        if video.dim() != 5 or tuple(video.shape[1:]) != self.clip_shape or video.shape[0] < 1:
            c, t, h, w = self.clip_shape
            raise InputError(f"expected a video [B, {c}, {t}, {h}, {w}], got {list(video.shape)}")
        if video.dtype != torch.uint8 and not video.dtype.is_floating_point:
            raise InputError(
                f"expected a video of uint8 (0 to 255) or floating point (0 to 1), got {video.dtype}"
            )


def patchify(video: Tensor, grid: TokenGrid) -> Tensor:
    """Cut `video` [B, C, T, H, W] (any dtype) into tokens [B, N, P] of the same dtype.

    Raises InputError where the video's shape is not the grid's.
    """
    if video.dim() != 5 or tuple(video.shape[1:]) != grid.clip_shape:
        raise InputError(f"expected a video [B, {grid.clip_shape}], got {list(video.shape)}")
    b, s, p = video.shape[0], grid.tubelet_size, grid.patch_size
    x = video.reshape(b, grid.channels, grid.t, s, grid.h, p, grid.w, p)
    x = x.permute(0, 2, 4, 6, 3, 5, 7, 1)  # [B, t, h, w, p0, p1, p2, C]
    return x.reshape(b, grid.num_tokens, grid.patch_dim)


def unpatchify(tokens: Tensor, grid: TokenGrid) -> Tensor:
    """The inverse of `patchify`: [B, N, P] to [B, C, T, H, W]. Raises InputError on another shape."""
    if tokens.dim() != 3 or tuple(tokens.shape[1:]) != (grid.num_tokens, grid.patch_dim):
        raise InputError(
            f"expected tokens [B, {grid.num_tokens}, {grid.patch_dim}], got {list(tokens.shape)}"
        )
    b, s, p = tokens.shape[0], grid.tubelet_size, grid.patch_size
    x = tokens.reshape(b, grid.t, grid.h, grid.w, s, p, p, grid.channels)
    x = x.permute(0, 7, 1, 4, 2, 5, 3, 6)  # [B, C, t, p0, h, p1, w, p2]
    return x.reshape(b, *grid.clip_shape)
