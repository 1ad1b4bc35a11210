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

A file's probe (`vmae.core.video.probe`) decides once which. Nothing here is shared between processes: a
reader opened before a fork fails in the child in every library, so readers are opened where they are used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vmae.core.errors import InputError, VideoError
from vmae.core.video.container import (
    DEFAULT_TIMEOUT_S,
    Deadline,
    classify,
    first_line,
    frames_in_order,
    open_container,
    video_stream,
)
from vmae.core.video.probe import Backend, VideoInfo
from vmae.core.video.probe_store import cached_info, remember_info
from vmae.core.video.stills import frame_files, open_npy, read_image, resize_frames

# Codecs whose decoders leave out an unreferenced frame on request without touching any other (tested).
_SKIPPABLE = frozenset({"h264", "hevc"})
# A key frame this many groups on is reached by dropping packets, a further one by seeking.
_NEAR_GROUPS = 4
_INTRA = 1  # AV_PICTURE_TYPE_I


def read_clip(
    path: str | Path,
    indices: Sequence[int] | np.ndarray,
    short_side: int | None = None,
    *,
    info: VideoInfo | None = None,
    timeout_s: float | None = DEFAULT_TIMEOUT_S,
    channels: int | None = 3,
) -> np.ndarray:
    """Read frames of a video file, a folder of images or a .npy clip.

    Args:
        path: the file or folder.
        indices: frame numbers in `[0, num_frames)`, any order, repeats allowed; `T` of them.
        short_side: scale so that the shorter side has this many pixels (None: the size of the file).
        info: what `probe_video` found; without it the file is probed (and remembered in this process).
        timeout_s: limit for opening and reading together; None: no limit.
        channels: what the frames must have (only .npy clips have others than 3); None: any.

    Returns:
        uint8 `[T, H, W, C]`; of videos and images RGB, as displayed (turned, mirrored, with square pixels).

    Raises:
        InputError: an index outside the file.
        VideoError: the file is bad; `.reason` as in `probe_video`.
    """
    with open_video(path, info=info, timeout_s=timeout_s) as video:
        return video.read(indices, short_side, channels)


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

    def read(
        self, indices: Sequence[int] | np.ndarray, short_side: int | None = None, channels: int | None = 3
    ) -> np.ndarray:
        """uint8 `[T, H, W, C]`; see `read_clip`."""
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
            clip = open_npy(self.info.path, channels)
            return resize_frames(np.ascontiguousarray(clip[wanted]), height, width)
        if channels not in (None, 3):
            raise VideoError(
                self.info.path, "channels", f"expected {channels} channels (data.channels), got a video's 3"
            )
        if self.backend == "frames":
            return self._read_stills(wanted, height, width)
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
            raise classify(self.info.path, e, self._deadline, opened=True) from e
        out = np.empty((len(wanted), height, width, 3), np.uint8)
        for k, i in enumerate(wanted):
            out[k] = got[int(i)]
        return out

    def _read_stills(self, wanted: np.ndarray, height: int, width: int) -> np.ndarray:
        info, names = self.info, frame_files(self.info.path)
        if len(names) != info.num_frames:
            raise VideoError(
                info.path, "truncated", f"expected {info.num_frames} images, the folder has {len(names)}"
            )
        shown: dict[int, np.ndarray] = {}
        for i in np.unique(wanted):
            self._deadline.check()
            image = read_image(info.path, names[i])
            if image.shape[:2] != (info.height, info.width):
                sizes = sorted({(info.height, info.width), image.shape[:2]})
                raise VideoError(info.path, "corrupt", f"frames of different sizes: {sizes} ({names[i]})")
            shown[int(i)] = resize_frames(image[None], height, width)[0]
        return np.stack([shown[int(i)] for i in wanted])

    # -- PyAV ------------------------------------------------------------------------------------------

    def _open(self) -> Any:
        if self._container is None:
            self._container = open_container(self.info.path, self._deadline)
        stream = video_stream(self.info.path, self._container)
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
        info = self.info
        # Straight to the displayed aspect at the asked size: pixels are resized once.
        stored_h, stored_w = (width, height) if info.rotation % 180 == 90 else (height, width)
        rgb = self._reformatter.reformat(
            _progressive(frame) if frame.interlaced_frame else frame,
            width=stored_w,
            height=stored_h,
            format="rgb24",
            interpolation="BILINEAR",
            **self._one_thread,
        ).to_ndarray()
        return turned(rgb, info.rotation, info.mirrored)

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
            for count, frame in enumerate(frames_in_order(container, stream, self._deadline)):
                if frame.is_corrupt:
                    raise VideoError(self.info.path, "corrupt", f"damaged data at frame {count}")
                yield frame
        except VideoError:
            raise
        except Exception as e:
            raise classify(self.info.path, e, self._deadline, opened=True) from e
        finally:
            self.close()

    def to_array(self, frame: Any, size: tuple[int, int] | None = None) -> np.ndarray:
        """A frame of `decode` as uint8 `[H, W, 3]`, RGB, as displayed, scaled to `size` (H, W)."""
        return self._frame(frame, *(size or (self.info.height, self.info.width)))

    def _read_sequential(self, wanted: np.ndarray, height: int, width: int) -> dict[int, np.ndarray]:
        """Frames by decoding from the start: found by their time stamps where the file is counted by these,
        else by their place."""
        info = self.info
        stamped = len(info.pts) > 0
        number = {int(info.pts[i]) if stamped else int(i): int(i) for i in wanted}
        last = max(number)
        got: dict[int, np.ndarray] = {}
        with contextlib.closing(self.decode()) as frames:
            for count, frame in enumerate(frames):
                at = frame.pts if stamped else count
                if at in number:
                    got[number[at]] = self._frame(frame, height, width)
                if at is not None and at >= last:
                    break
        absent = sorted(set(number.values()) - set(got))
        if absent:
            what = f"expected {info.num_frames} frames, number {absent[0]} never comes out"
            raise VideoError(info.path, "truncated", what)
        return got

    def _read_decord(self, wanted: np.ndarray, height: int, width: int) -> np.ndarray:
        try:
            clip: np.ndarray = _decord_reader(self.info.path, height, width).get_batch(wanted).asnumpy()
        except InputError:
            raise  # not the file's fault: decord is not installed here
        except Exception as e:
            raise VideoError(self.info.path, "corrupt", first_line(e)) from e
        return clip


