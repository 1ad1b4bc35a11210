"""Untrimmed videos from the built-in generator: clips of an action joined with clips of none.

A clip shows one textured object on a soft background, in colours, size and place of its own. In a clip of an
action the object moves (`ACTIONS`), again and again from the start of its range; in a clip of background it
hardly does. A clip's look says nothing of which it is, and a cut parts two clips whatever they are.

The folder: `videos/ID.mp4`, `annotations.json` in the layout of THUMOS14 as ActionFormer reads it (subsets
`validation` to train on and `test`), and `trimmed/` with single clips, `train.csv`, `val.csv` and
`classes.txt`, on which an encoder can be fine-tuned first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vmae.core.errors import InputError
from vmae.core.files import replacing, write_text
from vmae.core.video.demo_data import encode_clip
from vmae.core.video.demo_scene import draw_sprite, make_sprite, soft_noise

# action -> (what changes, per second at least and at most)
ACTIONS: dict[str, tuple[str, float, float]] = {
    "move_left": ("x", -0.7, -0.45),
    "move_right": ("x", 0.45, 0.7),
    "move_up": ("y", -0.7, -0.45),
    "move_down": ("y", 0.45, 0.7),
    "grow": ("zoom", 0.8, 1.2),
    "shrink": ("zoom", -1.2, -0.8),
}
"""x and y in shares of the frame, zoom in the logarithm of the size."""
RANGES = {"x": (-0.2, 1.2), "y": (-0.2, 1.2), "zoom": (-0.7, 0.7)}
NUISANCE = 0.05
"""Of every coordinate a second, in any clip."""
DIAMETER = (0.34, 0.46)
PARTS = ("train", "test", "trimmed_train", "trimmed_val")


@dataclass(frozen=True, kw_only=True)
class DemoUntrimmedConfig:
    """What the set holds; lengths in seconds."""

    train_videos: int = 60
    test_videos: int = 20
    actions: tuple[int, int] = (3, 6)
    """Of a video, at least and at most."""
    action_s: tuple[float, float] = (1.5, 4.0)
    background_s: tuple[float, float] = (1.0, 3.0)
    trimmed_per_class: int = 100
    """Clips for the encoder, a fifth of them held out."""
    trimmed_s: float = 1.5
    size: int = 48
    fps: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("train_videos", "test_videos"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.size < 32 or self.size % 2:
            raise InputError(f"size: expected an even number of pixels from 32, got {self.size}")


def clip(rng: np.random.Generator, action: str | None, *, frames: int, size: int, fps: int) -> np.ndarray:
    """One clip, uint8 `[T, size, size, 3]`; `action` None: background."""
    ground = (255 * np.clip(0.5 + 0.1 * soft_noise(rng, size, 0.5), 0, 1)).astype(np.float32)
    sprite, diameter, turn = make_sprite(rng), rng.uniform(*DIAMETER), rng.random()
    change = {k: rng.uniform(-NUISANCE, NUISANCE) for k in RANGES}
    at = {"x": rng.uniform(0.3, 0.7), "y": rng.uniform(0.3, 0.7), "zoom": rng.uniform(-0.3, 0.3)}
    if action is not None:
        what, low, high = ACTIONS[action]
        change[what], at[what] = rng.uniform(low, high), rng.uniform(*RANGES[what])
    out = np.repeat(ground[None], frames, 0)
    for t, frame in enumerate(out):
        now = {
            k: low + (at[k] + change[k] * t / fps - low) % (high - low) for k, (low, high) in RANGES.items()
        }
        draw_sprite(
            frame,
            sprite,
            centre=size * np.array([now["x"], now["y"]]),
            diameter=size * diameter * float(np.exp(now["zoom"])),
            turn=turn,
            weight=1.0,
        )
    return np.clip(out, 0, 255).round().astype(np.uint8)


def untrimmed(config: DemoUntrimmedConfig, part: str, number: int) -> tuple[list[Any], list[int]]:
    """What follows what in a video: actions (None: background) and how many frames each has."""
    rng = np.random.default_rng([config.seed, 3000 + PARTS.index(part), number])
    actions = list(ACTIONS)

    def length(seconds: tuple[float, float]) -> int:
        return round(rng.uniform(*seconds) * config.fps)

    parts: list[Any] = [None]
    lengths = [length(config.background_s)]
    for _ in range(int(rng.integers(config.actions[0], config.actions[1] + 1))):
        parts.append(actions[int(rng.integers(len(actions)))])
        lengths.append(length(config.action_s))
        for _ in range(int(rng.integers(1, 3))):
            parts.append(None)
            lengths.append(length(config.background_s))
    return parts, lengths


def make_demo_untrimmed(
    out_dir: str | os.PathLike[str],
    config: DemoUntrimmedConfig | None = None,
    *,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Write the set under `out_dir`, or complete it; `progress` hears of every video. Returns the folder.

    Raises InputError where the folder holds a set of another configuration.
    """
    import cv2

    cv2.setNumThreads(1)
    config = config or DemoUntrimmedConfig()
    out = Path(out_dir)
    described = "".join(f"{k}: {v}\n" for k, v in asdict(config).items())
    note = out / "config.txt"
    if note.exists() and note.read_text() != described:
        raise InputError(f"{out}: expected a new folder or a set of this configuration, got another")
    for folder in ("videos", "trimmed/clips"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    write_text(note, described)
    database: dict[str, Any] = {}
    for part, subset, count in (
        ("train", "validation", config.train_videos),
        ("test", "test", config.test_videos),
    ):
        for number in range(count):
            name = f"{part}_{number:04d}"
            parts, lengths = untrimmed(config, part, number)
            _write(out / "videos" / f"{name}.mp4", config, part, number, parts, lengths)
            database[name] = {
                "subset": subset,
                "duration": sum(lengths) / config.fps,
                "fps": float(config.fps),
                "annotations": _segments(parts, lengths, config.fps),
            }
            if progress is not None:
                progress(1)
    _trimmed(out / "trimmed", config)
    write_text(out / "annotations.json", json.dumps({"version": "vmae demo", "database": database}, indent=1))
    return out


def _segments(parts: list[Any], lengths: list[int], fps: int) -> list[dict[str, Any]]:
    ends = np.cumsum(lengths)
    return [
        {
            "label": action,
            "segment": [(end - length) / fps, end / fps],
            "segment(frames)": [int(end - length), int(end)],
            "label_id": list(ACTIONS).index(action),
        }
        for action, length, end in zip(parts, lengths, ends.tolist(), strict=True)
        if action is not None
    ]


def _trimmed(out: Path, config: DemoUntrimmedConfig) -> None:
    lists: dict[str, list[str]] = {"train": [], "val": []}
    frames = round(config.trimmed_s * config.fps)
    for label, action in enumerate(ACTIONS):
        for number in range(config.trimmed_per_class):
            split = "val" if number % 5 == 4 else "train"
            file = out / "clips" / f"{action}_{number:04d}.mp4"
            key = label * config.trimmed_per_class + number
            _write(file, config, f"trimmed_{split}", key, [action], [frames])
            lists[split].append(f"clips/{file.name} {label}\n")
    for split, rows in lists.items():
        write_text(out / f"{split}.csv", "".join(rows))
    write_text(out / "classes.txt", "".join(f"{a}\n" for a in ACTIONS))


def _write(
    file: Path, config: DemoUntrimmedConfig, part: str, number: int, parts: list[Any], lengths: list[int]
) -> None:
    if file.exists():
        return
    rng = np.random.default_rng([config.seed, 4000 + PARTS.index(part), number])
    clips = [
        clip(rng, action, frames=n, size=config.size, fps=config.fps)
        for action, n in zip(parts, lengths, strict=True)
    ]
    with replacing(file) as half:
        encode_clip(half, np.concatenate(clips), config.fps)
