"""What every test shares: where the optional `../shared` folder is, and quiet, offline libraries."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_TRACKING_URI", "")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if not Path("/dev/nvidiactl").exists():
    # Triton decides when it is imported whether kernels are interpreted, so it is said here, before any test
    # module imports it. Tests that compile kernels run them in a process without this variable.
    os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder `../shared` beside the checkout; the test is skipped where it is absent."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("needs the folder ../shared beside the checkout, which is absent")
    return path


@pytest.fixture(scope="session")
def mini_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.csv (48 clips of 12 classes) and val.csv (12), 48 x 48 pixels, 16 frames."""
    from vmae.core.video.demo_data import make_demo_data

    folder = tmp_path_factory.mktemp("mini")
    make_demo_data(
        folder, clips_per_class=5, size=48, seconds=1.0, fps=16, seed=3, workers=1, progress="silent"
    )
    return folder


@pytest.fixture(scope="session")
def tiny_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.csv (24 H.264 files) and val.csv (8 of them again), 4 classes of motion, 32x32.

    A bright bar moves left, right, up or down on noise; 12 frames each.
    """
    import av
    import numpy as np

    folder = tmp_path_factory.mktemp("tiny_videos")
    lines = []
    for i in range(24):
        label, rng = i % 4, np.random.default_rng(i)
        path = folder / f"{i:02d}.mp4"
        base = np.kron(rng.integers(0, 120, (8, 8, 3)), np.ones((4, 4, 1))).astype(np.uint8)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=12)
            stream.width = stream.height = 32
            stream.pix_fmt = "yuv420p"
            start = int(rng.integers(32))
            for t in range(12):
                frame = base.copy()
                place = (start + (2 * t if label % 2 else -2 * t)) % 28
                if label < 2:
                    frame[:, place : place + 4] = 230
                else:
                    frame[place : place + 4] = 230
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        lines.append(f"{path.name} {label}")
    (folder / "train.csv").write_text("\n".join(lines) + "\n")
    (folder / "val.csv").write_text("\n".join(lines[:8]) + "\n")
    return folder
