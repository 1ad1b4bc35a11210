"""Videos, raw-frame folders and .npy clips behind one function: frame indices in, uint8 frames out.

Frame `i` is always the i-th frame that a sequential decode of the whole file shows; every shortcut below is
held to that by tests. Three ways of reading a video file:

- `seek` (default): the packets' time stamps are listed once (no decoding), so that a frame index is a time
  stamp; a read seeks to the key frame before, drops packets nobody refers to undecoded, and stops as soon as
  the last wanted packet is in. Measured faster than decord on every kind of file (docs/bench_loader.md).
- `sequential`: decode from the start and count; for files whose time stamps cannot be trusted for seeking
  (MPEG-4 AVI with B-frames, MPEG-TS, MPEG-PS, ...). Exact, slower.
- `decord`: on request only (`data.reader: decord`). It shows wrong frames, without a word, on AVI with
  B-frames, MPEG-4 with B-frames, open groups (x265's default), edit lists and MPEG-TS, and cannot open AV1
  (all measured), so each file is tried once (`decord_agrees`, remembered with the probe) and read in one of
  the other ways where decord is wrong. Not the default: it is slower than `seek` on every kind of file
  measured (docs/bench_loader.md).

`probe_video` decides once per file. Nothing here is shared between processes: a reader opened before a fork
fails in the child in every library, so readers are opened where they are used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import stat
import time
from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vmae.core.errors import InputError, VideoError

Backend = Literal["seek", "sequential", "decord", "frames", "npy"]
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
DEFAULT_TIMEOUT_S = 30.0
# Codecs whose decoders leave out an unreferenced frame on request without touching any other (tested).
_SKIPPABLE = frozenset({"h264", "hevc"})
# Containers whose packets carry true presentation times and whose seeking lands at or before the target.
_SEEKABLE = ("mov", "mp4", "matroska", "webm", "avi")
# A key frame this many groups on is reached by dropping packets, a further one by seeking.
_NEAR_GROUPS = 4
_INTRA = 1  # AV_PICTURE_TYPE_I
_COUNTED_BY_PACKETS = frozenset({"h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mjpeg"})


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What one probe of a file found. Sizes are as displayed: after the rotation stored in the file.

    `num_frames` counts the frames that a sequential decode shows. `fps` is the average rate (0.0 where there
    is no time: frame folders, .npy). `rotation` is in degrees counter-clockwise, a multiple of 90.
    `pts`, `key_pts`, `key_dts` are in stream ticks; `pts` is sorted (display order) and has `num_frames`
    entries for backend `seek`, else it is empty. `decord_ok` says whether decord shows the same frames (None:
    not tried; see `decord_agrees`).
    """

    path: str
    backend: Backend
    num_frames: int
    fps: float
    width: int
    height: int
    codec: str
    rotation: int = 0
    variable_rate: bool = False
    container: str = ""
    size_bytes: int = 0
    mtime_ns: int = 0
    decord_ok: bool | None = None
    pts: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64), repr=False, compare=False)
    key_pts: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64), repr=False, compare=False)
    key_dts: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64), repr=False, compare=False)

    @property
    def duration_s(self) -> float:
        """Length in seconds at the average rate; 0.0 where there is no time."""
        return self.num_frames / self.fps if self.fps else 0.0

    def frame_at(self, second: float) -> int:
        """The number of the frame nearest to a time from the start of the file, at the average rate.

        Raises:
            VideoError: no such second (`truncated`), or no time at all in a folder of images or a .npy clip.
        """
        if not self.fps:
            raise VideoError(self.path, "not_a_file", "expected a video with a clock, got " + self.codec)
        number = round(second * self.fps)
        if not 0 <= number < self.num_frames:
            raise VideoError(
                self.path,
                "truncated",
                f"the list asks for second {second:g}, the file has {self.duration_s:.2f} s",
            )
        return number

    def resized(self, short_side: int | None) -> tuple[int, int]:
        """`(height, width)` of the displayed frame with its short side at `short_side` (None: as it is)."""
        return resized_shape(self.height, self.width, short_side)


