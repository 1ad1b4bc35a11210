"""A look at this machine and a self-test of the whole way from a video file to a falling loss."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from vmae import __version__
from vmae.experiments.tracking import store_at

PACKAGES = (
    ("torch", "models"),
    ("triton", "GPU kernels"),
    ("decord", "video reading, `data.reader=decord`"),
    ("av", "video reading and writing"),
    ("einops", "tensor shapes"),
    ("ray", "sweeps"),
    ("mlflow", "tracking"),
    ("streamlit", "dashboard"),
    ("click", "command line"),
    ("torchcodec", "optional reader, `vmae bench loader`"),
    ("transformers", "optional, comparison tests"),
    ("optuna", "optional, search"),
)


def examine(runs_dir: Path | None) -> dict[str, Any]:
    """Everything `vmae doctor` prints, as JSON types."""
    from vmae.kernels import kernel_status

    machine = f"{platform.system()} {platform.machine()}"
    return {
        "vmae": __version__,
        "python": platform.python_version(),
        "system": f"{machine}, {os.cpu_count()} cores, {_memory_gib():.0f} GiB",
        "device": _device(),
        "store": store_at(runs_dir).uri,
        "packages": [[name, _version(name), use] for name, use in PACKAGES],
        "kernels": [[s.op, s.path, s.reason] for s in kernel_status()],
        "self_test": self_test(),
    }


def self_test() -> dict[str, Any]:
    """Write a video, read it back, train a tiny model on it for a few steps: the loss must fall."""
    start = time.perf_counter()
    steps: list[tuple[str, str]] = []
    ok = True
    for name, test in (("write and read an H.264 file", _read_back), ("a tiny model learns", _learns)):
        try:
            steps.append((name, test()))
        except Exception as e:
            # The doctor reports whatever is broken, and goes on looking.
            ok = False
            steps.append((name, f"FAILED: {type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"))
    return {"ok": ok, "seconds": time.perf_counter() - start, "steps": steps}


def _read_back() -> str:
    import av
    import numpy as np

    from vmae.core.video.probe import probe_video
    from vmae.core.video.reader import read_clip

    frames = np.full((16, 64, 96, 3), 40, np.uint8)
    for i in range(16):
        frames[i, :, 4 * i : 4 * i + 24] = 220
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "test.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=16)
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        info = probe_video(str(path))
        read = read_clip(str(path), np.arange(0, 16, 5))
    error = float(np.abs(read.astype(float) - frames[::5]).mean())
    if info.num_frames != 16 or error > 6:
        raise RuntimeError(f"expected 16 frames within 6 grey levels, got {info.num_frames} and {error:.1f}")
    return f"16 frames by {info.backend}, mean difference {error:.1f} grey levels"


def _learns() -> str:
    import torch

    from vmae.core.model.masking import sample_mask
    from vmae.core.model.videomae import VideoMAE, VideoMAEConfig
    from vmae.experiments.run import default_device

    device = default_device()
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = VideoMAEConfig.from_size("tiny", height=32, width=32, embed_dim=64, depth=2)
        model = VideoMAE(config).to(device)
    video = torch.randint(0, 256, (4, 3, 8, 4, 4), generator=generator, dtype=torch.uint8)
    video = video.repeat_interleave(8, 3).repeat_interleave(8, 4).to(device)
    mask = sample_mask("tube", 0.5, config.grid, 4, generator).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = model(video, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    if not losses[-1] < 0.9 * losses[0]:
        raise RuntimeError(f"expected a falling loss, got {losses[0]:.3f} -> {losses[-1]:.3f}")
    return f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in 30 steps on {device.type}"


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        capability = f"sm_{properties.major}{properties.minor}"
        memory = properties.total_memory / 2**30
        return f"{torch.cuda.device_count()} x {properties.name}, {capability}, {memory:.0f} GiB"
    return f"CPU, {torch.get_num_threads()} threads"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory_gib() -> float:
    if sys.platform == "linux":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    import psutil

    return float(psutil.virtual_memory().total) / 2**30
