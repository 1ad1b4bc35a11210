"""The built-in data set: what is written, that it repairs itself, and that only motion tells the class."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from vmae.core.errors import InputError
from vmae.core.video import demo_data
from vmae.core.video.demo_data import CLASSES, DemoDataConfig, clip_frames, make_demo_data

CHANCE = 1 / len(CLASSES)
ROOT = Path(__file__).resolve().parents[3]


def _make(out: Path, **changes: object) -> demo_data.DemoDataSummary:
    options = {"clips_per_class": 2, "size": 32, "seconds": 0.5, "workers": 1, "progress": "silent"} | changes
    return make_demo_data(out, **options)  # type: ignore[arg-type]


def _assert_shows(path: Path, split: str, label: int) -> None:
    """The file of `_make`'s first clip of a class decodes to the frames that were rendered."""
    with av.open(str(path)) as container:
        frames = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    expected = clip_frames(0, split, label, 0, size=32, frames=8)
    assert frames.shape == expected.shape
    assert np.abs(frames.astype(int) - expected).mean() < 8  # chroma has half the resolution


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    _make(out)
    return out


def test_the_default_holds_what_is_promised() -> None:
    config = DemoDataConfig()
    assert len(CLASSES) >= 10
    assert config.clips_per_class >= 60
    assert config.size >= 112
    assert config.frames / config.fps == pytest.approx(2.0)
    assert config.clips("train") + config.clips("val") == config.clips_per_class


def test_same_arguments_give_the_same_pixels_and_each_argument_counts() -> None:
    clip = clip_frames(0, "train", 3, 5, size=32, frames=6)
    assert clip.shape == (6, 32, 32, 3)
    assert clip.dtype == np.uint8
    np.testing.assert_array_equal(clip, clip_frames(0, "train", 3, 5, size=32, frames=6))
    for other in ((1, "train", 3, 5), (0, "val", 3, 5), (0, "train", 4, 5), (0, "train", 3, 6)):
        assert np.abs(clip.astype(int) - clip_frames(*other, size=32, frames=6)).mean() > 5


def test_same_arguments_give_the_same_pixels_in_another_process() -> None:
    code = (
        "from vmae.core.video.demo_data import clip_frames; import hashlib, sys;"
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


def test_files_are_h264_and_show_the_rendered_frames(small: Path) -> None:
    path, label = (small / "val.csv").read_text().splitlines()[5].rsplit(" ", 1)
    with av.open(str(small / path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert float(stream.average_rate or 0) == DemoDataConfig.fps
    _assert_shows(small / path, "val", int(label))


def test_csv_files_and_class_names(small: Path) -> None:
    assert tuple((small / "classes.txt").read_text().split()) == CLASSES
    listed = []
    for split in ("train", "val"):
        rows = [line.rsplit(" ", 1) for line in (small / f"{split}.csv").read_text().splitlines()]
        assert sorted(int(label) for _, label in rows) == list(range(len(CLASSES)))
        for path, label in rows:
            assert path.startswith(f"{split}/{CLASSES[int(label)]}_")
        listed += [path for path, _ in rows]
    assert sorted(listed) == sorted(str(p.relative_to(small)) for p in small.glob("*/*"))


def test_a_second_run_makes_nothing_and_a_third_repairs(tmp_path: Path) -> None:
    first = _make(tmp_path)
    assert first.made == first.train + first.val == 2 * len(CLASSES)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert _make(tmp_path).made == 0
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}

    lost = tmp_path / "train" / f"{CLASSES[0]}_0000.mp4"
    cut = tmp_path / "val" / f"{CLASSES[1]}_0000.mp4"
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:100])
    (tmp_path / "val.csv").unlink()
    assert _make(tmp_path).made == 2
    _assert_shows(lost, "train", 0)
    _assert_shows(cut, "val", 1)
    assert (tmp_path / "val.csv").is_file()


def test_processes_write_what_one_process_writes(tmp_path: Path, small: Path) -> None:
    assert _make(tmp_path, workers=2).made == 2 * len(CLASSES)
    names = [{str(p.relative_to(folder)) for p in folder.rglob("*")} for folder in (small, tmp_path)]
    assert names[0] == names[1]
    for label, name in enumerate(CLASSES):
        _assert_shows(tmp_path / "train" / f"{name}_0000.mp4", "train", label)


def test_a_killed_run_leaves_no_half_written_file_and_the_next_completes_it(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    code = (
        "from vmae.core.video.demo_data import make_demo_data; import sys;"
        "make_demo_data(sys.argv[1], clips_per_class=200, size=32, seconds=0.5, workers=1, progress='silent')"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code, str(out)], env=env)
    deadline = time.monotonic() + 30
    while len(list(out.glob("train/*.mp4"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    made = list(out.glob("*/*.mp4"))
    assert len(made) >= 3
    for path in made:
        with av.open(str(path)) as container:
            assert sum(1 for _ in container.decode(video=0)) == 8
    assert not (out / "train.csv").exists()  # its presence would say that the set is complete

    # What is there counts, also for the run that finishes the job; a stray part is swept up.
    (out / "train" / ".x.mp4.1234.part").write_bytes(b"half")
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["config"]["clips_per_class"] = 2
    (out / "manifest.json").write_text(json.dumps(manifest))
    first = out / "train" / f"{CLASSES[0]}_0000.mp4"
    stamp = first.stat().st_mtime_ns
    assert _make(out).made < 2 * len(CLASSES)
    assert first.stat().st_mtime_ns == stamp
    assert not list(out.rglob("*.part"))


def test_another_data_set_is_not_mixed_in(tmp_path: Path, small: Path) -> None:
    with pytest.raises(InputError, match="'seed': 0"):
        _make(small, seed=1)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="expected an empty folder"):
        _make(tmp_path)
    with pytest.raises(InputError, match="expected a folder, found a file"):
        _make(tmp_path / "thesis.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_overwrite_replaces_another_configuration(tmp_path: Path) -> None:
    _make(tmp_path, clips_per_class=3)
    assert _make(tmp_path, seed=1, overwrite=True).made == 2 * len(CLASSES)
    assert len(list(tmp_path.glob("*/*.mp4"))) == 2 * len(CLASSES)
    assert _make(tmp_path, seed=1).made == 0


@pytest.mark.parametrize(
    "changes",
    [{"clips_per_class": 1}, {"size": 33}, {"size": 16}, {"seconds": 0.01}, {"seed": -1}, {"workers": 0}],
)
def test_values_out_of_range(tmp_path: Path, changes: dict[str, float]) -> None:
    with pytest.raises(InputError, match="expected"):
        _make(tmp_path / "demo", **changes)
    assert not (tmp_path / "demo").exists()


# --- the class is the motion ------------------------------------------------------------------------


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
    ways = [(coordinate, direction) for coordinate, direction, _, _ in demo_data.MOTIONS.values()]
    assert len(set(ways)) == len(CLASSES)
    assert {coordinate for coordinate, _ in ways} == set(demo_data.COORDINATES)


def test_fading_pictures_share_one_weight() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        copies = list(demo_data._copies(tuple(rng.uniform(0.8, 1.0, 4))))
        assert sum(weight for _, weight in copies) == pytest.approx(1.0)
    # Continuous where a coordinate jumps: just before 1 only the picture at 0 is left.
    (_, gone), (values, shown) = demo_data._copies((1 - 1e-9,))
    assert gone == pytest.approx(0, abs=1e-6)
    assert shown == pytest.approx(1, abs=1e-6)
    assert values[0] == pytest.approx(0, abs=1e-6)
