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

from vmae.dashboard.settings import VARIABLE

RATIOS = (0.5, 0.75)
CLASSES = ("left", "right")
# Clips of 8 frames of 32x32 pixels, 64 tokens; a few optimiser steps.
_SMALL = {
    "model.frames": 8,
    "model.height": 32,
    "model.width": 32,
    "model.tubelet_size": 2,
    "model.embed_dim": 32,
    "model.depth": 2,
    "model.num_heads": 2,
    "model.decoder_embed_dim": 16,
    "model.decoder_num_heads": 2,
    "data.size": "32,32",
    "data.short_side": 32,
    "data.sampling_rate": 1,
    "train.batch_size": 4,
    "train.epochs": 4,
    "train.picture_every": 2,
    "probe.epochs": 30,
    "probe.folds": 2,
}


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


def make_store(home: Path) -> MiniStore:
    """Below `home`: four videos and what a sweep of two ratios, really trained on them, leaves in the store.

    The trials run in this process; `run_sweep` then finds them finished and does the rest without Ray.
    """
    from vmae.core.config import override
    from vmae.experiments.recipes.demo import demo_pretrain
    from vmae.experiments.sweeps.definitions import get
    from vmae.experiments.sweeps.driver import run_sweep
    from vmae.experiments.sweeps.ready import prepare
    from vmae.experiments.sweeps.space import Param
    from vmae.experiments.sweeps.spec import make_plan
    from vmae.experiments.sweeps.trial import run_trial
    from vmae.experiments.tracking import Tracker, store_at

    data = home / "data"
    data.mkdir(parents=True)
    videos = [write_video(data / f"clip {i}.mp4", seed=i, right=bool(i % 2)) for i in range(4)]
    lines = [f"{v.name} {i % 2}\n" for i, v in enumerate(videos)]
    for name in ("train.csv", "val.csv"):
        (data / name).write_text("".join(lines))
    (data / "classes.txt").write_text("".join(f"{c}\n" for c in CLASSES))
    lists = {"data.train_csv": str(data / "train.csv"), "data.val_csv": str(data / "val.csv")}
    base = override(demo_pretrain(), {**_SMALL, **lists})
    definition = get("masking_ratio")
    plan = make_plan(
        name="mini",
        sweep="masking_ratio",
        title=definition.title,
        params=[Param(path="mask.ratio", choices=RATIOS)],
        metric="probe/top1",
        base=base,
    )
    store = store_at(home / "runs")
    sweep = store.layout.sweep("mini")
    prepare(plan, store)
    plan.save(sweep)
    # Trials look their parent up in the store.
    with Tracker(store, sweep.path, name=plan.name, key=plan.key, kind="sweep"):
        pass
    threads = torch.get_num_threads()
    for trial in plan.trials:
        run_trial(sweep, trial.id, store)
    torch.set_num_threads(threads)
    run_sweep(plan, store)
    return described(home)


def described(home: Path) -> MiniStore:
    """What `make_store` left there."""
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