def _decord_reader(path: str, height: int, width: int) -> Any:
    try:
        import decord
    except ImportError:
        raise InputError("reader: expected decord to be installed (pip install decord), it is not") from None
    return decord.VideoReader(os.path.abspath(path), width=width, height=height, num_threads=1)


def decord_agrees(info: VideoInfo, *, timeout_s: float | None = DEFAULT_TIMEOUT_S) -> bool:
    """Whether decord shows a file's frames: as many of them, and the same ones in random order.

    Compares the first, the last and five frames between, and those around up to four key frames (where decord
    goes wrong on open groups), with those of the file's own way of reading: mean absolute difference under 2
    grey levels. Files that are not read by `seek` are never given to decord.

    Raises:
        InputError: decord is not installed.
        VideoError: the file is bad in itself.
    """
    if info.backend != "seek" or info.rotation or info.mirrored:
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


def _progressive(frame: Any) -> Any:
    """The same picture without the mark of two fields, at which the scaler would resize each on its own."""
    import av

    copy = av.VideoFrame(frame.width, frame.height, frame.format.name)
    copy.colorspace, copy.color_range = frame.colorspace, frame.color_range
    for mine, theirs in zip(copy.planes, frame.planes, strict=True):
        rows = [np.frombuffer(memoryview(p), np.uint8).reshape(-1, p.line_size) for p in (mine, theirs)]
        height, width = (min(sizes) for sizes in zip(*(r.shape for r in rows), strict=True))
        rows[0][:height, :width] = rows[1][:height, :width]
    return copy


def turned(image: np.ndarray, degrees: int, mirrored: bool) -> np.ndarray:
    """`[H, W, 3]` mirrored left to right where `mirrored`, then turned counter-clockwise. Other than by right
    angles: about the centre in a frame of the same size, black where nothing is, as FFmpeg does it."""
    if mirrored:
        image = image[:, ::-1]
    if degrees % 90 == 0:
        return np.rot90(image, degrees // 90) if degrees else image
    import cv2

    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    return cv2.warpAffine(np.ascontiguousarray(image), matrix, (width, height))


def _at(info: VideoInfo, pts: int) -> int:
    """The number of the frame shown at `pts`."""
    return int(np.searchsorted(info.pts, pts))
