"""Made the old run directory here: run in an empty folder, with the code of commit 3ba662a on PYTHONPATH."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import psutil

SHAPE = [
    "model.frames=4",
    "model.height=16",
    "model.width=16",
    "model.patch_size=4",
    "model.tubelet_size=2",
    "model.embed_dim=8",
    "model.depth=1",
    "model.num_heads=2",
    "model.mlp_ratio=2",
    "data.frames=4",
    "data.size=16,16",
    "data.short_side=16",
    "data.sampling_rate=1",
    "train.batch_size=4",
    "train.keep_last=1",
]
PRETRAIN = [
    "model.decoder_embed_dim=8",
    "model.decoder_depth=1",
    "model.decoder_num_heads=2",
    "probe.epochs=4",
    "probe.folds=2",
    "train.picture_every=0",
]
DATA = ["--data", "data/train.csv"]


def video(path: Path, seed: int, right: bool) -> None:
    """Eight frames of a bright bar on a plain ground."""
    shade = int(np.random.default_rng(seed).integers(20, 120))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "30", "threads": "1"})
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p"
        for k in range(8):
            frame = np.full((16, 16, 3), shade, np.uint8)
            left = k * 12 // 7 if right else 12 - k * 12 // 7
            frame[4:12, left : left + 4] = 230
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def vmae(*arguments: str) -> list[str]:
    """A command line."""
    return [sys.executable, "-m", "vmae", *arguments, "--runs-dir", "runs"]


def sets(*assignments: str) -> list[str]:
    """The shape and more as `--set` options."""
    return [word for a in (*SHAPE, *assignments) for word in ("--set", a)]


def until(condition: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    """Poll while the process runs."""
    while not condition():
        assert process.poll() is None
        time.sleep(0.01)


def main() -> None:
    """All of it."""
    data = Path("data")
    data.mkdir()
    for i in range(8):
        video(data / f"{i}.mp4", i, bool(i % 2))
    lines = [f"{i}.mp4 {i % 2}\n" for i in range(8)]
    (data / "train.csv").write_text("".join(lines))
    (data / "val.csv").write_text("".join(lines[:4]))
    (data / "classes.txt").write_text("left\nright\n")
    os.environ |= {"OMP_NUM_THREADS": "1", "USER": "tester"}

    line = vmae("pretrain", *DATA, "--run-name", "interrupted", "--epochs", "40", *sets(*PRETRAIN))
    process = subprocess.Popen(line)
    until(lambda: list(Path("runs/interrupted/checkpoints").glob("step-*")), process)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130

    line = vmae(
        "sweep", "masking_ratio", *DATA, "--recipe", "demo_pretrain", "--values", "0.5,0.75", "--epochs", "60"
    )
    line += ["--max-concurrent", "1", *sets(*PRETRAIN, "train.best_by=none")]
    process = subprocess.Popen(line, start_new_session=True)
    trials = Path("runs/sweeps/masking_ratio-1/trials")
    until(lambda: list(trials.glob("ratio0.75_s0/pretrain/checkpoints/step-*")), process)
    family = psutil.Process(process.pid).children(recursive=True)
    for member in (process, *family):
        member.kill()
    process.wait()

    line = vmae("finetune", *DATA, "--recipe", "demo_finetune", "--run-name", "tuned", "--epochs", "2")
    line += ["--init", str(trials / "ratio0.5_s0/pretrain/model"), *sets("data.segments=1")]
    subprocess.run(line, check=True)


if __name__ == "__main__":
    main()
