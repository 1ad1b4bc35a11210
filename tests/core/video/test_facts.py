"""What a list is like, from real files."""

import dataclasses

import numpy as np
import pytest

from vmae.core.errors import InputError
from vmae.core.video.config import DataConfig
from vmae.core.video.facts import coverage, list_facts
from vmae.core.video.samples import Sample


def test_medians_counts_and_sides(tmp_path, make_video):
    samples = []
    for i, frames in enumerate((10, 20, 60)):
        path = make_video(tmp_path / f"{i}.mp4", frames=frames, size=(64, 96), fps=20)
        samples.append(Sample(path=str(path), label=2 * (i % 2)))
    samples.append(Sample(path=str(tmp_path / "gone.mp4"), label=-1))
    found = list_facts(samples, ["tick", "turn Left", "clockwise"])
    assert (found.videos, found.classes, found.class_counts) == (4, 3, (2, 1))
    assert (found.frames, found.fps, found.height, found.width) == (20, 20, 64, 96)
    assert found.seconds == 1.0
    assert found.chance == pytest.approx(1 / 3)
    assert found.largest_share == pytest.approx(2 / 3)
    assert found.sided() == ["turn Left", "clockwise"]
    with pytest.raises(InputError, match="expected readable videos; none of 1 tried is"):
        list_facts(samples[3:])


def test_a_list_without_labels_or_clock(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((12, 16, 16, 3), np.uint8))
    found = list_facts([Sample(path=str(tmp_path / "a.npy"), label=-1, start=2)])
    assert (found.classes, found.class_counts, found.chance, found.largest_share) == (0, (), 0.0, 0.0)
    assert found.frames == 10
    assert found.seconds == pytest.approx(0.4)  # 25 frames a second where a file has no clock


def test_coverage_counts_from_the_first_to_the_last_frame(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((58, 16, 16, 3), np.uint8))
    facts = list_facts([Sample(path=str(tmp_path / "a.npy"), label=0)])
    data = DataConfig(frames=8, sampling_rate=4)
    assert coverage(facts, data) == pytest.approx(29 / 58)
    assert coverage(facts, dataclasses.replace(data, sampling_rate=16)) == 1
    assert coverage(facts, dataclasses.replace(data, sampling="uniform")) == 1


def test_a_still_camera_is_told_from_a_moving_one(tmp_path):
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 255, (64, 64, 3), np.uint8)
    still = np.repeat(scene[None], 16, 0)
    for t in range(16):
        still[t, 20:28, 3 * t : 3 * t + 8] = 255
    np.save(tmp_path / "still.npy", still)
    np.save(tmp_path / "moving.npy", rng.integers(0, 255, (16, 64, 64, 3), np.uint8))
    np.save(tmp_path / "black.npy", np.zeros((16, 64, 64, 3), np.uint8))
    found = {
        n: list_facts([Sample(path=str(tmp_path / f"{n}.npy"), label=0)]).still for n in ("still", "moving")
    }
    assert found["still"] > 0.9
    assert found["moving"] == pytest.approx(1 / 8, abs=0.02)
    assert list_facts([Sample(path=str(tmp_path / "black.npy"), label=0)]).still == 0.0


def test_classes_that_the_picture_tells(tmp_path):
    rng = np.random.default_rng(0)
    samples = []
    for k in range(12):
        scene = np.full((16, 16, 3), (40, 200)[k % 2], np.uint8)
        noise = rng.integers(0, 30, (6, 16, 16, 3), np.uint8)
        np.save(tmp_path / f"{k}.npy", scene + noise)
        samples.append(Sample(path=str(tmp_path / f"{k}.npy"), label=k % 2))
    assert list_facts(samples).scene == 1
    shuffled = [Sample(path=s.path, label=k // 6) for k, s in enumerate(samples)]
    assert list_facts(shuffled).scene < 0.75
    assert list_facts([Sample(path=s.path, label=-1) for s in samples]).scene == 0


def test_what_hangs_is_passed_over(a_hang: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmae.core.video.facts.LIMIT_S", 0.5)
    assert list_facts(a_hang).videos == len(a_hang)