def resized_shape(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """`(height, width)` scaled so that the shorter is `short_side`; the aspect ratio is kept to a pixel."""
    if short_side is None or min(height, width) == short_side:
        return height, width
    if height <= width:
        return short_side, max(1, round(width * short_side / height))
    return max(1, round(height * short_side / width)), short_side


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


def _stat_file(path: str) -> os.stat_result:
    """stat, with what cannot be a video named: missing, no permission, empty, not a regular file."""
    try:
        st = os.stat(path)
    except FileNotFoundError:
        raise VideoError(path, "missing", "no such file") from None
    except (OSError, ValueError) as e:
        raise VideoError(path, "unreadable", str(e)) from None
    if stat.S_ISDIR(st.st_mode):
        return st
    if not stat.S_ISREG(st.st_mode):
        raise VideoError(path, "not_a_file", "expected a video file, a folder of frames or a .npy clip")
    if st.st_size == 0:
        raise VideoError(path, "empty", "0 bytes")
    if not os.access(path, os.R_OK):
        raise VideoError(path, "no_permission", "the file may not be read by this user")
    return st


def probe_video(path: str | Path, *, timeout_s: float | None = DEFAULT_TIMEOUT_S) -> VideoInfo:
    """Find out once what a file is and how it must be read.

    Lists the packets (reads the file, decodes one frame; a `sequential` file is decoded whole to count it).

    Raises:
        VideoError: reason `missing`, `empty`, `no_permission`, `not_a_file`, `no_frames`, `no_video_stream`,
            `unreadable`, `truncated`, `corrupt` or `timeout`.
    """
    path = str(path)
    st = _stat_file(path)
    common = {"path": path, "size_bytes": st.st_size, "mtime_ns": st.st_mtime_ns}
    if stat.S_ISDIR(st.st_mode):
        names = frame_files(path)
        if not names:
            raise VideoError(path, "no_frames", f"a folder without {', '.join(IMAGE_SUFFIXES)} files")
        height, width = _read_image(path, names[0]).shape[:2]
        return VideoInfo(
            backend="frames",
            num_frames=len(names),
            fps=0.0,
            width=width,
            height=height,
            codec="images",
            **common,  # type: ignore[arg-type]
        )
    if path.endswith(".npy"):
        clip = _open_npy(path)
        return VideoInfo(
            backend="npy",
            num_frames=clip.shape[0],
            fps=0.0,
            width=clip.shape[2],
            height=clip.shape[1],
            codec="npy",
            **common,  # type: ignore[arg-type]
        )
    return _probe_av(path, common, Deadline(path, timeout_s))


_INFO: OrderedDict[str, VideoInfo] = OrderedDict()
_INFO_LIMIT = 20_000


def cached_info(path: str | Path, *, timeout_s: float | None = DEFAULT_TIMEOUT_S) -> VideoInfo:
    """`probe_video`, remembered in this process as long as the file's size and time stay the same."""
    path = str(path)
    known = _INFO.get(path)
    if known is not None:
        st = _stat_file(path)
        if st.st_size == known.size_bytes and st.st_mtime_ns == known.mtime_ns:
            return known
    info = probe_video(path, timeout_s=timeout_s)
    remember_info(info)
    return info


def remember_info(info: VideoInfo) -> None:
    """Let `cached_info` answer for this file without a probe."""
    _INFO[info.path] = info
    while len(_INFO) > _INFO_LIMIT:
        _INFO.popitem(last=False)


def is_remembered(path: str) -> bool:
    """Whether `cached_info` has an answer for this file (it may have changed since)."""
    return path in _INFO


def read_clip(
    path: str | Path,
    indices: Sequence[int] | np.ndarray,
    short_side: int | None = None,
    *,
    info: VideoInfo | None = None,
    timeout_s: float | None = DEFAULT_TIMEOUT_S,
) -> np.ndarray:
    """Read frames of a video file, a folder of images or a .npy clip.

    Args:
        path: the file or folder.
        indices: frame numbers in `[0, num_frames)`, any order, repeats allowed; `T` of them.
        short_side: scale so that the shorter side has this many pixels (None: the size of the file).
        info: what `probe_video` found; without it the file is probed (and remembered in this process).
        timeout_s: limit for opening and reading together; None: no limit.

    Returns:
        uint8 `[T, H, W, 3]`, RGB, rotated for display.

    Raises:
        InputError: an index outside the file.
        VideoError: the file is bad; `.reason` as in `probe_video`.
    """
    with open_video(path, info=info, timeout_s=timeout_s) as video:
        return video.read(indices, short_side)


@contextlib.contextmanager
def open_video(
    path: str | Path,
    *,
    info: VideoInfo | None = None,
    backend: Backend | None = None,
    timeout_s: float | None = DEFAULT_TIMEOUT_S,
) -> Iterator[OpenVideo]:
    """An open file for several reads: `with open_video(p) as v: v.info.num_frames; v.read(indices, 256)`.

    `backend="decord"` reads with decord the files on which it agrees with a sequential decode, the others as
    their probe says (`v.backend` tells which it is). Raises InputError where decord is not installed.
    """
    path = str(path)
    deadline = Deadline(path, timeout_s)
    if info is None:
        info = cached_info(path, timeout_s=timeout_s)
    if backend == "decord":
        if info.decord_ok is None:
            info = dataclasses.replace(info, decord_ok=decord_agrees(info))
            remember_info(info)
        backend = "decord" if info.decord_ok else info.backend
    video = OpenVideo(info, backend or info.backend, deadline)
    try:
        yield video
    finally:
        video.close()


class OpenVideo:
    """See `open_video`. `read` may be called many times; the file is opened at the first."""

    def __init__(self, info: VideoInfo, backend: Backend, deadline: Deadline) -> None:
        self.info = info
        self.backend = backend
        self._deadline = deadline
        self._container: Any = None
        self._reformatter: Any = None
        self._one_thread: dict[str, int] = {}

    def restart_clock(self) -> None:
        """Give the time limit anew to what follows."""
        self._deadline.renew()

    def close(self) -> None:
        """Free the file handle."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def read(self, indices: Sequence[int] | np.ndarray, short_side: int | None = None) -> np.ndarray:
        """uint8 `[T, H, W, 3]`; see `read_clip`."""
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
        if not len(wanted):
            raise InputError(f"{self.info.path}: expected at least one frame index, got none")
        low, high = int(wanted.min()), int(wanted.max())
        if low < 0 or high >= self.info.num_frames:
            raise InputError(
                f"{self.info.path}: expected frame indices in [0, {self.info.num_frames}), got {low}..{high}"
            )
        height, width = self.info.resized(short_side)
        if self.backend == "npy":
            clip = _open_npy(self.info.path)
            return _resize_frames(np.ascontiguousarray(clip[wanted]), height, width)
        if self.backend == "frames":
            names = frame_files(self.info.path)
            unique = {int(i): _read_image(self.info.path, names[int(i)]) for i in np.unique(wanted)}
            shapes = {f.shape for f in unique.values()}
            if len(shapes) > 1:
                raise VideoError(self.info.path, "corrupt", f"frames of different sizes: {sorted(shapes)}")
            return _resize_frames(np.stack([unique[int(i)] for i in wanted]), height, width)
        if self.backend == "decord":
            return self._read_decord(wanted, height, width)
        unique_idx = np.unique(wanted)
        try:
            got = self._read_seek(unique_idx, height, width) if self.backend == "seek" else None
            if got is None:
                got = self._read_sequential(unique_idx, height, width)
        except VideoError:
            raise
        except Exception as e:
            raise _classify(self.info.path, e, self._deadline, opened=True) from e
        out = np.empty((len(wanted), height, width, 3), np.uint8)
        for k, i in enumerate(wanted):
            out[k] = got[int(i)]
        return out

    # -- PyAV ------------------------------------------------------------------------------------------

    def _open(self) -> Any:
        if self._container is None:
            self._container = _open_av(self.info.path, self._deadline)
        stream = _video_stream(self.info.path, self._container)
        return self._container, stream

    def _reopen(self) -> Any:
        self.close()
        return self._open()

    def _frame(self, frame: Any, height: int, width: int) -> np.ndarray:
        if self._reformatter is None:
            import av
            from av.video.reformatter import VideoReformatter

            self._reformatter = VideoReformatter()
            # From version 17 on PyAV starts a thread per core for every reader otherwise: a tenth of a read.
            self._one_thread = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}
        rotation = self.info.rotation
        stored_h, stored_w = (width, height) if rotation % 180 else (height, width)
        rgb = self._reformatter.reformat(
            frame,
            width=stored_w,
            height=stored_h,
            format="rgb24",
            interpolation="BILINEAR",
            **self._one_thread,
        ).to_ndarray()
        return np.rot90(rgb, rotation // 90) if rotation else rgb

    def _read_seek(self, wanted: np.ndarray, height: int, width: int) -> dict[int, np.ndarray] | None:
        """Frames by time stamp; None where the file did not keep what its time stamps promised."""
        info = self.info
        container, stream = self._open()
        codec = stream.codec_context
        skip = info.codec in _SKIPPABLE
        ticks = {int(info.pts[i]): int(i) for i in wanted}
        got: dict[int, np.ndarray] = {}
        # Wanted frames by the key frame that they are decoded from (those before the first: from it).
        keys = np.maximum(np.searchsorted(info.key_pts, info.pts[wanted], side="right") - 1, 0)
        groups = [(int(k), {int(info.pts[i]) for i in wanted[keys == k]}) for k in np.unique(keys)]
        starts = {int(info.key_pts[k]) for k, _ in groups}
        last_key, first, packets = -1_000, 0, None
        fed: set[int] = set()  # wanted frames and starting key frames that the decoder has been given
        for number, (key, want) in enumerate(groups):
            start = int(info.key_pts[key])
            feeding = start in fed
            if not feeding:
                if packets is None or key - last_key > _NEAR_GROUPS:
                    container.seek(int(info.key_dts[key]), stream=stream, backward=True)
                    packets = container.demux(stream)
                codec.flush_buffers()
                first = start
                fed.clear()
            last_key = key
            assert packets is not None
            for packet in packets:
                self._deadline.check()
                end_of_file = packet.size == 0 or packet.pts is None
                if not feeding and not end_of_file:
                    if packet.pts != start:
                        continue  # before the key frame: never decoded
                    feeding = True
                if packet.pts in ticks or packet.pts in starts:
                    fed.add(packet.pts)
                if skip and not end_of_file:
                    codec.skip_frame = "DEFAULT" if packet.pts in ticks else "NONREF"
                frames = [] if end_of_file else codec.decode(packet)
                done = end_of_file or want <= fed
                # The group's packets are in: drain the decoder instead of feeding it up to the next group,
                # unless that one's key frame went in before (an open group ends after it).
                follows = number + 1 < len(groups) and int(info.key_pts[groups[number + 1][0]]) in fed
                if done and not follows:
                    frames = [*frames, *codec.decode(None)]
                for frame in frames:
                    if frame.pts == first and frame.pict_type != _INTRA:
                        return None  # marked as a key frame and is none: only the whole way is exact
                    if frame.is_corrupt and frame.pts is not None and frame.pts >= first:
                        # FFmpeg painted over a fault; what refers to this frame shows it too.
                        raise VideoError(
                            info.path, "corrupt", f"damaged data at frame {_at(info, frame.pts)}"
                        )
                    if frame.pts in ticks and ticks[frame.pts] not in got:
                        got[ticks[frame.pts]] = self._frame(frame, height, width)
                if end_of_file:
                    packets = None  # a further group has to seek
                    fed.clear()
                if done:
                    break
        return got if len(got) == len(wanted) else None

    def decode(self) -> Generator[Any, None, None]:
        """Every frame of a video file in display order, from the start, as PyAV frames (see `to_array`).

        Raises:
            VideoError: `corrupt` at the first damaged frame, `timeout`.
        """
        container, stream = self._reopen()
        try:
            for count, frame in enumerate(container.decode(stream)):
                self._deadline.check()
                if frame.is_corrupt:
                    raise VideoError(self.info.path, "corrupt", f"damaged data at frame {count}")
                yield frame
        except VideoError:
            raise
        except Exception as e:
            raise _classify(self.info.path, e, self._deadline, opened=True) from e
        finally:
            self.close()

    def to_array(self, frame: Any, size: tuple[int, int] | None = None) -> np.ndarray:
        """A frame of `decode` as uint8 `[H, W, 3]`, RGB, rotated for display, scaled to `size` (H, W)."""
        return self._frame(frame, *(size or (self.info.height, self.info.width)))

    def _read_sequential(self, wanted: np.ndarray, height: int, width: int) -> dict[int, np.ndarray]:
        want = {int(i) for i in wanted}
        last = max(want)
        got: dict[int, np.ndarray] = {}
        with contextlib.closing(self.decode()) as frames:
            for count, frame in enumerate(frames):
                if count in want:
                    got[count] = self._frame(frame, height, width)
                if count >= last:
                    break
        if len(got) != len(want):
            raise VideoError(
                self.info.path, "truncated", f"expected {self.info.num_frames} frames, decoded {len(got)}"
            )
        return got

    def _read_decord(self, wanted: np.ndarray, height: int, width: int) -> np.ndarray:
        try:
            clip: np.ndarray = _decord_reader(self.info.path, height, width).get_batch(wanted).asnumpy()
        except Exception as e:
            raise VideoError(self.info.path, "corrupt", _first_line(e)) from e
        return clip


def _decord_reader(path: str, height: int, width: int) -> Any:
    try:
        import decord
    except ImportError:
        raise InputError("reader: expected decord to be installed (pip install decord), it is not") from None
    return decord.VideoReader(path, width=width, height=height, num_threads=1)


def decord_agrees(info: VideoInfo, *, timeout_s: float | None = DEFAULT_TIMEOUT_S) -> bool:
    """Whether decord shows a file's frames: as many of them, and the same ones in random order.

    Compares the first, the last and five frames between, and those around up to four key frames (where decord
    goes wrong on open groups), with those of the file's own way of reading: mean absolute difference under 2
    grey levels. Files that are not read by `seek` are never given to decord.

    Raises:
        InputError: decord is not installed.
        VideoError: the file is bad in itself.
    """
    if info.backend != "seek" or info.rotation:
        return False
    n, rng = info.num_frames, np.random.default_rng(0)
    keys = np.searchsorted(info.pts, info.key_pts)
    keys = rng.choice(keys, min(4, len(keys)), replace=False)
    around = (keys[:, None] + np.arange(-4, 3)).ravel()
    asked = np.concatenate([np.linspace(0, n - 1, 7).astype(np.int64), around[(around >= 0) & (around < n)]])
    asked = rng.permutation(np.unique(asked))
    try:
        reader = _decord_reader(info.path, info.height, info.width)
        if len(reader) != n:
            return False
        shown = [reader.get_batch([int(i)]).asnumpy()[0] for i in asked]
    except InputError:
        raise
    except Exception:
        return False  # whatever decord says of a file that has been read: it is not decord's
    expected = read_clip(info.path, asked, info=info, timeout_s=timeout_s)
    return all(
        np.abs(got.astype(np.int16) - frame).mean() < 2 for got, frame in zip(shown, expected, strict=True)
    )


def first_frame(path: str, start: int) -> int:
    """Where a stretch that begins at `start` begins, counted from 0.

    In a folder of images `start` is the number in the name of the first image, as in V2's lists (`1` for
    `img_00001.jpg`); 0 is the first image whatever its name.

    Raises:
        VideoError: `truncated`, where no image has that number.
    """
    if start == 0 or not os.path.isdir(path):
        return start
    for place, name in enumerate(frame_files(path)):
        digits = re.findall(r"\d+", os.path.splitext(name)[0])
        if digits and int(digits[-1]) == start:
            return place
    raise VideoError(path, "truncated", f"the list asks for image number {start}, the folder has none")


def _at(info: VideoInfo, pts: int) -> int:
    """The number of the frame shown at `pts`."""
    return int(np.searchsorted(info.pts, pts))


def _open_av(path: str, deadline: Deadline) -> Any:
    import av

    try:
        return av.open(path, timeout=deadline.left)
    except Exception as e:
        raise _classify(path, e, deadline) from e


def _video_stream(path: str, container: Any) -> Any:
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


def _classify(path: str, error: Exception, deadline: Deadline, *, opened: bool = False) -> VideoError:
    """FFmpeg's errors as a `VideoError` with a reason; `opened`: the file had been taken for a video."""
    import av.error

    if isinstance(error, VideoError):
        return error
    if isinstance(error, av.error.ExitError | av.error.TimeoutError) or time.monotonic() > deadline.end:
        return VideoError(path, "timeout", f"more than {deadline.seconds} s")
    if isinstance(error, PermissionError):
        return VideoError(path, "no_permission", _first_line(error))
    if isinstance(error, FileNotFoundError):
        return VideoError(path, "missing", "no such file")
    cut = "" if opened else _cut_mp4(path)
    if cut:
        return VideoError(path, "truncated", cut)
    return VideoError(path, "corrupt" if opened else "unreadable", _first_line(error))


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


