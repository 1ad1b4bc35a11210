"""A miniature AVA from the built-in generator: films in which several objects move, each in its own way.

A film is a row of scenes; in the middle of each lies a key frame. A scene shows two or three textured objects
on a soft background, each with a box, one action, and for some a second of another kind (`ACTIONS`). At the
key frame an object's place, size and angle are drawn independently of what it does, and its motion passes
through them; so a key frame alone does not give an action away, and where an object is does not either.

The folder looks like AVA: `films/ID.mp4`, `train.csv` and `val.csv` (`video_id,timestamp,x1,y1,x2,y2,
action_id,person_id`), `labels.pbtxt`, and `people_val.csv`, proposals as a person detector leaves them: true
boxes a little off, some doubtful, and false ones.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from vmae.core.errors import InputError
from vmae.core.files import replacing, write_text
from vmae.core.video.demo_data import encode_clip
from vmae.core.video.demo_scene import SPLITS, draw_sprite, make_sprite, soft_noise

# action -> (what it changes, by how much over a scene at least and at most). The id is the place, from 1.
ACTIONS: dict[str, tuple[str, float, float]] = {
    "move_left": ("x", -0.7, -0.45),
    "move_right": ("x", 0.45, 0.7),
    "move_up": ("y", -0.7, -0.45),
    "move_down": ("y", 0.45, 0.7),
    "turn_cw": ("angle", 0.4, 0.8),
    "turn_ccw": ("angle", -0.8, -0.4),
    "grow": ("zoom", 0.8, 1.2),
    "shrink": ("zoom", -1.2, -0.8),
}
"""x, y in shares of the frame, angle in turns, zoom in the logarithm of the size."""
KINDS = {"x": "move", "y": "move", "angle": "turn", "zoom": "size"}
NUISANCE = {"x": 0.04, "y": 0.04, "angle": 0.03, "zoom": 0.05}
"""What every object does a little of."""
SECOND_ACTION = 0.3
"""Share of the objects that do two things."""
DIAMETER = (0.28, 0.38)
CELLS = ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75))


@dataclass(frozen=True, kw_only=True)
class DemoBoxesConfig:
    """What the set holds; `size` is the height and width in pixels."""

    train_films: int = 60
    val_films: int = 15
    scenes: int = 8
    """Of a film, each with a key frame in its middle."""
    size: int = 112
    seconds: float = 2.0
    """Of a scene."""
    fps: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("train_films", "val_films", "scenes"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.size < 32 or self.size % 2:
            raise InputError(f"size: expected an even number of pixels from 32, got {self.size}")
        if self.frames < 4:
            raise InputError(
                f"expected at least 4 frames a scene, got {self.seconds} s at {self.fps} a second"
            )

    @property
    def frames(self) -> int:
        """Of a scene."""
        return round(self.seconds * self.fps)


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """An object at the key frame: its box in shares of the frame, and the ids of its actions."""

    box: tuple[float, float, float, float]
    actions: tuple[int, ...]


def scene_frames(
    seed: int, split: str, film: int, scene: int, *, size: int = 112, frames: int = 32
) -> tuple[np.ndarray, list[SceneObject]]:
    """One scene, uint8 `[T, size, size, 3]`, and what is in its key frame (number `frames // 2`).

    The same arguments give the same pixels.
    """
    rng = np.random.default_rng([seed, 1000 + SPLITS.index(split), film, scene])
    background = (255 * np.clip(0.5 + 0.1 * soft_noise(rng, size, 0.5), 0, 1)).astype(np.float32)
    time = (np.arange(frames) - frames // 2) / frames
    cells = rng.permutation(len(CELLS))[: rng.integers(2, 4)]
    canvas = np.repeat(background[None], frames, 0)
    objects = []
    for cell in cells:
        sprite = make_sprite(rng)
        centre = np.array(CELLS[cell]) + rng.uniform(-0.07, 0.07, 2)
        diameter, angle = rng.uniform(*DIAMETER), rng.random()
        change = {k: rng.uniform(-v, v) for k, v in NUISANCE.items()}
        actions = _actions(rng)
        for action in actions:
            what, low, high = ACTIONS[list(ACTIONS)[action - 1]]
            change[what] = rng.uniform(low, high)
        for t, frame in zip(time, canvas, strict=True):
            draw_sprite(
                frame,
                sprite,
                centre=size * (centre + t * np.array([change["x"], change["y"]])),
                diameter=size * diameter * float(np.exp(t * change["zoom"])),
                turn=angle + t * change["angle"],
                weight=1.0,
            )
        objects.append(SceneObject(box=_box(sprite, centre, diameter, angle), actions=actions))
    return np.clip(canvas, 0, 255).round().astype(np.uint8), objects


def make_demo_boxes(
    out_dir: str | os.PathLike[str],
    config: DemoBoxesConfig | None = None,
    *,
    workers: int = 1,
) -> Path:
    """Write the set under `out_dir`, or complete it. Returns the folder.

    A film that is there is kept; `workers` processes make the others (1: this one). Raises InputError where
    the folder holds a set of another configuration.
    """
    config = config or DemoBoxesConfig()
    out = Path(out_dir)
    (out / "films").mkdir(parents=True, exist_ok=True)
    described = "".join(f"{k}: {v}\n" for k, v in asdict(config).items())
    note = out / "config.txt"
    if note.exists() and note.read_text() != described:
        raise InputError(f"{out}: expected a new folder or a set of this configuration, got another")
    write_text(note, described)
    jobs = [("train", k) for k in range(config.train_films)] + [("val", k) for k in range(config.val_films)]
    missing = [job for job in jobs if not _film(out, *job).exists()]
    _make_all(out, config, missing, workers)
    for split in SPLITS:
        rows, people = [], []
        for film in range(config.train_films if split == "train" else config.val_films):
            for scene in range(config.scenes):
                rows += _rows(config, split, film, scene)
                people += _proposals(config, split, film, scene)
        write_text(out / f"{split}.csv", "".join(rows))
        if split == "val":
            write_text(out / "people_val.csv", "".join(people))
    labels = (f'item {{\n  name: "{name}"\n  id: {k}\n}}\n' for k, name in enumerate(ACTIONS, 1))
    write_text(out / "labels.pbtxt", "".join(labels))
    return out


def _actions(rng: np.random.Generator) -> tuple[int, ...]:
    names = list(ACTIONS)
    first = int(rng.integers(len(names)))
    if rng.random() >= SECOND_ACTION:
        return (first + 1,)
    kind = KINDS[ACTIONS[names[first]][0]]
    others = [k for k, name in enumerate(names) if KINDS[ACTIONS[name][0]] != kind]
    return tuple(sorted((first + 1, others[int(rng.integers(len(others)))] + 1)))


def _box(
    sprite: np.ndarray, centre: np.ndarray, diameter: float, turn: float
) -> tuple[float, float, float, float]:
    """Around what `draw_sprite` paints, in shares, cut at the frame's edges."""
    middle = (sprite.shape[0] - 1) / 2
    points = np.argwhere(sprite[..., 3] > 0.5)[:, ::-1] - middle
    c, s = np.cos(2 * np.pi * turn), np.sin(2 * np.pi * turn)
    points = points @ np.array([[c, s], [-s, c]]) * diameter / sprite.shape[0] + centre
    (x1, y1), (x2, y2) = np.clip(points.min(0), 0, 1), np.clip(points.max(0), 0, 1)
    return round(float(x1), 3), round(float(y1), 3), round(float(x2), 3), round(float(y2), 3)


