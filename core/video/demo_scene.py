"""The built-in data set's scene: a clip whose class is the motion, and nothing but the motion.

**The scene.** Every clip shows one pair of textured objects on a textured background that drifts, seen by a
camera that shakes. What a frame shows is decided by appearance (colours, textures, shapes, sizes, the
direction in which the pair is spread: drawn once for the clip) and by a *state* of seven coordinates:

    x, y      where the pair is              spread    how far apart the two objects are
    zoom      how large they are             angle     how far each has turned about itself
    orbit     the place on a small circle    bounce    the place in an up-and-down swing

**Why a single frame cannot give the class away.** Each coordinate lives on a circle of length 1, starts
uniformly distributed and independent of the rest, and a class only turns one of them, at a speed drawn for
the clip (`MOTIONS`). A uniform point on a circle that is turned is still uniform: at every frame index the
distribution of frames is *exactly* the same for every class. Coordinates that are not periodic by nature (x,
y, spread, zoom) run from one end of their range to the other; just before the far end the picture fades into
the one at the near end (objects that leave are followed by ones that arrive). The tests show a single-frame
baseline at chance and a simple motion baseline far above it.

**Randomness.** A clip is a function of (seed, split, label, index) alone, through one NumPy generator seeded
with those four numbers, so train and val never share a seed. Lengths are fractions of the clip's size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

COORDINATES = ("x", "y", "spread", "zoom", "angle", "orbit", "bounce")
# class -> (coordinate it turns, direction, slowest and fastest, in turns of that coordinate a clip).
# Direction 0: either way, drawn for the clip. The label is the position in this table.
MOTIONS: dict[str, tuple[str, int, float, float]] = {
    "translate_left": ("x", -1, 0.8, 1.3),
    "translate_right": ("x", +1, 0.8, 1.3),
    "translate_up": ("y", -1, 0.8, 1.3),
    "translate_down": ("y", +1, 0.8, 1.3),
    "rotate_cw": ("angle", +1, 0.4, 0.8),
    "rotate_ccw": ("angle", -1, 0.4, 0.8),
    "approach": ("zoom", +1, 0.8, 1.2),
    "recede": ("zoom", -1, 0.8, 1.2),
    "meet": ("spread", -1, 0.8, 1.2),
    "part": ("spread", +1, 0.8, 1.2),
    "orbit": ("orbit", 0, 0.9, 1.4),
    "bounce": ("bounce", 0, 1.4, 2.2),
}
CLASSES = tuple(MOTIONS)
SPLITS = ("train", "val")
FORMAT = 1  # of the pixels: raised whenever the same seed gives others

# Ranges of the coordinates, in units of the clip's size (zoom: factor on the objects' diameter).
X_RANGE = Y_RANGE = (0.18, 0.82)
SPREAD_RANGE = (0.34, 0.86)  # between the two centres
ZOOM_RANGE = (0.65, 1.55)  # traversed evenly in the logarithm
ORBIT_RADIUS = (0.10, 0.16)
BOUNCE_HEIGHT = (0.10, 0.16)  # from the middle of the swing
FADE = 0.03  # the share of a range over which its far end gives way to the near end
DIAMETER = (0.52, 0.66)
BACKGROUND_GRAIN = 0.5  # the width of a blob of background texture
OBJECT_GRAIN = 0.45
DRIFT = 0.15  # of the background over a clip, at most
SHAKE = 0.02  # of the camera, at most
NUISANCE_TURN = 0.04  # turns of x, y and angle over a clip that every class may show

SPRITE = 96  # pixels of an object's picture before it is scaled into a frame


def clip_frames(
    seed: int, split: str, label: int, index: int, *, size: int = 112, frames: int = 32
) -> np.ndarray:
    """Render one clip: uint8 RGB `[T, H, W, 3]` with H = W = `size`.

    `split` is "train" or "val", `label` a position in `CLASSES`. The same arguments give the same pixels.
    """
    import cv2

    rng = np.random.default_rng([seed, SPLITS.index(split), label, index])
    start = rng.random(len(COORDINATES))
    turned, direction, slowest, fastest = MOTIONS[CLASSES[label]]
    turns = np.zeros(len(COORDINATES))
    for name in ("x", "y", "angle"):
        turns[COORDINATES.index(name)] = rng.uniform(-NUISANCE_TURN, NUISANCE_TURN)
    turns[COORDINATES.index(turned)] = (direction or rng.choice([-1, 1])) * rng.uniform(slowest, fastest)
    time = np.linspace(0.0, 1.0, frames)
    states = (start + time[:, None] * turns) % 1.0  # [T, 7]

    background, sprites = _appearance(rng, size)
    spread_direction = 2 * np.pi * rng.random()
    radius, height = rng.uniform(*ORBIT_RADIUS), rng.uniform(*BOUNCE_HEIGHT)
    diameters = rng.uniform(*DIAMETER, size=2)
    facing = rng.random(2)  # turns
    shake = SHAKE * _smooth_walk(rng, frames)  # [T, 2]
    heading = 2 * np.pi * rng.random()
    drift = DRIFT * rng.random() * (time[:, None] - 0.5) * [np.cos(heading), np.sin(heading)]  # [T, 2]

    clip = np.empty((frames, size, size, 3), np.uint8)
    for t, (x, y, spread, zoom, angle, orbit, bounce) in enumerate(states):
        margin = (background.shape[0] - size) / 2
        dx, dy = margin + size * (drift[t] + shake[t])
        view = np.array([[1, 0, dx], [0, 1, dy]])
        frame = cv2.warpAffine(background, view, (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        offset = shake[t] * -1 + radius * np.array([np.cos(2 * np.pi * orbit), np.sin(2 * np.pi * orbit)])
        offset[1] += height * np.cos(2 * np.pi * bounce)
        for (px, py, apart, scale), weight in _copies((x, y, spread, zoom)):
            middle = np.array([_between(X_RANGE, px), _between(Y_RANGE, py)]) + offset
            half = (
                _between(SPREAD_RANGE, apart)
                / 2
                * np.array([np.cos(spread_direction), np.sin(spread_direction)])
            )
            factor = float(np.exp(_between(np.log(ZOOM_RANGE), scale)))
            for k, side in enumerate((-1, 1)):
                draw_sprite(
                    frame,
                    sprites[k],
                    centre=size * (middle + side * half),
                    diameter=size * diameters[k] * factor,
                    turn=facing[k] + angle,
                    weight=weight,
                )
        clip[t] = np.clip(frame, 0, 255).round()
    return clip


def _between(ends: Any, share: float) -> float:
    return float(ends[0] + (ends[1] - ends[0]) * share)


def _copies(state: tuple[float, ...]) -> Iterator[tuple[list[float], float]]:
    """The pictures to draw for coordinates that jump at 1: their values and how strongly each shows."""
    variants: list[tuple[list[float], float]] = [([], 1.0)]
    for value in state:
        fade = max(0.0, (value - (1 - FADE)) / FADE)
        choices = [(value, 1 - fade)] + ([(value - 1, fade)] if fade else [])
        variants = [([*vs, v], w * u) for vs, w in variants for v, u in choices]
    yield from variants


def draw_sprite(
    frame: np.ndarray, sprite: np.ndarray, *, centre: np.ndarray, diameter: float, turn: float, weight: float
) -> None:
    """Blend a sprite (float32 `[S, S, 4]`, colour times alpha and alpha) into a float32 frame in place."""
    import cv2

    size = frame.shape[0]
    reach = 0.75 * diameter + 1  # half the diagonal of the sprite's square, and a pixel
    x0, y0 = (max(0, int(v - reach)) for v in centre)
    x1, y1 = (min(size, int(v + reach) + 2) for v in centre)
    if x0 >= x1 or y0 >= y1:
        return
    scale = diameter / sprite.shape[0]
    c, s = scale * np.cos(2 * np.pi * turn), scale * np.sin(2 * np.pi * turn)
    middle = (sprite.shape[0] - 1) / 2
    matrix = np.array(
        [
            [c, -s, centre[0] - x0 - c * middle + s * middle],
            [s, c, centre[1] - y0 - s * middle - c * middle],
        ]
    )
    patch = cv2.warpAffine(sprite, matrix, (x1 - x0, y1 - y0), flags=cv2.INTER_LINEAR)
    window = frame[y0:y1, x0:x1]
    window *= 1 - weight * patch[..., 3:]
    window += weight * patch[..., :3]


def _appearance(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Background float32 `[H', W', 3]` with a margin for drift and shake, and two sprites.

    Backgrounds are soft textures about mid-grey, objects much darker or much lighter than that: so a
    model learns in minutes what moves. (With backgrounds of any level the pre-training loss stayed at the
    target's variance for as long as the demo lasts: docs/demo_pilot.md.)
    """
    extent = 1 + 2 * (DRIFT + SHAKE)
    background = 255 * np.clip(
        0.5 + 0.1 * soft_noise(rng, round(extent * size), BACKGROUND_GRAIN / extent), 0, 1
    )
    return background.astype(np.float32), [make_sprite(rng) for _ in range(2)]


