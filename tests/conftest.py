"""What every test shares: the folder `../shared`, quiet libraries, an honest interpreter, Ctrl-C."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_TRACKING_URI", "")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if not Path("/dev/nvidiactl").exists():
    # Triton decides when it is imported whether kernels are interpreted, so it is said here, before any test
    # module imports it. Tests that compile kernels run them in a process without this variable.
    os.environ.setdefault("TRITON_INTERPRET", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that starts the tests in the background has SIGINT ignored, which every process below would
    # inherit: tests that press Ctrl-C would wait for nothing.
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the same of nohup

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder `../shared` beside the checkout; the test is skipped where it is absent."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("needs the folder ../shared beside the checkout, which is absent")
    return path


def _bf16_to_f32(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _f32_to_bf16(x: np.ndarray) -> np.ndarray:
    """Round to nearest even, as the hardware does; NaN stays NaN."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(x), 0x7FC0, rounded).astype(np.uint16)


@pytest.fixture(scope="session")
def honest_interpreter() -> Iterator[None]:
    """Patch Triton's interpreter (3.6 and 3.7): it multiplies bfloat16 bit patterns and truncates casts
    (triton issue 11585), and returns 0 for masked loads without `other`, where a GPU returns anything.

    On a machine with an NVIDIA GPU kernels run compiled and nothing is patched.
    """
    import torch

    from vmae.kernels import dispatch

    if torch.cuda.is_available() or not dispatch.interpreting():
        yield
        return
    tl: Any = pytest.importorskip("triton.language")
    from triton.runtime import interpreter

    builder: Any = interpreter.InterpreterBuilder
    old_dot, old_convert, old_load = (
        builder.create_dot,
        interpreter._convert_float,
        builder.create_masked_load,
    )

    def create_dot(self: Any, a: Any, b: Any, d: Any, precision: Any, imprecise: Any) -> Any:
        def up(x: Any) -> Any:
            if x.dtype.scalar != tl.bfloat16:
                return x
            return interpreter.TensorHandle(_bf16_to_f32(x.data), tl.float32)

        return old_dot(self, up(a), up(b), d, precision, imprecise)

    def convert_float(x: Any, source: Any, target: Any, rounding: Any) -> Any:
        if source == tl.float32 and target == tl.bfloat16:
            return _f32_to_bf16(np.asarray(x, dtype=np.float32))
        if source == tl.bfloat16 and target == tl.float32:
            return _bf16_to_f32(x)
        return old_convert(x, source, target, rounding)

    def create_masked_load(self: Any, ptrs: Any, mask: Any, other: Any, *rest: Any) -> Any:
        out = old_load(self, ptrs, mask, other, *rest)
        if other is None and out.dtype.scalar.is_floating():
            garbage = 0x7FC0 if out.dtype.scalar == tl.bfloat16 else np.nan
            out.data = np.where(mask.data, out.data, np.asarray(garbage, dtype=out.data.dtype))
        return out

    old_call = interpreter.GridExecutor.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        # The interpreter drops arguments that a kernel does not have; a GPU launch refuses them.
        unknown = set(kwargs) - set(self.arg_names) - {"num_warps", "num_stages", "warmup"}
        assert not unknown, f"{self.fn.__name__} has no arguments {unknown}"
        return old_call(self, *args, **kwargs)

    interpreter.GridExecutor.__call__ = call
    builder.create_dot, builder.create_masked_load = create_dot, create_masked_load
    interpreter._convert_float = convert_float
    dispatch.interpreter_rounds_bfloat16 = True
    yield
    dispatch.interpreter_rounds_bfloat16 = False
    builder.create_dot, builder.create_masked_load = old_dot, old_load
    interpreter._convert_float = old_convert
    interpreter.GridExecutor.__call__ = old_call


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


@pytest.fixture
def old_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run directory that older code left (`tests/data/old_runs`), made the working directory.

    Its configurations name `data/train.csv` from there on, its store the places below it.
    """
    import gzip
    import shutil
    import sqlite3

    home = tmp_path / "old"
    shutil.copytree(ROOT / "tests" / "data" / "old_runs", home)
    packed = home / "runs" / "mlflow.sql.gz"
    text = gzip.decompress(packed.read_bytes()).decode()
    packed.unlink()
    db = sqlite3.connect(home / "runs" / "mlflow.db")
    db.executescript(text.replace("/tmp/vmae-old", str(home)))
    db.close()
    monkeypatch.chdir(home)
    return home / "runs"
