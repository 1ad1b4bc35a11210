"""RandAugment, colour jitter and random erasing on uint8 clips `[T, H, W, 3]`.

One draw per clip, so that a moving scene stays one scene. RandAugment follows the official `rand_augment.py`
(V1, from timm): the "increasing" set of 15 operations, each applied with probability 0.5, magnitudes on a
scale of 0 to 10. Its photometric operations equal PIL's to the grey level (colour, contrast, sharpness: to
one). Departures: applied to the cropped clip (official: to the whole frame before the crop), and geometry is
bilinear with a fill of grey 128.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vmae.core.errors import InputError

FILL = 128
# Of ImageNet, in grey levels: random erasing draws its noise in normalised units, as the official code.
_MEAN = np.array([0.485, 0.456, 0.406], np.float32) * 255
_STD = np.array([0.229, 0.224, 0.225], np.float32) * 255


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """`num_ops` random operations at a magnitude drawn from N(`magnitude`, `std`), kept in [0, 10].

    `increasing`: a larger magnitude always means a larger change (timm's `inc1`).
    """

    magnitude: float = 7.0
    num_ops: int = 4
    std: float = 0.5
    increasing: bool = True
    prob: float = 0.5

    @classmethod
    def parse(cls, text: str) -> RandAugment | None:
        """Read timm's grammar: `rand-m7-n4-mstd0.5-inc1` (`m` magnitude, `n` operations, `mstd` its
        deviation, `inc` 0 or 1, `p` probability of each operation), in any order; empty: None.

        Raises:
            InputError: another word, an unknown key, or a value out of range.
        """
        if not text:
            return None
        head, *parts = text.split("-")
        if head != "rand":
            raise InputError(f"rand_augment: expected e.g. rand-m7-n4-mstd0.5-inc1, got '{text}'")
        # timm's defaults where a key is absent.
        values: dict[str, float] = {"m": 10.0, "n": 2.0, "mstd": 0.0, "inc": 0.0, "p": 0.5}
        for part in parts:
            match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part)
            if match is None or match[1] not in values:
                raise InputError(
                    f"rand_augment: expected {', '.join(values)} with a number, got '{part}' in '{text}'"
                )
            values[match[1]] = float(match[2])
        if values["m"] > 10 or values["n"] < 1 or values["n"] % 1 or values["p"] > 1 or values["inc"] > 1:
            raise InputError(
                f"rand_augment: expected m <= 10, whole n >= 1, p <= 1, inc 0 or 1, got '{text}'"
            )
        return cls(
            magnitude=values["m"],
            num_ops=int(values["n"]),
            std=values["mstd"],
            increasing=bool(values["inc"]),
            prob=values["p"],
        )

    def __call__(self, clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A new clip, uint8 `[T, H, W, 3]` (the same object where no operation was drawn)."""
        for name in rng.choice(OPERATIONS, self.num_ops):
            if rng.random() > self.prob:
                continue
            level = self.magnitude if self.std == 0 else rng.normal(self.magnitude, self.std)
            level = min(max(float(level), 0.0), 10.0) / 10
            clip = apply_operation(
                str(name), clip, level, negate=rng.random() > 0.5, increasing=self.increasing
            )
        return clip


OPERATIONS = (
    "auto_contrast",
    "equalize",
    "invert",
    "rotate",
    "posterize",
    "solarize",
    "solarize_add",
    "color",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)