def _first_line(error: Exception) -> str:
    import errno

    # FFmpeg's own codes are large numbers that say nothing to a reader.
    code = getattr(error, "errno", None)
    if code is not None and code not in errno.errorcode and getattr(error, "strerror", None):
        return str(error.strerror)  # type: ignore[attr-defined]
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _probe_av(path: str, common: dict[str, Any], deadline: Deadline) -> VideoInfo:
    container = _open_av(path, deadline)
    try:
        stream = _video_stream(path, container)
        codec = stream.codec_context
        name = container.format.name
        promised = int(stream.frames or 0)
        # Matroska and FLV state how long the file is in all its streams: the sign of a cut one.
        stated_s = (container.duration or 0) / 1e6 if name in ("matroska,webm", "flv") else 0.0
        end_s = step_s = 0.0
        pts: list[int] = []
        keys: list[tuple[int, int]] = []
        stamped, num_packets = True, 0
        for packet in container.demux() if stated_s else container.demux(stream):
            deadline.check()
            if packet.size == 0:
                continue
            if stated_s and packet.pts is not None and packet.time_base:
                end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index != stream.index:
                continue
            num_packets += 1
            if packet.is_corrupt:
                damaged = name in ("mpegts", "mpeg")
                what = "is damaged" if damaged else "is cut short"
                raise VideoError(
                    path, "corrupt" if damaged else "truncated", f"packet {num_packets - 1} {what}"
                )
            if codec.name == "vp8" and not bytes(packet)[0] & 0x10:
                continue  # an alternate reference: decoded, never shown
            if packet.pts is None:
                stamped = False
                continue
            step_s = max(step_s, float((packet.duration or 0) * (packet.time_base or 0)))
            if packet.is_keyframe:
                keys.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
            if not packet.is_discard:
                pts.append(packet.pts)
        start_s = (container.start_time or 0) / 1e6
        if num_packets and stated_s and stated_s - (end_s - start_s) > max(3 * step_s, 0.02 * stated_s):
            raise VideoError(
                path,
                "truncated",
                f"the header says {stated_s:.2f} s, the file ends at {end_s - start_s:.2f} s",
            )
        if num_packets == 0:
            raise VideoError(path, "truncated" if promised or stated_s else "no_frames", "no video packets")
        if promised and num_packets < promised:
            raise VideoError(
                path, "truncated", f"the header says {promised} frames, the file has {num_packets}"
            )
        seekable = (
            stamped
            and bool(keys)
            # AVI stores no display times: with reordered frames they are FFmpeg's guess.
            and not (name == "avi" and codec.has_b_frames)
            and len(set(pts)) == len(pts)
            and any(kind in name.split(",") for kind in _SEEKABLE)
            and codec.name.removeprefix("lib") in _COUNTED_BY_PACKETS | {"dav1d", "aom-av1"}
        )
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        pts.sort()
        steps = np.diff(np.asarray(pts, np.int64))
        time_base = float(stream.time_base or 0)
        shown: dict[str, Any] = {"codec": codec.name, "container": name, "fps": rate}
    except VideoError:
        container.close()
        raise
    except Exception as e:
        container.close()
        raise _classify(path, e, deadline) from e
    container.close()
    # A second opening: decode the first frame (seek), or all of them (sequential), as a reader would.
    container = _open_av(path, deadline)
    try:
        stream = _video_stream(path, container)
        first, count = None, 0
        for frame in container.decode(stream):
            deadline.check()
            if frame.is_corrupt and not seekable:
                raise VideoError(path, "corrupt", f"damaged data at frame {count}")
            first = frame if first is None else first
            count += 1
            if seekable:
                break
        if first is None:
            raise VideoError(path, "corrupt", "no frame could be decoded")
        rotation = round(first.rotation / 90) * 90 % 360
        width, height = (first.height, first.width) if rotation % 180 else (first.width, first.height)
    except VideoError:
        raise
    except Exception as e:
        raise _classify(path, e, deadline, opened=True) from e
    finally:
        container.close()
    # Tolerates the rounding of e.g. 29.97 fps to millisecond stamps.
    spread = int(steps.max() - steps.min()) if len(steps) else 0
    variable = len(steps) > 1 and spread > 0.25 * float(np.median(steps)) and spread > 1
    if seekable and rate == 0 and len(steps):
        shown["fps"] = 1.0 / (float(np.mean(steps)) * time_base)
    keys.sort()
    return VideoInfo(
        backend="seek" if seekable else "sequential",
        num_frames=len(pts) if seekable else count,
        width=width,
        height=height,
        rotation=rotation,
        variable_rate=variable,
        pts=np.asarray(pts if seekable else [], np.int64),
        key_pts=np.asarray([k[0] for k in keys] if seekable else [], np.int64),
        key_dts=np.asarray([k[1] for k in keys] if seekable else [], np.int64),
        **shown,
        **common,
    )


