"""Every mask type, sampled on the model's device by a seeded generator, in one form: sorted indices.

True = masked everywhere. A new type is one function `(grid, n_mask, batch_size, generator, device) ->
bool [B, N]` that masks exactly `n_mask` tokens of each clip, and one line in `_SAMPLERS`; its count is one
line in `_COUNT_UNITS` where it masks units larger than a token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from vmae.core.errors import InputError, nearest
from vmae.core.model.grid import TokenGrid


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Which tokens the encoder does not see, and (VideoMAE V2) which tokens the decoder predicts."""

    type: str = "tube"
    """One of MASK_TYPES."""
    ratio: float = 0.9
    """Share of masked tokens, between 0 and 1; the count is rounded down as published."""
    decoder_type: str | None = None
    """None: all masked tokens are decoded (V1). "running_cell": dual masking (V2)."""
    decoder_ratio: float = 0.5
    """Share of positions left out by the decoder mask; 0 decodes all masked tokens, as V1 does."""

    def __post_init__(self) -> None:
        _check_type(self.type)
        _check_ratio(self.ratio)
        if self.decoder_type is not None:
            _check_type(self.decoder_type)
            if self.decoder_ratio != 0:
                _check_ratio(self.decoder_ratio)


@dataclass(frozen=True)
class TokenMask:
    """A batch's mask as indices: `visible` int64 [B, N_vis] and `masked` int64 [B, N_mask], rows sorted.

    Raises InputError where the two are not int64 matrices of one batch size or one of them is empty.
    """

    visible: Tensor
    masked: Tensor

    def __post_init__(self) -> None:
        for name, value in (("visible", self.visible), ("masked", self.masked)):
            if value.dim() != 2 or value.dtype != torch.int64:
                raise InputError(
                    f"expected {name} indices int64 [B, K], got {value.dtype} {list(value.shape)}"
                )
        if self.visible.shape[0] != self.masked.shape[0]:
            raise InputError(
                f"expected one batch size for both, got visible {list(self.visible.shape)}"
                f" and masked {list(self.masked.shape)}"
            )
        if not self.visible.shape[1] or not self.masked.shape[1]:
            raise InputError(
                "expected at least one visible and one masked token,"
                f" got {self.visible.shape[1]} visible and {self.masked.shape[1]} masked"
            )

    @property
    def num_tokens(self) -> int:
        """`N = N_vis + N_mask`."""
        return self.visible.shape[1] + self.masked.shape[1]

    def to(self, device: torch.device | str) -> TokenMask:
        """The same mask on another device."""
        return TokenMask(
            self.visible.to(device, non_blocking=True), self.masked.to(device, non_blocking=True)
        )

    def to_bool(self, num_tokens: int | None = None) -> Tensor:
        """bool [B, N], True = masked."""
        n = self.num_tokens if num_tokens is None else num_tokens
        if n != self.num_tokens:
            raise InputError(f"expected a mask of {n} tokens, got one of {self.num_tokens}")
        out = torch.zeros(self.masked.shape[0], n, dtype=torch.bool, device=self.masked.device)
        return out.scatter_(1, self.masked, True)

    def __getitem__(self, rows: slice) -> TokenMask:
        """The mask of some clips of the batch."""
        return TokenMask(self.visible[rows], self.masked[rows])


def mask_from_bool(mask: Tensor) -> TokenMask:
    """Indices of `mask` bool [B, N] (True = masked).

    Raises InputError where clips of the batch mask different counts (the official code mixes their tokens
    silently), with the counts.
    """
    if mask.dim() != 2 or mask.dtype != torch.bool:
        raise InputError(f"expected a mask bool [B, N], got {mask.dtype} {list(mask.shape)}")
    counts = mask.sum(1).tolist()
    if len(set(counts)) != 1:
        raise InputError(f"expected the same number of masked tokens in every clip, got {counts}")
    return _from_bool(mask, counts[0])


