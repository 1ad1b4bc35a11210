"""Files opened with FFmpeg: within a limit of time, with its errors classified as faults of a video."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from typing import Any

from vmae.core.errors import VideoError

DEFAULT_TIMEOUT_S = 30.0


class Deadline:
    """A time limit that loops ask about; `None` seconds is no limit."""

    def __init__(self, path: str, seconds: float | None) -> None:
        self.path = path
        self.seconds = seconds
        self.renew()

    def check(self) -> None:
        if time.monotonic() > self.end:
            raise VideoError(self.path, "timeout", f"more than {self.seconds:g} s")

    def renew(self) -> None:
        """Begin anew: the limit is then one for every piece of a long work."""
        self.end = time.monotonic() + self.seconds if self.seconds else float("inf")

    @property
    def left(self) -> float | None:
        """Seconds left (at least a millisecond), or None without a limit."""
        return None if self.end == float("inf") else max(1e-3, self.end - time.monotonic())


def open_container(path: str, deadline: Deadline) -> Any:
    import av

    try:
        return av.open(path, timeout=deadline.left)
    except Exception as e:
        raise classify(path, e, deadline) from e


def video_stream(path: str, container: Any) -> Any:
    streams = [s for s in container.streams.video if not int(s.disposition) & 0x400]  # no cover pictures
    if not streams:
        raise VideoError(path, "no_video_stream", "the file holds no video stream")
    best = container.streams.best("video")
    stream = best if best is not None and best in streams else streams[0]
    if stream.codec_context is None:
        raise VideoError(path, "unreadable", "no decoder for this codec")
    # One thread per file: many workers read many files, and frame threads only delay the first frame.
    if not stream.codec_context.is_open:
        stream.codec_context.thread_type = "NONE"
        stream.codec_context.thread_count = 1
    return stream


def classify(path: str, error: Exception, deadline: Deadline, *, opened: bool = False) -> VideoError:
    """FFmpeg's errors as a `VideoError` with a reason; `opened`: the file had been taken for a video."""
    import av.error

    if isinstance(error, VideoError):
        return error
    if isinstance(error, av.error.ExitError | av.error.TimeoutError) or time.monotonic() > deadline.end:
        return VideoError(path, "timeout", f"more than {deadline.seconds} s")
    if isinstance(error, PermissionError):
        return VideoError(path, "no_permission", first_line(error))
    if isinstance(error, FileNotFoundError):
        return VideoError(path, "missing", "no such file")
    cut = "" if opened else _cut_mp4(path)
    if cut:
        return VideoError(path, "truncated", cut)
    return VideoError(path, "corrupt" if opened else "unreadable", first_line(error))


def _cut_mp4(path: str) -> str:
    """What an MP4 or MOV file lacks that ends inside a box (ISO/IEC 14496-12, 4.2); "" where none does.

    A file cut before its index (`moov`, often the last box) cannot be opened at all: FFmpeg calls it invalid.
    """
    with contextlib.suppress(OSError, ValueError), open(path, "rb") as f:
        size = os.fstat(f.fileno()).st_size
        at = 0
        while at < size:
            f.seek(at)
            head = f.read(16)
            length, kind = int.from_bytes(head[:4], "big"), head[4:8]
            if at == 0 and kind != b"ftyp":
                return ""
            if length == 1:
                length = int.from_bytes(head[8:16], "big")
            if length == 0:
                return ""  # the last box, as long as the file is
            if len(head) < 8 or at + length > size:
                name = kind.decode("ascii", "replace") or "next"
                return f"the file ends at {size} bytes, inside its {name} box"
            if length < 8:
                return ""
            at += length
    return ""


def first_line(error: Exception) -> str:
    # FFmpeg's own codes are large numbers that say nothing to a reader.
    code = getattr(error, "errno", None)
    if code is not None and code not in errno.errorcode and getattr(error, "strerror", None):
        return str(error.strerror)  # type: ignore[attr-defined]
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
