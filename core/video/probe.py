"""What a file is and how it must be read, found out once: frames, size as displayed, time stamps, faults."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vmae.core.errors import VideoError
from vmae.core.video.container import DEFAULT_TIMEOUT_S, Deadline, classify, open_container, video_stream
from vmae.core.video.stills import IMAGE_SUFFIXES, frame_files, open_npy, read_image

Backend = Literal["seek", "sequential", "decord", "frames", "npy"]
# Containers whose packets carry true presentation times and whose seeking lands at or before the target.
_SEEKABLE = ("mov", "mp4", "matroska", "webm", "avi")
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


def stat_file(path: str) -> os.stat_result:
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
    st = stat_file(path)
    common = {"path": path, "size_bytes": st.st_size, "mtime_ns": st.st_mtime_ns}
    if stat.S_ISDIR(st.st_mode):
        names = frame_files(path)
        if not names:
            raise VideoError(path, "no_frames", f"a folder without {', '.join(IMAGE_SUFFIXES)} files")
        height, width = read_image(path, names[0]).shape[:2]
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
        clip = open_npy(path)
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


def _probe_av(path: str, common: dict[str, Any], deadline: Deadline) -> VideoInfo:
    container = open_container(path, deadline)
    try:
        stream = video_stream(path, container)
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
        raise classify(path, e, deadline) from e
    container.close()
    # A second opening: decode the first frame (seek), or all of them (sequential), as a reader would.
    container = open_container(path, deadline)
    try:
        stream = video_stream(path, container)
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
        raise classify(path, e, deadline, opened=True) from e
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
