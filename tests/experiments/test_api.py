"""The public API: docs/api.md as it stands, and what it refuses."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vmae
from vmae.core.errors import InputError
from vmae.experiments import api

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def ran(tiny_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Where the page's examples ran, and the names that they left."""
    home = tmp_path_factory.mktemp("api")
    for file in tiny_videos.iterdir():
        shutil.copy(file, home / file.name)
    for name, video in (("a.mp4", "00.mp4"), ("b.mp4", "01.mp4")):
        shutil.copy(home / video, home / name)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(), flags=re.S)
    assert len(blocks) == 7
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.delenv("VMAE_RUNS", raising=False)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for block in blocks:
            exec(compile(block, "docs/api.md", "exec"), names)
    return home, names


def test_the_page_s_examples_run(ran: tuple[Path, dict[str, Any]]) -> None:
    home, names = ran
    assert names["x"].shape == (2, 32)
    assert names["x"].dtype == np.float32
    assert names["views"].shape == (1, 6, 32)
    assert names["by_time"].shape[1] % 32 == 0
    assert names["made"].original.shape[0] == 1
    assert (home / "reconstruction.png").read_bytes().startswith(b"\x89PNG")
    assert set(names["table"]["name"]) == {"my_run"}
    assert (names["table"]["minutes"] > 0).all()


def test_an_array_is_the_file_it_was_decoded_from(ran: tuple[Path, dict[str, Any]]) -> None:
    from vmae.core.video.probe_store import cached_info
    from vmae.core.video.reader import read_clip

    home, names = ran
    path, model = str(home / "a.mp4"), names["model"]
    frames = read_clip(path, np.arange(cached_info(path).num_frames))
    from_file = model.features(path, segments=2)
    assert model.features(frames, segments=2) == pytest.approx(from_file, abs=1e-5)
    both = model.features([frames, path])
    assert both[0] == pytest.approx(both[1], abs=1e-5)
    by_file, by_array = (model.reconstruct(v, ratio=0.5) for v in (path, frames))
    assert (by_file.model_only == by_array.model_only).all()
    clip = frames[2:10]
    assert (model.reconstruct(clip).original[0] == clip).all(), "a clip is taken as it is"
    assert model.features(clip / 255.0) == pytest.approx(model.features(clip), abs=1e-5)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.zeros((8, 32, 32), np.uint8), r"\[T, H, W, C\]"),
        (np.zeros((8, 3, 32, 32), np.uint8), r"\[T, H, W, C\]"),
        (np.full((8, 32, 32, 3), 200.0), r"in \[0, 1\], got 200 to 200"),
        (np.full((8, 32, 32, 3), np.nan), "got nan"),
        (np.zeros((8, 32, 32, 3), np.int64), "got int64"),
    ],
)
def test_arrays_that_are_no_clips_are_refused(array: np.ndarray, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        api.clip_of(array)


def test_what_a_model_cannot_do_is_said(ran: tuple[Path, dict[str, Any]]) -> None:
    home, names = ran
    with pytest.raises(InputError, match="whose decoder predicts pixels"):
        names["classifier"].reconstruct(str(home / "a.mp4"))
    with pytest.raises(InputError, match="a fine-tuned classifier"):
        names["model"].predict(str(home / "a.mp4"))
    with pytest.raises(InputError, match="did you mean 'my_run'"):
        vmae.load("my_rum", runs_dir=home / "runs")
    assert names["classifier"].features(str(home / "a.mp4"), pooling="tokens").ndim == 3


def test_import_loads_nothing_heavy() -> None:
    code = "import sys, vmae; print([m for m in ('torch', 'numpy', 'ray', 'mlflow') if m in sys.modules]); "
    code += "print(sorted(set(vmae.__all__) - set(dir(vmae)))); vmae.load; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:3] == ["[]", "[]", "True"]
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        vmae.laod  # noqa: B018