def _film(out: Path, split: str, film: int) -> Path:
    return out / "films" / f"{split}_{film:04d}.mp4"


def _make_all(out: Path, config: DemoBoxesConfig, jobs: list[tuple[str, int]], workers: int) -> None:
    if workers <= 1:
        for job in jobs:
            _make_film(out, config, *job)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(_make_film, out, config, *job) for job in jobs]):
            future.result()


def _make_film(out: Path, config: DemoBoxesConfig, split: str, film: int) -> None:
    import cv2

    cv2.setNumThreads(1)
    scenes = [
        scene_frames(config.seed, split, film, k, size=config.size, frames=config.frames)[0]
        for k in range(config.scenes)
    ]
    with replacing(_film(out, split, film)) as part:
        encode_clip(part, np.concatenate(scenes), config.fps)


def _time(config: DemoBoxesConfig, scene: int) -> str:
    second = (scene * config.frames + config.frames // 2) / config.fps
    return f"{second:04.0f}" if second.is_integer() else f"{second:g}"


def _objects(config: DemoBoxesConfig, split: str, film: int, scene: int) -> list[SceneObject]:
    return scene_frames(config.seed, split, film, scene, size=32, frames=2)[1]


def _rows(config: DemoBoxesConfig, split: str, film: int, scene: int) -> list[str]:
    name, time = _film(Path(), split, film).stem, _time(config, scene)
    return [
        f"{name},{time},{','.join(f'{v:.3f}' for v in found.box)},{action},{k}\n"
        for k, found in enumerate(_objects(config, split, film, scene))
        for action in found.actions
    ]


def _proposals(config: DemoBoxesConfig, split: str, film: int, scene: int) -> list[str]:
    rng = np.random.default_rng([config.seed, 2000 + SPLITS.index(split), film, scene])
    name, time = _film(Path(), split, film).stem, _time(config, scene)
    boxes = [np.array(found.box) for found in _objects(config, split, film, scene)]
    found = [(box + rng.uniform(-0.02, 0.02, 4), rng.uniform(0.82, 1.0)) for box in boxes]
    corner = rng.uniform(0, 0.6, 2)
    found.append((np.concatenate((corner, corner + rng.uniform(0.1, 0.4, 2))), rng.uniform(0.2, 0.85)))
    return [
        f"{name},{time},{','.join(f'{v:.3f}' for v in np.clip(box, 0, 1))},,{score:.3f}\n"
        for box, score in found
    ]
