"""What a file is and how it must be read, found out once: frames, size as displayed, time stamps, faults.

What counts is what a decode from start to end shows, as FFmpeg shows it: frames that come out (packets of an
open group whose references are gone never do, nor what an edit list hides), turned and mirrored by the whole
display matrix, at the aspect of the display (pixels need not be square). What headers promise (numbers of
frames, lengths, key frames) is a hint.
"""

from __future__ import annotations

import itertools
import math
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vmae.core.errors import VideoError
from vmae.core.video.container import (
    DEFAULT_TIMEOUT_S,
    Deadline,
    classify,
    frames_in_order,
    open_container,
    require_pixels,
    video_stream,
)
from vmae.core.video.stills import IMAGE_SUFFIXES, frame_files, open_npy, read_image
from vmae.core.video.structure import ends_inside

Backend = Literal["seek", "sequential", "decord", "frames", "npy"]
# Containers whose packets carry true presentation times and whose seeking lands at or before the target.
_SEEKABLE = ("mov", "mp4", "matroska", "webm", "avi")
_COUNTED_BY_PACKETS = frozenset({"h264", "hevc", "vp8", "vp9", "av1", "dav1d", "aom-av1", "mpeg4", "mjpeg"})
# Pieces of a transport stream put one after the other: its counters jump, which FFmpeg takes for damage to
# the last frame or the one before it. Then comes a key frame.
_JOIN = 2
_NO_VOP = 8  # bytes of an MPEG-4 packet that may only say that nothing is coded
_ASPECTS = (1 / 16, 16.0)  # of a pixel; what is outside was not meant


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What one probe of a file found. Sizes are as displayed: turned as the file says, with square pixels.

    `num_frames` counts the frames that a sequential decode shows. `fps` is the average rate (0.0 where there
    is no time: frame folders, .npy). A stored frame is shown resized (its pixels are `pixel_aspect` times as
    wide as high; the height is kept), then mirrored left to right where `mirrored`, then turned by `rotation`
    degrees counter-clockwise, in [0, 360).
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
    mirrored: bool = False
    pixel_aspect: float = 1.0
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
            `unreadable`, `truncated`, `corrupt`, `too_large` or `timeout`.
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


@dataclass
class _Packets:
    """What a file's packets say, undecoded. Times in stream ticks."""

    codec: str
    container: str
    fps: float
    time_base: float
    reordered: bool
    pts: list[int] = field(default_factory=list)
    """Of the packets that promise a frame, in display order."""
    keys: list[tuple[int, int]] = field(default_factory=list)
    """`(pts, dts)` of the key frames, in display order."""
    hidden: list[int] = field(default_factory=list)
    """Of the packets that an edit list keeps from being shown."""
    in_order: bool = True
    """Decoding times never go back."""
    early: bool = False
    """There are packets before the first key frame, in the file or on the screen: some may never be shown."""
    doubtful: bool = False
    """Other packets may be no frames either: only a decode of the whole file can tell."""

    def add(self, packet: Any) -> None:
        """Note one more packet that has bytes."""
        data = memoryview(packet)
        if self.codec == "vp8" and not data[0] & 0x10:
            return  # an alternate reference: decoded, never shown
        if self.codec == "vp9" and not _vp9_shows(data):
            return
        if self.codec == "mpeg4" and (self.reordered or packet.size <= _NO_VOP):
            self.doubtful = True
        if packet.pts is None:
            self.doubtful = True
            return
        if packet.is_keyframe:
            self.keys.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
        self.early |= not self.keys or packet.pts < self.keys[0][0]
        (self.hidden if packet.is_discard else self.pts).append(packet.pts)

    @property
    def seekable(self) -> bool:
        """Whether a time stamp finds each frame."""
        names = self.container.split(",")
        return (
            self.in_order
            and bool(self.keys and self.pts)
            # AVI stores no display times: with reordered frames they are FFmpeg's guess.
            and not ("avi" in names and self.reordered)
            and len(set(self.pts)) == len(self.pts)
            # Hidden before and after what is shown: a trim. In between: stretches put one after the other.
            and not any(self.pts[0] < t < self.pts[-1] for t in self.hidden)
            and any(kind in names for kind in _SEEKABLE)
            and self.codec.removeprefix("lib") in _COUNTED_BY_PACKETS
        )