def mask_counts(type: str, ratio: float, grid: TokenGrid) -> tuple[int, int]:
    """`(n_vis, n_mask)` of a mask type at a ratio on a grid.

    Published counts: tube masks `int(ratio * h*w)` tokens of a slot in all slots, random
    `int(ratio * N)`, frame and causal whole slots `int(ratio * t)`, running_cell `int(4 * ratio)` of every
    2x2 cell. Departure: the product is formed exactly from the decimal ratio, so that 0.29 of 100 is 29
    (in floats it is 28); every published setting is unaffected.
    Raises InputError where nothing would be visible or nothing masked, with the counts.
    """
    _check_type(type)
    _check_ratio(ratio)
    units, unit_size, unit_name = _count_unit(type, grid)
    n_mask = int(Fraction(str(ratio)) * units) * unit_size
    n_vis = grid.num_tokens - n_mask
    if n_mask < 1 or n_vis < 1:
        raise InputError(
            f"mask ratio {ratio:g} of type {type} leaves {n_vis} visible and {n_mask} masked of"
            f" {grid.num_tokens} tokens ({grid.t}x{grid.h}x{grid.w}, masked by the {unit_name});"
            " expected at least one of each"
        )
    return n_vis, n_mask


def sample_mask(
    type: str,
    ratio: float,
    grid: TokenGrid,
    batch_size: int,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> TokenMask:
    """Draw one mask per clip.

    `generator` must live on `device` (default: the generator's device, or the CPU). Same generator state,
    same masks. Raises InputError for an unknown type, or a ratio that leaves nothing visible or masked.
    """
    n_vis, n_mask = mask_counts(type, ratio, grid)
    if batch_size < 1:
        raise InputError(f"expected a batch size of at least 1, got {batch_size}")
    if device is None:
        device = generator.device if generator is not None else "cpu"
    mask = _SAMPLERS[type](grid, n_mask, batch_size, generator, torch.device(device))
    return _from_bool(mask, grid.num_tokens - n_vis)


def sample_masks(
    config: MaskConfig,
    grid: TokenGrid,
    batch_size: int,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> tuple[TokenMask, Tensor | None]:
    """The encoder's mask and the positions to decode, as `VideoMAE.forward` takes them.

    The second is None without a decoder mask (all masked tokens are decoded), or int64 [B, K]: every
    position that the decoder mask leaves, among them ones that the encoder sees, which are decoded but
    carry no weight in the loss (VideoMAE V2, arXiv 2303.16727 section 3.2).
    """
    mask = sample_mask(config.type, config.ratio, grid, batch_size, generator, device)
    if config.decoder_type is None or config.decoder_ratio == 0:
        return mask, None
    decoder = sample_mask(
        config.decoder_type, config.decoder_ratio, grid, batch_size, generator, mask.visible.device
    )
    return mask, decoder.visible


def _from_bool(mask: Tensor, n_mask: int) -> TokenMask:
    # A stable sort of the mask lists the visible positions, then the masked ones, each ascending, and needs
    # no count from the device.
    order = torch.argsort(mask.to(torch.uint8), dim=1, stable=True)
    n_vis = mask.shape[1] - n_mask
    return TokenMask(order[:, :n_vis].contiguous(), order[:, n_vis:].contiguous())


def _random_rows(
    batch: int, n: int, k: int, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """bool [B, n] with k random True in each row."""
    order = torch.rand(batch, n, generator=generator, device=device).argsort(dim=1)
    out = torch.zeros(batch, n, dtype=torch.bool, device=device)
    return out.scatter_(1, order[:, :k], True)


_Sampler = Callable[[TokenGrid, int, int, torch.Generator | None, torch.device], Tensor]


def _tube(
    grid: TokenGrid, n_mask: int, batch: int, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """The same positions in every time slot (VideoMAE, arXiv 2203.12602 section 3.3)."""
    frame = _random_rows(batch, grid.tokens_per_frame, n_mask // grid.t, generator, device)
    return frame.repeat(1, grid.t)


def _random(
    grid: TokenGrid, n_mask: int, batch: int, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """Any positions (MAE-ST's space-time agnostic masking, arXiv 2205.09113)."""
    return _random_rows(batch, grid.num_tokens, n_mask, generator, device)


def _frame(
    grid: TokenGrid, n_mask: int, batch: int, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """Whole time slots."""
    slots = _random_rows(batch, grid.t, n_mask // grid.tokens_per_frame, generator, device)
    return slots.repeat_interleave(grid.tokens_per_frame, dim=1)


def _causal(
    grid: TokenGrid, n_mask: int, batch: int, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """The last time slots: the future is predicted from the past. Nothing is drawn."""
    first = grid.num_tokens - n_mask
    return (torch.arange(grid.num_tokens, device=device) >= first).expand(batch, -1)


_NUM_BLOCKS = 64


def _block(
    grid: TokenGrid, n_mask: int, batch: int, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """The union of random space-time boxes, cut to the exact count.

    Boxes are a quarter to a half of the grid along each spatial axis and any length in time. They are laid
    one after the other; tokens are masked in the order in which a box reaches them, in raster order within
    a box, so that only the last box is cut. Our own design: published block masks have no fixed count.
    """
    sizes = (grid.t, grid.h, grid.w)
    inside = torch.ones(batch, _NUM_BLOCKS, 1, 1, 1, dtype=torch.bool, device=device)
    for axis, size in enumerate(sizes):
        low = 1 if axis == 0 else -(-size // 4)
        high = size if axis == 0 else -(-size // 2)
        draw = torch.rand(2, batch, _NUM_BLOCKS, generator=generator, device=device)
        length = (low + draw[0] * (high - low + 1)).long().clamp_(max=high)
        # The start may lie outside the grid, so that the borders are covered as often as the middle.
        start = (draw[1] * (size + length - 1)).long() - length + 1
        place = torch.arange(size, device=device)
        along = (place >= start[..., None]) & (place < (start + length)[..., None])  # [B, blocks, size]
        shape = [batch, _NUM_BLOCKS, 1, 1, 1]
        shape[2 + axis] = size
        inside = inside & along.reshape(shape)
    reached = inside.flatten(2)  # [B, blocks, N]
    first = torch.where(reached.any(1), reached.to(torch.uint8).argmax(1), _NUM_BLOCKS)
    order = torch.argsort(first, dim=1, stable=True)
    out = torch.zeros(batch, grid.num_tokens, dtype=torch.bool, device=device)
    return out.scatter_(1, order[:, :n_mask], True)


def _running_cell(
    grid: TokenGrid, n_mask: int, batch: int, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """A 2x2 tile, its masked places moving one step per time slot, from one of 4 phases (VideoMAE V2)."""
    per_cell = n_mask * 4 // grid.num_tokens
    phase = torch.randint(4, (batch, 1, 1, 1), generator=generator, device=device)
    slot = torch.arange(1, grid.t + 1, device=device).reshape(1, -1, 1, 1)
    row = torch.arange(grid.h, device=device).reshape(1, 1, -1, 1) % 2
    column = torch.arange(grid.w, device=device).reshape(1, 1, 1, -1) % 2
    return ((row * 2 + column + phase + slot) % 4 < per_cell).flatten(1)


_SAMPLERS: dict[str, _Sampler] = {
    "tube": _tube,
    "random": _random,
    "frame": _frame,
    "block": _block,
    "causal": _causal,
    "running_cell": _running_cell,
}
MASK_TYPES = tuple(_SAMPLERS)


def _count_unit(type: str, grid: TokenGrid) -> tuple[int, int, str]:
    """(number of units the ratio is taken of, tokens masked per unit, its name)."""
    if type == "tube":
        return grid.tokens_per_frame, grid.t, "tube"
    if type in ("frame", "causal"):
        return grid.t, grid.tokens_per_frame, "time slot"
    if type == "running_cell":
        if grid.h % 2 or grid.w % 2:
            raise InputError(
                "running_cell masks need an even number of token rows and columns,"
                f" got {grid.h}x{grid.w} ({grid.height}x{grid.width} pixels at patch {grid.patch_size})"
            )
        return 4, grid.num_tokens // 4, "quarter of a 2x2 cell"
    return grid.num_tokens, 1, "token"


def _check_type(type: str) -> None:
    if type not in MASK_TYPES:
        raise InputError(
            f"expected a mask type among {', '.join(MASK_TYPES)}; got {type!r}"
            + nearest(str(type), MASK_TYPES)
        )


def _check_ratio(ratio: float) -> None:
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio < 1:
        raise InputError(f"expected a mask ratio between 0 and 1 (both excluded), got {ratio!r}")
