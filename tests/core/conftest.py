"""A handful of small real videos, made once a session."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

CLASSES, PER_CLASS = 4, 6


@pytest.fixture(scope="session")
def tiny_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.csv (24 H.264 files) and val.csv (8 of them again), 4 classes of motion, 32x32.

    A bright bar moves left, right, up or down on noise; 12 frames each.
    """
    import av

    folder = tmp_path_factory.mktemp("tiny_videos")
    lines = []
    for i in range(CLASSES * PER_CLASS):
        label, rng = i % CLASSES, np.random.default_rng(i)
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
    (folder / "val.csv").write_text("\n".join(lines[: 2 * CLASSES]) + "\n")
    return folder
