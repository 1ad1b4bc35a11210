"""What the viewer shows, as one value: from a link's query parameters and back, every field checked.

A link carries ids and numbers only. Ids are looked up in the catalog's lists, numbers are held to ranges,
words to lists; what does not pass falls back to the default and is named to the user.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vmae.core.measure.reconstruct import FORMS
from vmae.core.model.masking import MASK_TYPES

RATIO_MIN, RATIO_MAX = 0.05, 0.98
SEED_MAX = 9999
START_MAX = 1_000_000
STRIDE_MAX = 16
COMPARE = ("none", "checkpoint", "ratio")
MAX_TOKENS = 16384


@dataclass(frozen=True, kw_only=True)
class ViewState:
    """One view. `hand` is a mask drawn by hand (see `pack_mask`), empty for the sampled one."""

    checkpoint: str = ""
    dataset: str = ""
    clip: int = 0
    mask: str = "tube"
    ratio: float = 0.9
    seed: int = 0
    start: int = -1
    """First frame; -1: the central clip."""
    stride: int = 1
    form: str = "as_trained"
    compare: str = "none"
    other: str = ""
    """The second checkpoint's id."""
    other_ratio: float = 0.75
    hand: str = ""


_WORDS = {"mask": MASK_TYPES, "form": FORMS, "compare": COMPARE}
_INTEGERS = {
    "clip": (0, 10_000_000),
    "seed": (0, SEED_MAX),
    "start": (-1, START_MAX),
    "stride": (1, STRIDE_MAX),
}
_RATIOS = ("ratio", "other_ratio")
_IDS = ("checkpoint", "dataset", "other")


def from_query(query: Mapping[str, str], default: ViewState) -> tuple[ViewState, list[str]]:
    """Read a link's parameters.

    Returns:
        the view, and one sentence for each parameter that was not taken.
    """
    values: dict[str, str | int | float] = {}
    refused: list[str] = []
    for field in dataclasses.fields(ViewState):
        name = field.name
        if name not in query:
            continue
        value = _parse(name, query[name])
        if value is None:
            refused.append(f"The link's '{name}' was left out: {_expected(name)}.")
        else:
            values[name] = value
    return dataclasses.replace(default, **values), refused  # type: ignore[arg-type]


def to_query(state: ViewState) -> dict[str, str]:
    """The parameters that restore a view; defaults are left out, except of those that name it."""
    always = ("checkpoint", "clip", "mask", "ratio", "seed", "stride")
    plain = ViewState()
    out: dict[str, str] = {}
    for field in dataclasses.fields(ViewState):
        value = getattr(state, field.name)
        if field.name in always or value != getattr(plain, field.name):
            out[field.name] = f"{value:g}" if isinstance(value, float) else str(value)
    return {k: v for k, v in out.items() if v != ""}


def pack_mask(mask: np.ndarray) -> str:
    """bool [N] as URL-safe text: the count, a dot, the bits in base64."""
    bits = base64.urlsafe_b64encode(np.packbits(mask).tobytes()).decode().rstrip("=")
    return f"{mask.size}.{bits}"


def unpack_mask(text: str) -> np.ndarray | None:
    """The inverse of `pack_mask`; None for anything else, and for masks without a visible or masked token."""
    count, dot, bits = text.partition(".")
    if not dot or not count.isascii() or not count.isdecimal() or len(count) > 6:
        return None
    n = int(count)
    if not 2 <= n <= MAX_TOKENS or len(bits) != -(-(-(-n // 8) * 4) // 3):
        return None
    try:
        raw = base64.b64decode(bits + "=" * (-len(bits) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    mask = np.unpackbits(np.frombuffer(raw, np.uint8))[:n].astype(bool)
    return mask if 0 < mask.sum() < n else None


def _parse(name: str, text: str) -> str | int | float | None:
    if name in _WORDS:
        return text if text in _WORDS[name] else None
    if name in _INTEGERS:
        low, high = _INTEGERS[name]
        body = text.removeprefix("-")
        if not (body.isascii() and body.isdecimal() and len(body) <= 8):
            return None
        return int(text) if low <= int(text) <= high else None
    if name in _RATIOS:
        try:
            value = round(float(text), 4)
        except ValueError:
            return None
        return value if RATIO_MIN <= value <= RATIO_MAX else None
    if name in _IDS:
        return text if len(text) <= 16 and text.isascii() and text.isalnum() else None
    return text if unpack_mask(text) is not None else None


def _expected(name: str) -> str:
    if name in _WORDS:
        return f"expected one of {', '.join(_WORDS[name])}"
    if name in _INTEGERS:
        return f"expected a whole number from {_INTEGERS[name][0]} to {_INTEGERS[name][1]}"
    if name in _RATIOS:
        return f"expected a ratio from {RATIO_MIN} to {RATIO_MAX}"
    if name in _IDS:
        return "expected an id of letters and digits"
    return "expected a mask as the viewer writes it, with something visible and something masked"