def make_sprite(rng: np.random.Generator) -> np.ndarray:
    """A textured object much darker or lighter than mid-grey, for `draw_sprite`: float32 `[S, S, 4]`."""
    level = rng.uniform(0.05, 0.2) if rng.random() < 0.5 else rng.uniform(0.8, 0.95)
    # A light and a dark half as well as blobs, so that turning shows.
    ramp = np.linspace(-1, 1, SPRITE, dtype=np.float32)[None, :, None]
    blobs = soft_noise(rng, SPRITE, OBJECT_GRAIN / DIAMETER[1])
    pixels = np.clip(level * _tint(rng, 0.3) + 0.3 * ramp + 0.08 * blobs, 0, 1)
    alpha = _shape(rng)[..., None]
    return np.concatenate([255 * pixels * alpha, alpha], axis=-1).astype(np.float32)


def _tint(rng: np.random.Generator, strength: float) -> np.ndarray:
    """A colour of mean about 1: float64 `[3]`."""
    hue = rng.random()
    return 1 + strength * np.cos(2 * np.pi * (hue + np.arange(3) / 3))


def soft_noise(rng: np.random.Generator, size: int, grain: float) -> np.ndarray:
    """Smooth noise of about unit amplitude, `[size, size, 3]`; `grain` is a blob's width over `size`."""
    import cv2

    n = max(2, round(1 / grain))
    coarse = rng.uniform(-1, 1, (n + 3, n + 3, 3)).astype(np.float32)
    step = size / n
    matrix = np.array([[1 / step, 0, 1 + rng.random()], [0, 1 / step, 1 + rng.random()]])
    return cv2.warpAffine(coarse, matrix, (size, size), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)


