"""The built-in data set's scene: the same pixels everywhere, and only motion tells the class."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from vmae.core.video import demo_scene
from vmae.core.video.demo_scene import CLASSES, clip_frames

CHANCE = 1 / len(CLASSES)
ROOT = Path(__file__).resolve().parents[3]


def test_same_arguments_give_the_same_pixels_and_each_argument_counts() -> None:
    clip = clip_frames(0, "train", 3, 5, size=32, frames=6)
    assert clip.shape == (6, 32, 32, 3)
    assert clip.dtype == np.uint8
    np.testing.assert_array_equal(clip, clip_frames(0, "train", 3, 5, size=32, frames=6))
    for other in ((1, "train", 3, 5), (0, "val", 3, 5), (0, "train", 4, 5), (0, "train", 3, 6)):
        assert np.abs(clip.astype(int) - clip_frames(*other, size=32, frames=6)).mean() > 5


def test_same_arguments_give_the_same_pixels_in_another_process() -> None:
    code = (
        "from vmae.core.video.demo_scene import clip_frames; import hashlib, sys;"
        "sys.stdout.write(hashlib.sha256(clip_frames(7, 'val', 1, 2, size=64).tobytes()).hexdigest())"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    here = hashlib.sha256(clip_frames(7, "val", 1, 2, size=64).tobytes()).hexdigest()
    assert there.stdout == here


def test_the_clip_size_changes_the_resolution_not_the_scene() -> None:
    large = clip_frames(0, "train", 4, 0, size=128, frames=4)
    small = clip_frames(0, "train", 4, 0, size=64, frames=4)
    reduced = np.stack([cv2.resize(f, (64, 64), interpolation=cv2.INTER_AREA) for f in large])
    assert np.abs(reduced.astype(int) - small).mean() < 3


def _classify(train: np.ndarray, labels: np.ndarray, val: np.ndarray) -> np.ndarray:
    """Ridge regression on one-hot labels, features standardised; returns the predicted labels of `val`."""
    mean, std = train.mean(0), train.std(0) + 1e-6
    a, b = ((np.c_[(f - mean) / std, np.ones(len(f))]) for f in (train, val))
    weights = a.T @ np.linalg.solve(a @ a.T + 0.1 * len(a) * np.eye(len(a)), np.eye(len(CLASSES))[labels])
    return (b @ weights).argmax(1)


def _nearest(train: np.ndarray, labels: np.ndarray, val: np.ndarray) -> np.ndarray:
    distance = (val**2).sum(1)[:, None] + (train**2).sum(1) - 2 * val @ train.T
    return labels[distance.argmin(1)]


def _thumbnails(clips: np.ndarray, t: int) -> np.ndarray:
    """One frame a clip as 12 x 12 grey pixels, and its gradients' strength: float64 `[clips, 288]`."""
    features = []
    for clip in clips:
        grey = cv2.cvtColor(clip[t], cv2.COLOR_RGB2GRAY).astype(np.float32)
        edges = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
        small = [cv2.resize(x, (12, 12), interpolation=cv2.INTER_AREA).ravel() for x in (grey, edges)]
        features.append(np.concatenate(small))
    return np.float64(features)


def _flow_statistics(clips: np.ndarray) -> np.ndarray:
    """Optical flow between frames, reduced to its mean, energy, divergence and curl: `[clips, features]`."""
    features = []
    for clip in clips:
        small = [cv2.resize(frame, (32, 32), interpolation=cv2.INTER_AREA) for frame in clip]
        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in small]
        steps = []
        for before, after in itertools.pairwise(grey):
            flow = np.zeros((32, 32, 2), np.float32)
            cv2.calcOpticalFlowFarneback(before, after, flow, 0.5, 2, 9, 2, 5, 1.1, 0)
            u, v = flow[..., 0], flow[..., 1]
            speed = np.hypot(u, v)
            divergence = np.gradient(u, axis=1) + np.gradient(v, axis=0)
            curl = np.gradient(v, axis=1) - np.gradient(u, axis=0)
            values = [u, v, speed, u * u, v * v, np.abs(divergence), np.abs(curl)]
            values += [divergence * speed, curl * speed]
            steps.append([x.mean() for x in values])
        series = np.array(steps)
        features.append(np.concatenate([np.median(series, 0), series.std(0), np.abs(series).mean(0)]))
    return np.array(features)


def test_a_single_frame_does_not_give_the_class_away_but_motion_does() -> None:
    def render(split: str, clips: int) -> tuple[np.ndarray, np.ndarray]:
        pixels = [
            [clip_frames(0, split, label, i, size=48, frames=9) for i in range(clips)]
            for label in range(len(CLASSES))
        ]
        return np.concatenate(pixels), np.repeat(np.arange(len(CLASSES)), clips)

    train, labels = render("train", 50)
    val, truth = render("val", 30)
    spread = np.sqrt(CHANCE * (1 - CHANCE) / len(truth))
    for t in (0, 4, 8):
        for classify in (_classify, _nearest):
            accuracy = (classify(_thumbnails(train, t), labels, _thumbnails(val, t)) == truth).mean()
            assert accuracy < CHANCE + 4 * spread, f"frame {t}, {classify.__name__}: {accuracy:.3f}"
    motion = (_classify(_flow_statistics(train), labels, _flow_statistics(val)) == truth).mean()
    assert motion > 6 * CHANCE, f"{motion:.3f}"


def test_every_class_turns_its_own_coordinate_or_direction() -> None:
    ways = [(coordinate, direction) for coordinate, direction, _, _ in demo_scene.MOTIONS.values()]
    assert len(set(ways)) == len(CLASSES)
    assert {coordinate for coordinate, _ in ways} == set(demo_scene.COORDINATES)


def test_fading_pictures_share_one_weight() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        copies = list(demo_scene._copies(tuple(rng.uniform(0.8, 1.0, 4))))
        assert sum(weight for _, weight in copies) == pytest.approx(1.0)
    # Continuous where a coordinate jumps: just before 1 only the picture at 0 is left.
    (_, gone), (values, shown) = demo_scene._copies((1 - 1e-9,))
    assert gone == pytest.approx(0, abs=1e-6)
    assert shown == pytest.approx(1, abs=1e-6)
    assert values[0] == pytest.approx(0, abs=1e-6)