def _vp9_shows(data: memoryview) -> bool:
    """Whether a packet shows a frame (VP9 bitstream specification, 6.2 and annex B)."""
    if data[-1] & 0xE0 == 0xC0:
        return True  # a superframe: its last frame is shown
    after = 5 if data[0] >> 4 & 0b11 == 0b11 else 4  # frame_marker, profile and a reserved bit of profile 3
    bits = data[0] << 8 | (data[1] if len(data) > 1 else 0)
    show_existing, show = bits >> 15 - after & 1, bits >> 13 - after & 1
    return bool(show_existing or show)


def _list_packets(path: str, deadline: Deadline) -> _Packets:
    """Read every packet of the video; raises VideoError (`truncated`, ...) where some are missing."""
    container = open_container(path, deadline)
    try:
        stream = video_stream(path, container)
        codec = stream.codec_context
        found = _Packets(
            codec=codec.name,
            container=container.format.name,
            fps=float(stream.average_rate or stream.guessed_rate or 0),
            time_base=float(stream.time_base or 0),
            reordered=bool(codec.has_b_frames),
        )
        promised = int(stream.frames or 0)
        # Matroska and FLV state when the last of all their streams ends.
        stated_s = (container.duration or 0) / 1e6 if found.container in ("matroska,webm", "flv") else 0.0
        start_s = (container.start_time or 0) / 1e6
        end_s, step_s, number = 0.0, 0.0, 0
        last_dts: int | None = None
        damaged: list[int] = []
        joined: list[int] = []
        for packet in container.demux() if stated_s else container.demux(stream):
            deadline.check()
            if packet.size == 0:
                continue
            if stated_s and packet.pts is not None and packet.time_base:
                end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index != stream.index:
                continue
            if packet.is_corrupt:
                damaged.append(number)
            elif packet.is_keyframe and damaged and number - damaged[-1] <= _JOIN:
                joined.append(damaged.pop())
            if packet.dts is not None:
                found.in_order &= last_dts is None or packet.dts >= last_dts
                last_dts = packet.dts
            step_s = max(step_s, float((packet.duration or 0) * (packet.time_base or 0)))
            found.add(packet)
            number += 1
    except VideoError:
        raise
    except Exception as e:
        raise classify(path, e, deadline) from e
    finally:
        container.close()
    if found.container in ("mpegts", "mpeg"):
        if 2 * len(found.keys) > number:
            damaged = sorted(damaged + joined)
        if damaged:
            raise VideoError(path, "corrupt", f"packet {damaged[0]} is damaged")
    elif damaged or joined:
        raise VideoError(path, "truncated", f"packet {min(damaged + joined)} is cut short")
    cut = ends_inside(path)
    if number == 0:
        hinted = cut is None and (promised or stated_s)
        raise VideoError(path, "truncated" if cut or hinted else "no_frames", "no video packets")
    # What a header promises is a hint: it counts where bytes are missing, or where that cannot be known.
    lasting_s = end_s - (start_s if stated_s < start_s else 0.0)
    allowed_s = 2 * step_s if cut else max(3 * step_s, 0.02 * stated_s)
    if stated_s and cut != "" and stated_s - lasting_s > allowed_s:
        raise VideoError(
            path, "truncated", f"the header says {stated_s:.2f} s, the file ends at {lasting_s:.2f} s"
        )
    if cut and number < promised:
        raise VideoError(path, "truncated", f"the header says {promised} frames, the file has {number}")
    found.pts.sort()
    found.keys.sort()
    return found