def _shape(rng: np.random.Generator) -> np.ndarray:
    """Coverage 0..1 of a random shape that a turn changes: float32 `[SPRITE, SPRITE]`."""
    import cv2

    big = 4 * SPRITE
    centre, r = big / 2, 0.48 * big
    canvas = np.zeros((big, big), np.uint8)
    kind = rng.integers(3)
    if kind == 0:  # an ellipse
        cv2.ellipse(
            canvas, (int(centre), int(centre)), (int(r), int(r * rng.uniform(0.5, 0.7))), 0, 0, 360, 255, -1
        )
    else:  # a rectangle, or an irregular polygon with three to five corners
        if kind == 1:
            w = rng.uniform(0.45, 0.6)
            corners = np.array([(-0.8, -w), (0.8, -w), (0.8, w), (-0.8, w)])
        else:
            n = int(rng.integers(3, 6))
            around = 2 * np.pi * (np.arange(n) + rng.uniform(-0.2, 0.2, n)) / n
            corners = np.stack([np.cos(around), np.sin(around)], 1) * rng.uniform(0.8, 1.0, (n, 1))
        cv2.fillPoly(canvas, [(centre + r * corners).astype(np.int32)], 255)
    return cv2.resize(canvas, (SPRITE, SPRITE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _smooth_walk(rng: np.random.Generator, frames: int) -> np.ndarray:
    """A shake of at most 1 in both axes: three sines of random frequency, phase and strength, `[T, 2]`."""
    time = np.linspace(0, 1, frames)[:, None, None]
    frequency, phase = rng.uniform(0.5, 4, (3, 2)), rng.random((3, 2))
    strength = rng.random() * rng.dirichlet(np.ones(3), 2).T
    return (strength * np.sin(2 * np.pi * (frequency * time + phase))).sum(1)
