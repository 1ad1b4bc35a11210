"""Files opened with FFmpeg: as files and nothing else, within limits, its errors classified.

FFmpeg takes what stands before a colon for a protocol and follows the addresses in a playlist. Here a path is
a file whatever its name (`file_url`), and only the demuxers of `_FORMATS`, none of which opens another file,
and the protocol `file` are at its disposal.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from typing import Any

from vmae.core.errors import VideoError
from vmae.core.video.structure import ends_inside, require_bounded
from vmae.core.video.threads import left_off

DEFAULT_TIMEOUT_S = 30.0
MAX_PIXELS = 2**27
"""Of a frame (11,585 x 11,585): what a header claims beyond that is refused before memory is taken for it."""
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "flv", "live_flv", "mpegts", "mpeg", "mpegvideo",
    "m4v", "h264", "hevc", "vvc", "vc1", "av1", "obu", "ivf", "ogg", "asf", "gif", "apng", "dv", "mxf", "gxf",
    "nut", "rm", "wtv", "mjpeg", "mpjpeg", "yuv4mpegpipe", "dirac", "cavsvideo", "nsv", "nuv", "swf",
    "smjpeg", "wav", "mp3", "aac", "flac", "aiff",
)  # fmt: skip
_COVER = 0x400  # AV_DISPOSITION_ATTACHED_PIC


class Deadline:
    """A time limit that loops ask about; `None` seconds is no limit. It is over where the threads that it was
    made in are left (`reading_threads`)."""

    def __init__(self, path: str, seconds: float | None) -> None:
        self.path = path
        self.seconds = seconds
        self._left_off = left_off()
        self.renew()

    def check(self) -> None:
        if self._left_off is not None and self._left_off.is_set():
            raise VideoError(self.path, "timeout", "the reading was left off")
        if time.monotonic() > self.end:
            raise VideoError(self.path, "timeout", f"more than {self.seconds:g} s")

    def renew(self) -> None:
        """Begin anew: the limit is then one for every piece of a long work."""
        self.end = time.monotonic() + self.seconds if self.seconds else float("inf")

    @property
    def left(self) -> float | None:
        """Seconds left (at least a millisecond), or None without a limit."""
        return None if self.end == float("inf") else max(1e-3, self.end - time.monotonic())


def file_url(path: str) -> str:
    """A path as FFmpeg takes it for a file, whatever letters it holds."""
    return f"file:{path}"


def open_container(path: str, deadline: Deadline) -> Any:
    """An opened PyAV container; raises VideoError for what is none, or claims more than it can hold."""
    import av

    options = {
        "protocol_whitelist": "file",
        "format_whitelist": ",".join(_FORMATS),
        "max_pixels": str(MAX_PIXELS),
    }
    try:
        require_bounded(path, deadline.check)
        return av.open(file_url(path), options=options, timeout=deadline.left)
    except Exception as e:
        raise classify(path, e, deadline) from e


def video_stream(path: str, container: Any) -> Any:
    """The stream of a container that shows its video, ready to be decoded."""
    streams = [s for s in container.streams.video if not int(s.disposition) & _COVER]
    if not streams:
        raise VideoError(path, "no_video_stream", "the file holds no video stream")
    best = container.streams.best("video")
    stream = best if best is not None and best in streams else streams[0]
    codec = stream.codec_context
    if codec is None:
        raise VideoError(path, "unreadable", "no decoder for this codec")
    require_pixels(path, codec.height, codec.width)
    if not codec.is_open:
        # One thread per file: many workers read many files, and frame threads only delay the first frame.
        codec.thread_type = "NONE"
        codec.thread_count = 1
        codec.options = {"max_pixels": str(MAX_PIXELS)}
    return stream


def require_pixels(path: str, height: int, width: int) -> None:
    """Raise VideoError (`too_large`) for frames of more than `MAX_PIXELS`."""
    if height * width > MAX_PIXELS:
        raise VideoError(
            path, "too_large", f"expected frames of at most {MAX_PIXELS:,} pixels, got {width}x{height}"
        )


def frames_in_order(container: Any, stream: Any, deadline: Deadline) -> Iterator[Any]:
    """Every frame that a decode from the start shows, as PyAV frames.

    What a decoder says about packets before the first key frame is not held against the file: they may refer
    to frames that another file has. Raises FFmpeg's errors, and VideoError for the time limit.
    """
    import av.error

    begun = False
    for packet in container.demux(stream):
        deadline.check()
        begun = begun or packet.is_keyframe
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            if begun:
                raise
            continue
        yield from frames


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
    cut = "" if opened else ends_inside(path)
    if cut:
        return VideoError(path, "truncated", cut)
    return VideoError(path, "corrupt" if opened else "unreadable", first_line(error))


def first_line(error: Exception) -> str:
    # FFmpeg's own codes are large numbers that say nothing to a reader.
    code = getattr(error, "errno", None)
    if code is not None and code not in errno.errorcode and getattr(error, "strerror", None):
        return str(error.strerror)  # type: ignore[attr-defined]
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
