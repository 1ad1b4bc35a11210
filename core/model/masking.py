"""Every mask type, drawn by a seeded generator, in one form: sorted indices. True = masked everywhere.

A type is one function `(config, grid, draws) -> bool [B, N]` that masks the same number of tokens in every
clip. `config` is the MaskConfig, `grid` the TokenGrid, `draws` gives random numbers for the batch's B clips.
It may ask for more by name: `video`, the clips as uint8 `[B, C, T, H, W]`, and parameters of its own, which
`mask.params` fills in. Here it is an entry of `MASKS`, with the unit that its ratio counts; a user's own is
named `module:function` in `mask.type`.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vmae.core.config import convert
from vmae.core.errors import InputError, nearest
from vmae.core.model.grid import TokenGrid
from vmae.core.named import is_object_name, load_object


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Which tokens the encoder does not see, and (VideoMAE V2) which tokens the decoder predicts."""

    type: str = "tube"
    """One of MASK_TYPES, or `module:function` of one's own (see the head of this file)."""
    ratio: float = 0.9
    """Share of masked tokens, between 0 and 1; the count is rounded down as published."""
    params: dict[str, Any] = field(default_factory=dict, hash=False)
    """Values of the parameters that the function of one's own has; an unknown one is an error."""
    decoder_type: str | None = None
    """None: all masked tokens are decoded (V1). "running_cell": dual masking (V2)."""
    decoder_ratio: float = 0.5
    """Share of positions left out by the decoder mask; 0 decodes all masked tokens, as V1 does."""

    def __post_init__(self) -> None:
        _check_type(self.type)
        _check_ratio(self.ratio)
        if self.params and self.type in MASKS:
            raise InputError(f"mask.params: {self.type} masks have none, got {', '.join(self.params)}")
        if self.decoder_type is not None:
            _check_type(self.decoder_type)
            if self.decoder_ratio != 0:
                _check_ratio(self.decoder_ratio)

    @property
    def decoder(self) -> MaskConfig | None:
        """The decoder's mask by itself, None where all masked tokens are decoded."""
        if self.decoder_type is None or self.decoder_ratio == 0:
            return None
        return MaskConfig(type=self.decoder_type, ratio=self.decoder_ratio)


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

    def to_bool(self) -> Tensor:
        """bool [B, N], True = masked."""
        shape = self.masked.shape[0], self.num_tokens
        out = torch.zeros(shape, dtype=torch.bool, device=self.masked.device)
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
    2x2 cell. A function of one's own is reckoned with `int(ratio * N)`; what it masks it decides itself.
    Departure: the product is formed exactly from the decimal ratio, so that 0.29 of 100 is 29
    (in floats it is 28); every published setting is unaffected.
    Raises InputError where nothing would be visible or nothing masked, with the counts.
    """
    _check_type(type)
    _check_ratio(ratio)
    units, unit_size, unit_name = MASKS[type].unit(grid) if type in MASKS else _token(grid)
    n_mask = int(Fraction(str(ratio)) * units) * unit_size
    n_vis = grid.num_tokens - n_mask
    if n_mask < 1 or n_vis < 1:
        raise InputError(
            f"mask ratio {ratio:g} of type {type} leaves {n_vis} visible and {n_mask} masked of"
            f" {grid.num_tokens} tokens ({grid.t}x{grid.h}x{grid.w}, masked by the {unit_name});"
            " expected at least one of each"
        )
    return n_vis, n_mask


class Draws:
    """Random numbers for the clips of a batch.

    They are drawn for all `total` clips of an optimiser step and those of the clips `rows` (int64; default:
    all) are kept, so that a clip's mask does not depend on how many processes share the step. `generator`
    decides the device; none: the CPU's default one.
    """

    def __init__(
        self, total: int, generator: torch.Generator | None = None, rows: Tensor | None = None
    ) -> None:
        if total < 1:
            raise InputError(f"expected a batch size of at least 1, got {total}")
        self.generator = torch.default_generator if generator is None else generator
        self.device = self.generator.device
        self.batch = total if rows is None else len(rows)
        """B, the clips that a mask is wanted for."""
        self._total, self._rows = total, rows

    def rand(self, *shape: int) -> Tensor:
        """float32 [B, *shape], uniform in [0, 1)."""
        return self._kept(torch.rand(self._total, *shape, generator=self.generator, device=self.device))

    def randint(self, high: int, *shape: int) -> Tensor:
        """int64 [B, *shape], uniform from 0 to `high - 1`."""
        size = (self._total, *shape)
        return self._kept(torch.randint(high, size, generator=self.generator, device=self.device))

    def choice(self, n: int, k: int) -> Tensor:
        """bool [B, n] with k random True in each row: the places of the k smallest of n numbers.

        Of equal numbers (once in a hundred thousand rows) the first counts as the smaller.
        """
        noise = self.rand(n)
        if not 0 < k < n:
            return torch.full((self.batch, n), k > 0, dtype=torch.bool, device=self.device)
        # A threshold costs a seventh of sorting the row.
        if k <= n - k:
            chosen = noise <= noise.topk(k, largest=False, sorted=False).values.amax(1, keepdim=True)
        else:
            chosen = noise < noise.topk(n - k, sorted=False).values.amin(1, keepdim=True)
        if self.device.type == "cpu":
            tied = (chosen.sum(1) != k).nonzero().flatten()
            order = noise[tied].argsort(dim=1, stable=True)
            chosen[tied] = torch.zeros(len(tied), n, dtype=torch.bool).scatter_(1, order[:, :k], True)
        return chosen

    def _kept(self, values: Tensor) -> Tensor:
        return values if self._rows is None else values[self._rows]


def sample_mask(
    type: str,
    ratio: float,
    grid: TokenGrid,
    batch_size: int,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> TokenMask:
    """Draw one mask of a type without parameters per clip.

    `device` is where the indices are wanted (default: the generator's). Same generator state, same masks.
    Raises InputError for an unknown type, or a ratio that leaves nothing visible or masked.
    """
    mask, _ = sample_masks(MaskConfig(type=type, ratio=ratio), grid, batch_size, generator)
    return mask if device is None else mask.to(device)


def sample_masks(
    config: MaskConfig,
    grid: TokenGrid,
    batch_size: int,
    generator: torch.Generator | None = None,
    *,
    rows: Tensor | None = None,
    video: Tensor | None = None,
) -> tuple[TokenMask, Tensor | None]:
    """The encoder's mask and the positions to decode, as `VideoMAE.forward` takes them.

    The second is None without a decoder mask (all masked tokens are decoded), or int64 [B, K]: every
    position that the decoder mask leaves, among them ones that the encoder sees, which are decoded but
    carry no weight in the loss (VideoMAE V2, arXiv 2303.16727 section 3.2). `rows` (int64; default: all) are
    the clips of the batch that masks are wanted for: the same ones whichever others are. `video` are those
    clips, uint8 [B, C, T, H, W], for a mask that looks at them.

    Raises InputError as `mask_counts` and `mask_function` do, and where a function of one's own gives
    something else than a mask with one count.
    """
    draws = Draws(batch_size, generator, rows)
    mask = _drawn(config, grid, draws, video)
    if config.decoder is None:
        return mask, None
    return mask, _drawn(config.decoder, grid, draws, video).visible


def _drawn(config: MaskConfig, grid: TokenGrid, draws: Draws, video: Tensor | None) -> TokenMask:
    if config.type in MASKS:
        return _from_bool(MASKS[config.type].draw(config, grid, draws), _n_mask(config, grid))
    function, params = mask_function(config)
    if "video" in inspect.signature(function).parameters:
        if video is None:
            raise InputError(f"mask.type: {config.type} looks at the video, and there is none here")
        params["video"] = video
    mask = function(config, grid, draws, **params)
    wanted = (draws.batch, grid.num_tokens)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) != wanted:
        got = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise InputError(f"mask.type: expected {config.type} to give bool {list(wanted)}, got {got}")
    try:
        return mask_from_bool(mask)
    except InputError as e:
        raise InputError(f"mask.type: {config.type}: {e}") from e


def mask_function(config: MaskConfig) -> tuple[Callable[..., Tensor], dict[str, Any]]:
    """The function `module:function` that `config.type` names, and its parameters from `config.params`.

    Raises InputError, one line: no such module or function, one that does not take (config, grid, draws), a
    parameter that it does not have (the nearest is named) or of another type than it is annotated with.
    """
    function = load_object(config.type, "mask.type")
    try:
        signature = inspect.signature(function)
        signature.bind_partial(config, None, None)
    except (TypeError, ValueError) as e:
        raise InputError(
            f"mask.type: expected {config.type} to be a function (config, grid, draws, ...), got {e}"
        ) from e
    known = [name for name in list(signature.parameters)[3:] if name != "video"]
    hints = typing.get_type_hints(function) if inspect.isfunction(function) else {}
    params = {}
    for name, value in config.params.items():
        if name not in known:
            raise InputError(
                f"mask.params: {config.type} has no parameter '{name}'{nearest(name, known)}; "
                f"it has {', '.join(known) or 'none'}"
            )
        params[name] = convert(hints[name], value, f"mask.params.{name}") if name in hints else value
    empty = inspect.Parameter.empty
    missing = [n for n in known if n not in params and signature.parameters[n].default is empty]
    if missing:
        raise InputError(f"mask.params: {config.type} needs a value for {', '.join(missing)}, got none")
    return function, params


def check_mask(config: MaskConfig, grid: TokenGrid) -> None:
    """Raise InputError where the masks of a run cannot be drawn: counts, a function of one's own."""
    for part in filter(None, (config, config.decoder)):
        mask_counts(part.type, part.ratio, grid)
        if part.type not in MASKS:
            mask_function(part)


def _from_bool(mask: Tensor, n_mask: int) -> TokenMask:
    if mask.device.type == "cpu":
        return TokenMask(_places(~mask), _places(mask))
    # A stable sort of the mask lists the visible positions, then the masked ones, each ascending, and needs
    # no count from the device.
    order = torch.argsort(mask.to(torch.uint8), dim=1, stable=True)
    n_vis = mask.shape[1] - n_mask
    return TokenMask(order[:, :n_vis].contiguous(), order[:, n_vis:].contiguous())


def _places(mask: Tensor) -> Tensor:
    """Where `mask` [B, N], with one count in all rows, is True: int64 [B, K], ascending."""
    flat = torch.from_numpy(np.flatnonzero(mask.numpy())).view(mask.shape[0], -1)
    return flat - torch.arange(0, mask.numel(), mask.shape[1])[:, None]


def _n_mask(config: MaskConfig, grid: TokenGrid) -> int:
    return mask_counts(config.type, config.ratio, grid)[1]


def _tube(config: MaskConfig, grid: TokenGrid, draws: Draws) -> Tensor:
    """The same positions in every time slot (VideoMAE, arXiv 2203.12602 section 3.3)."""
    return draws.choice(grid.tokens_per_frame, _n_mask(config, grid) // grid.t).repeat(1, grid.t)


def _random(config: MaskConfig, grid: TokenGrid, draws: Draws) -> Tensor:
    """Any positions (MAE-ST's space-time agnostic masking, arXiv 2205.09113)."""
    return draws.choice(grid.num_tokens, _n_mask(config, grid))


def _frame(config: MaskConfig, grid: TokenGrid, draws: Draws) -> Tensor:
    """Whole time slots."""
    slots = draws.choice(grid.t, _n_mask(config, grid) // grid.tokens_per_frame)
    return slots.repeat_interleave(grid.tokens_per_frame, dim=1)


def _causal(config: MaskConfig, grid: TokenGrid, draws: Draws) -> Tensor:
    """The last time slots: the future is predicted from the past. Nothing is drawn."""
    first = grid.num_tokens - _n_mask(config, grid)
    return (torch.arange(grid.num_tokens, device=draws.device) >= first).expand(draws.batch, -1)


_NUM_BLOCKS = 64


def _block(config: MaskConfig, grid: TokenGrid, draws: Draws) -> Tensor:
    """The union of random space-time boxes, cut to the exact count.

    Boxes are a quarter to a half of the grid along each spatial axis and any length in time. They are laid
    one after the other; tokens are masked in the order in which a box reaches them, in raster order within
    a box, so that only the last box is cut. Our own design: published block masks have no fixed count.
    """
    batch, device = draws.batch, draws.device
    inside = torch.ones(batch, _NUM_BLOCKS, 1, 1, 1, dtype=torch.bool, device=device)
    for axis, size in enumerate((grid.t, grid.h, grid.w)):
        low = 1 if axis == 0 else -(-size // 4)
        high = size if axis == 0 else -(-size // 2)
        length = (low + draws.rand(_NUM_BLOCKS) * (high - low + 1)).long().clamp_(max=high)
        # The start may lie outside the grid, so that the borders are covered as often as the middle.
        start = (draws.rand(_NUM_BLOCKS) * (size + length - 1)).long() - length + 1
        place = torch.arange(size, device=device)
        along = (place >= start[..., None]) & (place < (start + length)[..., None])  # [B, blocks, size]
        shape = [batch, _NUM_BLOCKS, 1, 1, 1]
        shape[2 + axis] = size
        inside = inside & along.reshape(shape)
    reached = inside.flatten(2)  # [B, blocks, N]
    first = torch.where(reached.any(1), reached.to(torch.uint8).argmax(1), _NUM_BLOCKS)
    order = torch.argsort(first, dim=1, stable=True)
    out = torch.zeros(batch, grid.num_tokens, dtype=torch.bool, device=device)
    return out.scatter_(1, order[:, : _n_mask(config, grid)], True)


def _running_cell(config: MaskConfig, grid: TokenGrid, draws: Draws) -> Tensor:
    """A 2x2 tile, its masked places moving one step per time slot, from one of 4 phases (VideoMAE V2)."""
    per_cell = _n_mask(config, grid) * 4 // grid.num_tokens
    phase = torch.arange(4, device=draws.device).reshape(-1, 1, 1, 1)
    slot = torch.arange(1, grid.t + 1, device=draws.device).reshape(1, -1, 1, 1)
    row = torch.arange(grid.h, device=draws.device).reshape(1, 1, -1, 1) % 2
    column = torch.arange(grid.w, device=draws.device).reshape(1, 1, 1, -1) % 2
    patterns = ((row * 2 + column + phase + slot) % 4 < per_cell).flatten(1)  # [4, N]
    return patterns[draws.randint(4)]


Unit = tuple[int, int, str]
"""How many units a ratio is taken of, tokens masked per unit, the unit's name."""


def _token(grid: TokenGrid) -> Unit:
    return grid.num_tokens, 1, "token"


def _slot(grid: TokenGrid) -> Unit:
    return grid.t, grid.tokens_per_frame, "time slot"


def _cell(grid: TokenGrid) -> Unit:
    if grid.h % 2 or grid.w % 2:
        raise InputError(
            "running_cell masks need an even number of token rows and columns,"
            f" got {grid.h}x{grid.w} ({grid.height}x{grid.width} pixels at patch {grid.patch_size})"
        )
    return 4, grid.num_tokens // 4, "quarter of a 2x2 cell"


@dataclass(frozen=True)
class MaskType:
    """How masks of a type are drawn, and what their ratio counts."""

    draw: Callable[[MaskConfig, TokenGrid, Draws], Tensor]
    unit: Callable[[TokenGrid], Unit] = _token


MASKS: dict[str, MaskType] = {
    "tube": MaskType(_tube, lambda grid: (grid.tokens_per_frame, grid.t, "tube")),
    "random": MaskType(_random),
    "frame": MaskType(_frame, _slot),
    "block": MaskType(_block),
    "causal": MaskType(_causal, _slot),
    "running_cell": MaskType(_running_cell, _cell),
}
MASK_TYPES = tuple(MASKS)


def _check_type(type: str) -> None:
    if type not in MASKS and not is_object_name(str(type)):
        raise InputError(
            f"expected a mask type among {', '.join(MASK_TYPES)} or module:function; got {type!r}"
            + nearest(str(type), MASK_TYPES)
        )


def _check_ratio(ratio: float) -> None:
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio < 1:
        raise InputError(f"expected a mask ratio between 0 and 1 (both excluded), got {ratio!r}")