def apply_operation(
    name: str, clip: np.ndarray, level: float, *, negate: bool = False, increasing: bool = True
) -> np.ndarray:
    """One operation at `level` in [0, 1] on uint8 `[T, H, W, 3]`.

    `negate` turns the direction of a two-sided operation. Ranges (timm): rotation 30 degrees, shear 0.3,
    translation 0.45 of the side, enhancement factors 1 +- 0.9 (not increasing: 0.1 .. 1.9), posterize to
    4 .. 0 bits, solarize from 256 .. 0, solarize-add 0 .. 110.
    """
    signed = -level if negate else level
    height, width = clip.shape[1:3]
    factor = 1 + 0.9 * signed if increasing else 0.1 + 1.8 * level
    levels = np.arange(256)
    if name == "auto_contrast":
        return _per_frame_table(clip, _auto_contrast_table)
    if name == "equalize":
        return _per_frame_table(clip, _equalize_table)
    if name == "invert":
        return 255 - clip
    if name == "posterize":
        bits = 4 - int(level * 4) if increasing else int(level * 4)
        return clip & np.uint8(0xFF << (8 - bits) & 0xFF)
    if name == "solarize":
        threshold = 256 - int(level * 256) if increasing else int(level * 256)
        return _table(clip, np.where(levels < threshold, levels, 255 - levels))
    if name == "solarize_add":
        return _table(clip, np.where(levels < 128, np.minimum(255, levels + int(level * 110)), levels))
    if name == "brightness":
        return adjust_brightness(clip, factor)
    if name == "contrast":
        return adjust_contrast(clip, factor)
    if name == "color":
        return adjust_saturation(clip, factor)
    if name == "sharpness":
        return _sharpness(clip, factor)
    if name == "rotate":
        angle = math.radians(30 * signed)
        cos, sin = math.cos(angle), math.sin(angle)
        cx, cy = width / 2, height / 2
        # Output to input, about the centre, angle counter-clockwise as PIL's.
        return _affine(clip, (cos, -sin, cx - cos * cx + sin * cy, sin, cos, cy - sin * cx - cos * cy))
    if name == "shear_x":
        return _affine(clip, (1, 0.3 * signed, 0, 0, 1, 0))
    if name == "shear_y":
        return _affine(clip, (1, 0, 0, 0.3 * signed, 1, 0))
    if name == "translate_x":
        return _affine(clip, (1, 0, 0.45 * signed * width, 0, 1, 0))
    if name == "translate_y":
        return _affine(clip, (1, 0, 0, 0, 1, 0.45 * signed * height))
    raise InputError(f"expected one of {', '.join(OPERATIONS)}, got '{name}'")


def adjust_brightness(clip: np.ndarray, factor: float) -> np.ndarray:
    """Blend with black: factor 0 is black, 1 the clip."""
    return _table(clip, _blend_table(0.0, factor))


def adjust_contrast(clip: np.ndarray, factor: float) -> np.ndarray:
    """Blend each frame with its mean grey, rounded to a grey level as PIL does."""
    out = np.empty(clip.shape, np.uint8)
    for frame, target in zip(clip, out, strict=True):
        mean = int(_grey(frame).mean() + 0.5)
        target[...] = _table(frame, _blend_table(mean, factor))
    return out


def adjust_saturation(clip: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the grey clip: factor 0 is grey, 1 the clip."""
    import cv2

    out = np.empty(clip.shape, np.uint8)
    for frame, target in zip(clip, out, strict=True):
        grey = _grey(frame)
        if 0 <= factor <= 1:
            # cv2 rounds, PIL cuts off: at most one grey level.
            cv2.addWeighted(frame, factor, cv2.merge((grey, grey, grey)), 1 - factor, 0, dst=target)
        else:
            g = grey[..., None].astype(np.float32)
            target[...] = np.clip(g + factor * (frame - g), 0, 255)
    return out


def color_jitter(clip: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast and saturation by factors in `1 +- strength`, in random order (torchvision's rule
    without hue)."""
    steps: list[Callable[[np.ndarray, float], np.ndarray]] = [
        adjust_brightness,
        adjust_contrast,
        adjust_saturation,
    ]
    for k in rng.permutation(3):
        clip = steps[k](clip, float(rng.uniform(max(0.0, 1 - strength), 1 + strength)))
    return clip


def random_erase(
    clip: np.ndarray,
    prob: float,
    rng: np.random.Generator,
    area: tuple[float, float] = (0.02, 1 / 3),
    min_aspect: float = 0.3,
) -> None:
    """With probability `prob`, fill one box of `clip` (the same in all frames) with noise, in place.

    Official: `RandomErasing(mode="pixel", cube=True, max_count=1)` (V1 random_erasing.py): N(0, 1) in
    normalised units for every pixel of every frame. Departure: grey levels outside 0..255 are cut off.
    """
    if rng.random() >= prob:
        return
    frames, height, width = clip.shape[:3]
    for _ in range(10):
        target = rng.uniform(*area) * height * width
        aspect = math.exp(rng.uniform(math.log(min_aspect), math.log(1 / min_aspect)))
        h, w = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < h < height and 0 < w < width:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            noise = rng.standard_normal((frames, h, w, 3), np.float32) * _STD + _MEAN
            clip[:, top : top + h, left : left + w] = np.clip(np.rint(noise), 0, 255)
            return


def _grey(frame: np.ndarray) -> np.ndarray:
    """ITU-R 601 grey, uint8 `[H, W]`; within one level of PIL's `L`."""
    import cv2

    return cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)