def _probe_av(path: str, common: dict[str, Any], deadline: Deadline) -> VideoInfo:
    packets = _list_packets(path, deadline)
    container = open_container(path, deadline)
    try:
        stream = video_stream(path, container)
        frames = frames_in_order(container, stream, deadline)
        first = next(frames, None)
        if first is None:
            raise VideoError(path, "corrupt" if packets.pts else "no_frames", "no frame could be decoded")
        geometry = _geometry(path, first, stream.sample_aspect_ratio)
        pts, count = _shown(path, packets, first, frames)
    except VideoError:
        raise
    except Exception as e:
        raise classify(path, e, deadline, opened=True) from e
    finally:
        container.close()
    # Tolerates the rounding of e.g. 29.97 fps to millisecond stamps.
    steps = np.diff(np.asarray(pts or packets.pts, np.int64))
    spread = int(steps.max() - steps.min()) if len(steps) else 0
    fps = packets.fps
    if pts and fps == 0 and len(steps):
        fps = 1.0 / (float(np.mean(steps)) * packets.time_base)
    keys = packets.keys if pts else []
    return VideoInfo(
        backend="seek" if pts else "sequential",
        num_frames=count,
        fps=fps,
        codec=packets.codec,
        container=packets.container,
        variable_rate=len(steps) > 1 and spread > 0.25 * float(np.median(steps)) and spread > 1,
        pts=np.asarray(pts, np.int64),
        key_pts=np.asarray([k[0] for k in keys], np.int64),
        key_dts=np.asarray([k[1] for k in keys], np.int64),
        **geometry,
        **common,
    )


def _shown(path: str, packets: _Packets, first: Any, rest: Iterator[Any]) -> tuple[list[int], int]:
    """`(time stamps of the frames that are shown, how many)`; no stamps where these do not find the frames.

    Decodes no more than it must: nothing after the first frame where every packet before it is one; up to the
    next key frame where packets at the beginning may be none; everything where any may be none, or has to be
    counted.
    """
    seekable = packets.seekable
    whole = not seekable or packets.doubtful or (packets.codec in ("h264", "hevc") and first.interlaced_frame)
    if not whole and not packets.early and first.pts == packets.pts[0]:
        return packets.pts, len(packets.pts)
    expected: list[int] = []
    until = None
    if not whole and first.pts is not None:
        expected = [t for t in packets.pts if t >= first.pts]
        until = next((t for t, _ in packets.keys if t > first.pts), None)
    shown: list[int | None] = []
    for frame in itertools.chain([first], rest):
        if frame.is_corrupt and not seekable:
            raise VideoError(path, "corrupt", f"damaged data at frame {len(shown)}")
        shown.append(frame.pts)
        if until is not None and frame.pts is not None and frame.pts >= until:
            if expected[: len(shown)] == shown:
                return expected, len(expected)
            until = None
    stamps = [t for t in shown if t is not None]
    known = set(packets.pts)
    trusted = len(stamps) == len(shown) and stamps == sorted(set(stamps)) and known.issuperset(stamps)
    return (stamps if seekable and trusted else []), len(shown)


def _geometry(path: str, first: Any, pixel_aspect: Any) -> dict[str, Any]:
    """How a stored frame is shown, as fields of `VideoInfo`."""
    aspect = float(pixel_aspect or 1)
    if not _ASPECTS[0] <= aspect <= _ASPECTS[1]:
        aspect = 1.0
    rotation, mirrored = 0, False
    for side in first.side_data:
        if side.type.name == "DISPLAYMATRIX" and len(bytes(side)) >= _MATRIX.size:
            rotation, mirrored = orientation(_MATRIX.unpack(bytes(side)[: _MATRIX.size]))
    height, width = first.height, max(1, round(first.width * aspect))
    if rotation % 180 == 90:
        height, width = width, height
    require_pixels(path, height, width)
    return {
        "height": height,
        "width": width,
        "rotation": rotation,
        "mirrored": mirrored,
        "pixel_aspect": aspect,
    }


_MATRIX = struct.Struct("=9i")


def orientation(matrix: Sequence[int]) -> tuple[int, bool]:
    """`(degrees counter-clockwise in [0, 360), mirrored left to right before)` of a display matrix.

    The matrix `a b u c d v x y w` (ISO/IEC 14496-12, 6.2.2) takes the point (p, q), q downwards, to
    (a p + c q, b p + d q). Scale and shift are left out, and angles within a degree of a right one are right
    ones, as FFmpeg's command line has it.
    """
    a, b, _, c, d = matrix[:5]
    mirrored = a * d - b * c < 0
    if mirrored:
        a, b = -a, -b
    degrees = round(math.degrees(math.atan2(-b, a)))
    nearest = round(degrees / 90) * 90
    return (nearest if abs(degrees - nearest) < 1 else degrees) % 360, mirrored
