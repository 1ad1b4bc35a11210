"""Two processes give one process's numbers; sharded or not; and a run may change their number."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[3]

# Process `rank` of `size`: trains as tests/core/train/test_loop.py does, prints rank 0's losses and weights.
PROCESS = """
import json, sys
sys.path.insert(0, {tests!r})
from dataclasses import replace
from pathlib import Path
import torch, torch.distributed as dist
import test_loop as t

rank, size, port, folder, run_dir, settings = sys.argv[1:]
rank, size, settings = int(rank), int(size), json.loads(settings)
torch.set_num_threads(1)
if size > 1:
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{{port}}", rank=rank, world_size=size
    )
stop = settings.pop("stop", None)
data = replace(t.DATA, **settings.pop("data", {{}}))
train = replace(t.TRAIN, **{{"epochs": 5, **settings}})
calls = iter(range(1, 1000))
run = t.Run(
    Path(folder),
    Path(run_dir),
    dataset=t.dataset(Path(folder), data),
    train=train,
    should_stop=None if stop is None else lambda: next(calls) == stop,
)
if rank == 0:
    from vmae.core.weights.checkpoint import load_model
    saved = load_model(run.result.model_path)[0]
    weights = torch.cat([p.detach().flatten() for p in saved.parameters()])
    found = {{"losses": run.losses, "weights": weights.tolist(), "start": run.of("start")}}
    print(json.dumps(found | {{"skipped": [e["skipped"] for e in run.of("step")]}}))
sys.stdout.flush()
if size > 1:
    dist.barrier()
# Gloo groups of a device mesh can hang in their destructors when the interpreter ends (torch 2.13).
import os
os._exit(0)
"""


def train(folder: Path, run_dir: Path, processes: int, **settings: Any) -> dict[str, Any]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    code = PROCESS.format(tests=str(Path(__file__).parent))
    started = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                code,
                *map(str, (rank, processes, port, folder, run_dir)),
                json.dumps(settings),
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        outputs = [p.communicate(timeout=240)[0] for p in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert [p.returncode for p in started] == [0] * processes
    found: dict[str, Any] = json.loads(outputs[0].splitlines()[-1])
    return found


def assert_same_curve(one: dict[str, Any], many: dict[str, Any], steps: int = 20) -> None:
    assert len(one["losses"]) == len(many["losses"]) == steps
    for step, loss in one["losses"].items():
        assert many["losses"][step] == pytest.approx(loss, abs=1e-5), step
    # Adam turns differences of rounding into up to a few learning rates where gradients are near zero.
    np.testing.assert_allclose(many["weights"], one["weights"], atol=2e-3)


def test_two_processes_give_the_losses_of_one(tiny_videos: Path, tmp_path: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    import test_loop as alone

    sys.path.pop(0)
    one = alone.Run(tiny_videos, tmp_path / "one", train=replace(alone.TRAIN, epochs=5))
    two = train(tiny_videos, tmp_path / "two", 2, ema_decay=0.5)
    assert two["start"][0]["processes"] == 2
    assert list(one.losses.values()) == pytest.approx(list(two["losses"].values()), abs=1e-5)
    assert len(one.losses) == 20


@pytest.mark.slow
def test_a_batch_of_bad_files_on_one_process_stops_no_other(tiny_videos: Path, tmp_path: Path) -> None:
    """One clip a process and step: where it is bad, the other's gradient counts half, and nobody waits."""
    for path in tiny_videos.iterdir():
        shutil.copy(path, tmp_path)
    (tmp_path / "03.mp4").write_bytes(b"not a video")
    data = {"max_bad_share": 0.2}
    one = train(tmp_path, tmp_path / "one", 1, batch_size=2, epochs=2, data=data)
    two = train(tmp_path, tmp_path / "two", 2, batch_size=2, epochs=2, data=data)
    assert len(one["losses"]) == len(two["losses"]) == 24
    assert one["skipped"][-1] == two["skipped"][-1] == 1  # whichever process met it
    assert all(math.isfinite(v) for v in two["losses"].values())
    # Until the bad file comes the numbers are the same, then the mean of one clip instead of none.
    assert two["losses"]["1"] == pytest.approx(one["losses"]["1"], abs=1e-5)


@pytest.mark.slow
def test_accumulation_on_two_processes(tiny_videos: Path, tmp_path: Path) -> None:
    one = train(tiny_videos, tmp_path / "one", 1)
    two = train(tiny_videos, tmp_path / "two", 2, accumulate=3)
    assert_same_curve(one, two)


@pytest.mark.slow
def test_sharded_training_gives_the_losses_of_one(tiny_videos: Path, tmp_path: Path) -> None:
    one = train(tiny_videos, tmp_path / "one", 1)
    sharded = train(tiny_videos, tmp_path / "sharded", 2, shard="fsdp")
    assert_same_curve(one, sharded)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(tiny_videos: Path, tmp_path: Path) -> None:
    whole = train(tiny_videos, tmp_path / "whole", 1)
    first = train(tiny_videos, tmp_path / "part", 2, shard="fsdp", stop=7)
    rest = train(tiny_videos, tmp_path / "part", 1)
    assert rest["start"][0]["step"] == 7
    assert_same_curve(whole, {**rest, "losses": {**first["losses"], **rest["losses"]}})
