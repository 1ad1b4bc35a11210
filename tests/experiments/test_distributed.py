"""Runs on Ray workers: the numbers of one process, restarted when a worker is killed, stopped when asked."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from vmae.core.errors import InputError, VmaeError
from vmae.core.model.masking import MaskConfig
from vmae.core.model.videomae import VideoMAEConfig
from vmae.core.train.config import TrainConfig
from vmae.core.train.optim import OptimConfig
from vmae.core.video.config import DataConfig
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.distributed import WorkersConfig, cause_of, interface_of, train_on_workers
from vmae.experiments.executors import Here
from vmae.experiments.layout import RunDir
from vmae.experiments.stages import pretrain
from vmae.experiments.stages.stage import Watch, Work
from vmae.experiments.storage import Storage

ROOT = Path(__file__).resolve().parents[2]


def config(folder: Path, **train: Any) -> ExperimentConfig:
    return ExperimentConfig(
        model=VideoMAEConfig(
            frames=4, height=32, width=32, patch_size=8, embed_dim=32, depth=2, num_heads=2,
            decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2,
        ),
        mask=MaskConfig(ratio=0.75),
        data=DataConfig(
            train_csv=str(folder / "train.csv"), val_csv=str(folder / "val.csv"),
            frames=4, sampling_rate=1, size=(32, 32), short_side=32, workers=0,
        ),
        optim=OptimConfig(base_lr=0.1, warmup_epochs=1),
        train=TrainConfig(**{"epochs": 5, "batch_size": 6, "log_every": 1, **train}),
    )  # fmt: skip


def alone(settings: ExperimentConfig, home: Path) -> dict[int, float]:
    losses: dict[int, float] = {}

    def report(event: str, data: dict[str, Any]) -> None:
        if event == "step":
            losses[data["step"]] = data["loss"]

    here = Here(Storage(home.parent))
    here.train(pretrain.STAGE, Work(config=settings, home=RunDir(home), watch=Watch(report=report)))
    return losses


@pytest.fixture
def worker_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Workers import the tree under test."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    yield


def test_the_interface_of_an_address_is_found() -> None:
    name = interface_of("127.0.0.1")
    assert any(a.address == "127.0.0.1" for a in psutil.net_if_addrs()[str(name)])
    assert interface_of("192.0.2.7") is None  # an address that is kept for examples


@pytest.mark.slow
def test_two_ray_workers_give_the_losses_of_one_process_and_survive_a_kill(
    tiny_videos: Path, tmp_path: Path, worker_path: None
) -> None:
    settings = config(tiny_videos, picture_every=5)
    one = alone(settings, tmp_path / "one")
    losses: dict[int, float] = {}
    starts: list[dict[str, Any]] = []
    pictures: list[np.ndarray] = []
    killed = False

    def report(event: str, data: dict[str, Any]) -> None:
        nonlocal killed
        if event == "start":
            starts.append(data)
        elif event == "step":
            losses[data["step"]] = data["loss"]
        elif event == "epoch" and data["epoch"] == 2 and not killed:
            for process in psutil.Process().children(recursive=True):
                with_name = " ".join(process.cmdline())
                if "RayTrainWorker" in with_name:
                    process.send_signal(signal.SIGKILL)
                    killed = True
                    break

    watch = Watch(report=report, picture=lambda image, epoch: pictures.append(image))
    result = train_on_workers(
        pretrain.STAGE,
        Work(config=settings, home=RunDir(tmp_path / "two"), watch=watch),
        WorkersConfig(count=2),
        Storage(tmp_path),
    )
    assert starts[0]["processes"] == 2 and not starts[0]["resumed"]
    # The kill races with the end of so short a run; where it hit in time, the run was resumed.
    assert all(s["resumed"] for s in starts[1:])
    assert sorted(losses) == sorted(one) == list(range(1, 21))
    for step, loss in one.items():
        assert losses[step] == pytest.approx(loss, abs=1e-5), step
    assert result.epochs == 5 and result.model_path.exists() and not result.stopped
    assert pictures and pictures[0].ndim == 3
    assert (RunDir(tmp_path / "two").pictures / "worker_000005.png").exists()


@pytest.mark.slow
def test_an_error_in_a_worker_is_one_line_here(tiny_videos: Path, tmp_path: Path, worker_path: None) -> None:
    settings = config(tiny_videos, batch_size=7)
    with pytest.raises(VmaeError, match=r"InputError: expected train.batch_size to be a multiple of .*got 7"):
        train_on_workers(
            pretrain.STAGE,
            Work(config=settings, home=RunDir(tmp_path / "run")),
            WorkersConfig(count=2, max_failures=0),
            Storage(tmp_path),
        )


def test_training_alone_imports_neither_ray_nor_dynamo() -> None:
    import subprocess

    code = (
        "import sys, torch\nfrom vmae.experiments import jobs, evaluation, distributed\n"
        "from vmae.core.train.optim import OptimConfig, build_optimizer\n"
        "model = torch.nn.Linear(2, 2)\n"
        "optimizer = build_optimizer(model, OptimConfig())\n"
        "model(torch.ones(1, 2)).sum().backward()\n"
        "optimizer.step(), optimizer.zero_grad(), optimizer.load_state_dict(optimizer.state_dict())\n"
        "print([m for m in sys.modules if m == 'ray' or m.startswith(('ray.', 'torch._dynamo'))])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert out.stdout.strip() == "[]"


def test_the_cause_is_the_line_that_names_the_error() -> None:
    text = "Traceback\n  File x\nvmae.core.errors.InputError: expected 3; got 4\n\nDuring handling\n"
    assert cause_of(text) == "vmae.core.errors.InputError: expected 3; got 4"
    assert replace(WorkersConfig(), count=3).count == 3
    with pytest.raises(InputError, match="--workers: expected at least 1, got 0"):
        WorkersConfig(count=0)
