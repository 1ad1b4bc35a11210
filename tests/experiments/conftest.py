"""A miniature of the built-in data set, made once for all tests of runs and sweeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmae.core.video.demo_data import make_demo_data


@pytest.fixture(scope="session")
def mini_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.csv (48 clips of 12 classes) and val.csv (12), 48 x 48 pixels, 16 frames."""
    folder = tmp_path_factory.mktemp("mini")
    make_demo_data(
        folder, clips_per_class=5, size=48, seconds=1.0, fps=16, seed=3, workers=1, progress="silent"
    )
    return folder
