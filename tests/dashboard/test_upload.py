"""Uploads: decoded apart, in time, and gone afterwards."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from vmae.core.errors import VideoError
from vmae.dashboard.decode_worker import MAX_FRAMES
from vmae.dashboard.upload import decode_upload


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where uploads pass through in this test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_video_comes_back_as_frames_and_leaves_nothing(mini: Any, spool: Path) -> None:
    found = decode_upload(mini.videos[0].read_bytes(), "../../evil\n/name.mp4")
    assert found.frames.shape == (24, 48, 48, 3)
    assert found.info.label == "name.mp4"
    assert found.info.fps == 12
    assert found.note == ""
    assert list(spool.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"text", b"\x00" * 5000])
def test_what_is_no_video_is_named_without_a_path(content: bytes, spool: Path) -> None:
    with pytest.raises(VideoError) as error:
        decode_upload(content, "a.mp4")
    assert str(error.value).startswith("a.mp4: ")
    assert str(spool) not in str(error.value)
    assert list(spool.iterdir()) == []


def test_a_cut_video_is_an_error(mini: Any, spool: Path) -> None:
    whole = mini.videos[0].read_bytes()
    with pytest.raises(VideoError):
        decode_upload(whole[: len(whole) // 2], "cut.mp4")
    assert list(spool.iterdir()) == []


def test_decoding_that_takes_too_long_is_ended(mini: Any, spool: Path) -> None:
    start = time.monotonic()
    with pytest.raises(VideoError, match="timeout"):
        # So short that the limit is over before the answer is looked for, however late a loaded machine does.
        decode_upload(mini.videos[0].read_bytes(), "a.mp4", time_limit_s=1e-6)
    assert time.monotonic() - start < 10
    assert list(spool.iterdir()) == []


def test_a_long_video_is_cut_and_says_so(
    tmp_path: Path, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import av
    import numpy as np

    path = tmp_path / "long.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        for _ in range(MAX_FRAMES + 20):
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    content = path.read_bytes()
    path.unlink()
    found = decode_upload(content, "long.mp4")
    assert len(found.frames) == MAX_FRAMES
    assert found.note == f"The first {MAX_FRAMES} of {MAX_FRAMES + 20} frames are used."


def test_the_decoder_does_not_import_torch() -> None:
    import subprocess
    import sys

    code = "import sys; import vmae.dashboard.decode_worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