# -- images and arrays ---------------------------------------------------------------------------------


def frame_files(folder: str) -> list[str]:
    """The image files of a folder in the order of the numbers in their names (`img_2` before `img_10`)."""
    names = [n for n in os.listdir(folder) if n.lower().endswith(IMAGE_SUFFIXES)]
    return sorted(names, key=lambda n: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", n)])


def _read_image(folder: str, name: str) -> np.ndarray:
    import cv2

    path = os.path.join(folder, name)
    with open(path, "rb") as f:  # cv2.imread prints a warning and cannot do every unicode path
        data = np.frombuffer(f.read(), np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
    if image is None:
        raise VideoError(path, "corrupt", "not an image")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _open_npy(path: str) -> np.ndarray:
    try:
        clip: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as e:
        raise VideoError(path, "unreadable", _first_line(e)) from e
    if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[-1] != 3 or not clip.size:
        found = f"{clip.dtype} {list(clip.shape)}"
        del clip  # a traceback would keep the mapped file open
        raise VideoError(path, "corrupt", f"expected uint8 [T, H, W, 3], got {found}")
    return clip


def _resize_frames(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 `[T, H, W, 3]` to `[T, height, width, 3]`: area when shrinking, bilinear when enlarging."""
    import cv2

    if frames.shape[1:3] == (height, width):
        return frames
    method = cv2.INTER_AREA if height < frames.shape[1] else cv2.INTER_LINEAR
    out = np.empty((len(frames), height, width, 3), np.uint8)
    for k, frame in enumerate(frames):
        cv2.resize(frame, (width, height), dst=out[k], interpolation=method)
    return out
