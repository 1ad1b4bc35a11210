"""A real miniature store: small videos, two small checkpoints, a sweep of runs written by the tracker."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from vmae.core.checkpoint import save_model
from vmae.core.videomae import VideoMAE, VideoMAEConfig
from vmae.dashboard.settings import VARIABLE

RATIOS = (0.5, 0.75)
CLASSES = ("left", "right")


@dataclass(frozen=True)
class MiniStore:
    """Where the miniature store is."""

    runs_dir: Path
    csv: Path
    videos: list[Path]
    settings: str
    """The dashboard's settings as its environment variable holds them."""


def write_video(path: Path, *, seed: int, frames: int = 24, size: int = 48, right: bool = True) -> Path:
    """An H.264 file of a bright square that moves over a smooth background."""
    import av

    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    ground = np.stack([120 + 80 * np.sin(5 * (a * x + b * y)) for a, b in rng.uniform(-1, 1, (3, 2))], -1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for k in range(frames):
            picture = ground.clip(0, 255).astype(np.uint8)
            left = k * (size - 12) // frames if right else (frames - 1 - k) * (size - 12) // frames
            picture[size // 3 : size // 3 + 12, left : left + 12] = rng.integers(0, 255, 3)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def tiny_model(seed: int = 0, **overrides: object) -> VideoMAE:
    """A VideoMAE of 8 frames of 32x32 with a few thousand weights."""
    torch.manual_seed(seed)
    values: dict[str, object] = {
        "frames": 8,
        "height": 32,
        "width": 32,
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
        "decoder_embed_dim": 16,
        "decoder_depth": 1,
        "decoder_num_heads": 2,
    }
    return VideoMAE(VideoMAEConfig(**(values | overrides)))  # type: ignore[arg-type]


def make_store(home: Path) -> MiniStore:
    """Write everything below `home`."""
    from vmae.experiments.tracking import Tracker, store_at

    data = home / "data"
    data.mkdir(parents=True)
    videos = [write_video(data / f"clip {i}.mp4", seed=i, right=bool(i % 2)) for i in range(4)]
    csv = data / "val.csv"
    csv.write_text("".join(f"{v.name} {i % 2}\n" for i, v in enumerate(videos)))
    (data / "classes.txt").write_text("".join(f"{c}\n" for c in CLASSES))
    runs_dir = home / "runs"
    store = store_at(runs_dir)
    with Tracker(
        store,
        runs_dir / "sweeps" / "mini",
        name="mini",
        key="mini",
        kind="sweep",
        tags={"vmae.sweep": "masking_ratio"},
    ) as sweep:
        sweep.log_metrics({"probe/chance": 0.5}, 0)
    for i, ratio in enumerate(RATIOS):
        folder = runs_dir / "sweeps" / "mini" / f"ratio{ratio:g}"
        save_model(folder / "model", tiny_model(i), {"ratio": ratio})
        params = {"data.val_csv": str(csv), "mask.ratio": ratio, "mask.type": "tube", "optim.base_lr": 1e-3}
        with Tracker(
            store,
            folder,
            name=f"mini ratio {ratio:g}",
            key=f"mini-{ratio:g}",
            kind="trial",
            parent_key="mini",
            params=params,
            tags={"vmae.sweep": "masking_ratio", "vmae.checkpoint": str(folder / "model")},
        ) as run:
            for step in range(5):
                run.log_metrics({"pretrain/step_loss": 1 - 0.1 * step - 0.02 * i}, step)
                picture = np.full((16, 64, 3), 40 * step, np.uint8)
                run.log_image(picture, "reconstruction", step)
            run.log_metrics(
                {
                    "probe/top1": 0.6 + 0.2 * i,
                    "probe/chance": 0.5,
                    "eval/loss": 0.8 - 0.1 * i,
                    "pretrain/loss": 0.6,
                },
                5,
            )
    return described(home)


def described(home: Path) -> MiniStore:
    """What `make_store` wrote there."""
    runs_dir, data = home / "runs", home / "data"
    settings = json.dumps({"runs_dir": str(runs_dir), "checkpoints": [], "data": []})
    return MiniStore(runs_dir, data / "val.csv", sorted(data.glob("*.mp4")), settings)


@pytest.fixture(scope="session")
def mini(tmp_path_factory: pytest.TempPathFactory) -> MiniStore:
    """One store for all tests, which only read it; parallel test processes share it."""
    base = tmp_path_factory.getbasetemp()
    parallel = os.environ.get("PYTEST_XDIST_WORKER") is not None
    home = (base.parent if parallel else base) / "dashboard-store"
    with (home.parent / "dashboard-store.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "complete").exists():
            make_store(home)
            (home / "complete").touch()
    return described(home)


@pytest.fixture
def dashboard(mini: MiniStore, monkeypatch: pytest.MonkeyPatch) -> MiniStore:
    """The miniature store, with the dashboard's settings pointing at it."""
    monkeypatch.setenv(VARIABLE, mini.settings)
    return mini
