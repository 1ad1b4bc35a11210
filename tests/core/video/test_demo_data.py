"""The built-in data set on disk: what is written, and that it repairs itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest

from vmae.core.errors import InputError
from vmae.core.files import TEMPORARY
from vmae.core.video.demo_data import DemoDataConfig, DemoDataSummary, make_demo_data
from vmae.core.video.demo_scene import CLASSES, clip_frames

ROOT = Path(__file__).resolve().parents[3]


def _make(out: Path, **changes: object) -> DemoDataSummary:
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
    (out / "train" / f".x.mp4.1234{TEMPORARY}").write_bytes(b"half")
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["config"]["clips_per_class"] = 2
    (out / "manifest.json").write_text(json.dumps(manifest))
    first = out / "train" / f"{CLASSES[0]}_0000.mp4"
    stamp = first.stat().st_mtime_ns
    assert _make(out).made < 2 * len(CLASSES)
    assert first.stat().st_mtime_ns == stamp
    assert not list(out.rglob(f"*{TEMPORARY}"))


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
