"""A video from a browser, decoded where it can do no harm: another process, with limits on time and memory.

The upload's bytes go to a file of our own naming in a private folder; the file is removed as soon as the
process ends, whatever happened. The upload's name is shown, never used as a path.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vmae.core.errors import VideoError
from vmae.dashboard import decode_worker
from vmae.dashboard.clips import ClipInfo

TIME_LIMIT_S = 20.0
MAX_NAME = 60
# Viewers that upload at once wait for each other, not for the machine.
_TURNS = threading.BoundedSemaphore(2)


@dataclass(frozen=True)
class Upload:
    """A decoded upload: its description and frames uint8 [T, H, W, 3]."""

    info: ClipInfo
    frames: np.ndarray = field(repr=False)
    note: str = ""
    """What was left out, as a sentence; empty where nothing was."""


def decode_upload(content: bytes, name: str, *, time_limit_s: float = TIME_LIMIT_S) -> Upload:
    """Decode an uploaded file's first frames at a small size.

    Raises:
        VideoError: not a video, damaged, or it takes longer than the limit; `path` is the shown name.
    """
    shown = "".join(c for c in Path(name).name if c.isprintable())[:MAX_NAME] or "upload"
    with tempfile.TemporaryDirectory(prefix="vmae-upload-") as folder:
        file = Path(folder) / "upload.bin"
        file.write_bytes(content)
        command = [sys.executable, "-m", decode_worker.__name__, str(file), str(time_limit_s)]
        try:
            with _TURNS:
                done = subprocess.run(
                    command, capture_output=True, timeout=time_limit_s, check=False, stdin=subprocess.DEVNULL
                )
        except subprocess.TimeoutExpired:
            raise VideoError(shown, "timeout", f"decoding took more than {time_limit_s:g} s") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        reason, _, detail = (lines[-1] if lines else "unreadable").partition("\t")
        if done.returncode != decode_worker.FAULT:
            reason, detail = "unreadable", f"the decoder ended with code {done.returncode}"
        raise VideoError(shown, reason, detail)
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as result:
        frames, fps, total = result["frames"], float(result["fps"]), int(result["total"])
    note = "" if len(frames) == total else f"The first {len(frames)} of {total} frames are used."
    digest = hashlib.sha256(content).hexdigest()[:16]
    info = ClipInfo(
        key=f"upload:{digest}",
        label=shown,
        num_frames=len(frames),
        fps=fps or 25.0,
        width=frames.shape[2],
        height=frames.shape[1],
    )
    return Upload(info, frames, note)