def _blend_table(anchor: float, factor: float) -> np.ndarray:
    return np.clip(anchor + factor * (np.arange(256) - anchor), 0, 255)


def _table(clip: np.ndarray, table: np.ndarray) -> np.ndarray:
    """`table[clip]` for 256 entries, one table for all or `[256, 3]`, one per channel."""
    import cv2

    flat = np.ascontiguousarray(clip).reshape(-1, clip.shape[-2], 3)
    columns = table.astype(np.uint8).reshape(1, 256, -1)
    return cv2.LUT(flat, columns).reshape(clip.shape)


def _per_frame_table(clip: np.ndarray, make: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Tables from the histogram of each frame and channel, as PIL's ImageOps."""
    import cv2

    out = np.empty(clip.shape, np.uint8)
    for frame, target in zip(clip, out, strict=True):
        histograms = [cv2.calcHist([frame], [c], None, [256], [0, 256]).reshape(-1) for c in range(3)]
        target[...] = _table(frame, np.stack([make(h.astype(np.int64)) for h in histograms], axis=-1))
    return out


def _auto_contrast_table(histogram: np.ndarray) -> np.ndarray:
    used = np.nonzero(histogram)[0]
    low, high = int(used[0]), int(used[-1])
    if high <= low:
        return np.arange(256)
    scale = 255.0 / (high - low)
    return np.clip((np.arange(256) * scale - low * scale).astype(np.int64), 0, 255)


def _equalize_table(histogram: np.ndarray) -> np.ndarray:
    used = histogram[histogram > 0]
    step = (int(histogram.sum()) - int(used[-1])) // 255
    if len(used) <= 1 or step == 0:
        return np.arange(256)
    before = np.concatenate([[0], np.cumsum(histogram)[:-1]])
    return np.clip((step // 2 + before) // step, 0, 255)


def _sharpness(clip: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the clip under PIL's SMOOTH filter (`[[1,1,1],[1,5,1],[1,1,1]] / 13`, edges kept)."""
    import cv2

    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
    out = np.empty(clip.shape, np.uint8)
    for frame, target in zip(clip, out, strict=True):
        smooth = frame.copy()
        smooth[1:-1, 1:-1] = cv2.filter2D(frame, -1, kernel)[1:-1, 1:-1]
        cv2.addWeighted(frame, factor, smooth, 1 - factor, 0, dst=target)
    return out


def _affine(clip: np.ndarray, inverse: tuple[float, ...]) -> np.ndarray:
    """Bilinear warp; `inverse` maps output pixel centres (x + 0.5, y + 0.5) to input ones, row by row."""
    import cv2

    a, b, c, d, e, f = inverse
    # cv2 counts pixels from their centres, PIL from their corners.
    matrix = np.array([[a, b, c + 0.5 * (a + b) - 0.5], [d, e, f + 0.5 * (d + e) - 0.5]])
    height, width = clip.shape[1:3]
    out = np.empty(clip.shape, np.uint8)
    for frame, target in zip(clip, out, strict=True):
        cv2.warpAffine(
            frame,
            matrix,
            (width, height),
            dst=target,
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(FILL, FILL, FILL),
        )
    return out
