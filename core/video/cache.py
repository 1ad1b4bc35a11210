"""Decode a list of videos once, at a small size, into one memory-mapped file that every process shares.

For small data sets that are read hundreds of times (sweeps): reading a clip becomes a copy of a few pages.
The file is found by a digest of the list (paths and contents) and the short side, so a video that is edited
or replaced is decoded again and an unchanged list never is. It is made room for before anything is decoded,
and every video in it has a sum: a file that was changed since it was written is decoded anew where a sum does
not hold. It may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vmae.core.errors import InputError, VideoError
from vmae.core.files import TEMPORARY, fsync, write_json
from vmae.core.locks import locked
from vmae.core.video.config import DataConfig
from vmae.core.video.container import DEFAULT_TIMEOUT_S
from vmae.core.video.identity import canonical, fingerprints
from vmae.core.video.isolate import run_limited
from vmae.core.video.probe import VideoInfo, probe_video
from vmae.core.video.reader import read_clip
from vmae.core.video.samples import Sample
from vmae.core.video.threads import reading_threads

R = TypeVar("R")
ProgressCallback = Callable[[int, int], None]
Entry = tuple[int, int, int, int, int]
"""Of a video: byte offset, frames, height, width, CRC-32."""
_VERSION = 2
_CHUNK_FRAMES = 256
_FRAMES, _INDEX = "frames.bin", "index.json"


class DecodedCache:
    """Whole videos as uint8 `[T, H, W, C]`, read-only, by path.

    Use `DecodedCache.build`, which opens the cache where it exists. Pickles to its path (workers map the
    file themselves).
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        meta = json.loads((self.folder / _INDEX).read_text(encoding="utf-8"))
        self.short_side: int = meta["short_side"]
        self._entries: dict[str, Entry] = {k: tuple(v) for k, v in meta["videos"].items()}
        self.channels: int = meta.get("channels", 3)
        self.errors: dict[str, tuple[str, str]] = {k: tuple(v) for k, v in meta["errors"].items()}
        self.nbytes: int = meta["bytes"]
        self._written: list[int] = meta["written"]
        self._rates: dict[str, float] = meta["rates"]
        data = self.folder / _FRAMES
        if data.stat().st_size != self.nbytes:
            raise ValueError(f"{data}: expected {self.nbytes} bytes, got {data.stat().st_size}")
        self._data = np.memmap(data, np.uint8, mode="r") if self.nbytes else np.empty(0, np.uint8)

    def __reduce__(self) -> tuple[type[DecodedCache], tuple[str]]:
        return type(self), (str(self.folder),)

    def __contains__(self, path: str) -> bool:
        path = canonical(path)
        return path in self._entries or path in self.errors

    def __len__(self) -> int:
        return len(self._entries)

    def frames(self, path: str) -> np.ndarray:
        """The whole video, uint8 `[T, H, W, C]`, a view of the mapped file.

        Raises:
            VideoError: the file could not be decoded when the cache was built, or is not in it.
        """
        place = canonical(path)
        entry = self._entries.get(place)
        if entry is None:
            raise VideoError(path, *self.errors.get(place, ("missing", f"not in the cache {self.folder}")))
        offset, frames, height, width, _ = entry
        shape = (frames, height, width, self.channels)
        return self._data[offset : offset + math.prod(shape)].reshape(shape)

    def rate(self, path: str) -> float:
        """Frames a second of the video, on average; 0 where there is no time."""
        return self._rates.get(canonical(path), 0.0)

    def require_whole(self) -> None:
        """Raise ValueError where the frames are not those that were written.

        A file that nothing has touched since is not read; else every video's sum is made.
        """
        path = self.folder / _FRAMES
        if _stamp(path) == self._written:
            return
        with reading_threads(os.cpu_count() or 1) as in_threads:
            sums = in_threads(lambda p: zlib.crc32(self.frames(p).data), self._entries)
            for entry, found in zip(self._entries.values(), sums, strict=True):
                if entry[-1] != found:
                    raise ValueError(f"{path}: changed since it was written")
        meta = json.loads((self.folder / _INDEX).read_text(encoding="utf-8"))
        write_json(self.folder / _INDEX, meta | {"written": _stamp(path)})

    @classmethod
    def build(
        cls,
        samples: Sequence[Sample],
        root: str | Path,
        short_side: int,
        *,
        workers: int | None = None,
        progress: ProgressCallback | None = None,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        channels: int = 3,
    ) -> DecodedCache:
        """Open the cache of these videos under `root`, decoding them first where it is not there yet.

        Args:
            samples: the list; a path may occur more than once.
            root: folder of all caches; this one gets a folder named by its digest.
            short_side: pixels of the shorter side; larger videos are scaled down, smaller ones kept.
            workers: decoding threads (FFmpeg works outside the interpreter lock); default: the cores.
            progress: called as `progress(done, total)` with videos; also once for an existing cache.
            timeout_s: limit for each video.
            channels: of every frame (`read_clip`).

        Several processes may call this at once: one builds, the others wait. An interrupted build leaves
        nothing behind that a later one would take for whole; what a killed one leaves the next one removes.

        Raises:
            InputError: no sample, a short side below 8, or no room on the disk.
        """
        if not samples:
            raise InputError("cache: expected at least one video, got none")
        if short_side < 8:
            raise InputError(f"cache: expected a short side of at least 8 pixels, got {short_side}")
        paths = sorted({canonical(s.path) for s in samples})
        root = Path(root)
        root.mkdir(parents=True, exist_ok=True)
        folder = root / _digest(paths, short_side, channels)
        sweep_unfinished(root)
        with locked(root / f"{folder.name}.lock"):
            cache = cls._whole(folder)
            if cache is None:
                _decode_all(
                    paths,
                    folder,
                    short_side,
                    workers=workers or os.cpu_count() or 1,
                    progress=progress,
                    timeout_s=timeout_s,
                    channels=channels,
                )
                cache = cls(folder)
        if progress is not None:
            progress(len(paths), len(paths))
        return cache

    @classmethod
    def _whole(cls, folder: Path) -> DecodedCache | None:
        """The cache in `folder` where it is there and undamaged."""
        try:
            cache = cls(folder)
            cache.require_whole()
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
            return None
        with contextlib.suppress(OSError):
            os.utime(folder)  # when it was last used
        return cache


def build_cache(
    samples: Sequence[Sample],
    config: DataConfig,
    folder: Path,
    *,
    workers: int | None = None,
    progress: ProgressCallback | None = None,
) -> DecodedCache | None:
    """The decoded cache in `folder` that `config` asks for (None where it asks for none).

    See `DecodedCache.build`.
    """
    if not config.cache:
        return None
    return DecodedCache.build(
        samples,
        folder,
        config.decoded_short_side,
        workers=workers,
        progress=progress,
        timeout_s=config.timeout_s,
        channels=config.channels,
    )


def sweep_unfinished(root: Path) -> list[Path]:
    """Remove what killed builds left under `root`; builds that go on keep theirs. Returns what is gone."""
    gone = []
    for left in sorted(root.glob(f".*{TEMPORARY}")):
        digest = left.name.split(".")[1]
        with contextlib.suppress(BlockingIOError), locked(root / f"{digest}.lock", wait=False):
            shutil.rmtree(left, ignore_errors=True)
            gone.append(left)
    return gone


def being_built(folder: Path) -> bool:
    """Whether a process is building the cache of this folder now."""
    lock = folder.with_name(f"{folder.name}.lock")
    if lock.exists():
        try:
            with locked(lock, wait=False):
                return False
        except BlockingIOError:
            return True
    return any(folder.parent.glob(f".{folder.name}.*{TEMPORARY}"))


def _digest(paths: list[str], short_side: int, channels: int) -> str:
    digest = hashlib.sha256(f"{_VERSION} {short_side}{f' {channels}' * (channels != 3)}\n".encode())
    for path, found in fingerprints(paths).items():
        digest.update(f"{path}\0{found}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:20]


def _stamp(path: Path) -> list[int]:
    """What changes when anything writes to a file or takes its place; a copy has another one."""
    st = path.stat()
    return [st.st_size, st.st_mtime_ns, st.st_ctime_ns, st.st_ino]


def _allocate(path: Path, size: int) -> None:
    """A file of that size, its room taken: writing to it mapped then never meets a full disk.

    Raises:
        InputError: no room.
    """
    try:
        with open(path, "wb") as f:
            if size:
                os.posix_fallocate(f.fileno(), 0, size)
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        free = shutil.disk_usage(path.parent).free
        raise InputError(
            f"{path.parent.parent}: expected {size / 1e6:,.0f} MB of room for the decoded clips "
            f"(data.cache), found {free / 1e6:,.0f} MB: make room, or set data.cache=false or a smaller "
            "data.cache_short_side"
        ) from None


def _decode_all(
    paths: list[str],
    folder: Path,
    short_side: int,
    *,
    workers: int,
    progress: ProgressCallback | None,
    timeout_s: float | None,
    channels: int,
) -> None:
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}{TEMPORARY}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    errors: dict[str, tuple[str, str]] = {}

    def limited(path: str, function: Callable[[], R]) -> R:
        """A decoder that is stuck inside one call is left behind, as in training."""
        return function() if timeout_s is None else run_limited(function, path, 2 * timeout_s + 1)

    def probe(path: str) -> VideoInfo | None:
        try:
            return limited(path, lambda: probe_video(path, timeout_s=timeout_s))
        except VideoError as e:
            errors[path] = (e.reason, e.detail)
            return None

    if progress is not None:
        progress(0, len(paths))
    try:
        with reading_threads(workers) as in_threads:
            infos = list(in_threads(probe, paths))
        entries: dict[str, Entry] = {}
        total = 0
        for info in infos:
            if info is not None:
                height, width = info.resized(min(short_side, info.height, info.width))
                entries[info.path] = (total, info.num_frames, height, width, 0)
                total += info.num_frames * height * width * channels
        _allocate(temporary / _FRAMES, total)
        data = np.memmap(temporary / _FRAMES, np.uint8, mode="r+") if total else np.empty(0, np.uint8)

        def decode(info: VideoInfo) -> None:
            offset, frames, height, width, checksum = entries[info.path]
            try:
                # In pieces, so that a long video at full size never stands in memory whole.
                for first in range(0, frames, _CHUNK_FRAMES):
                    piece = range(first, min(first + _CHUNK_FRAMES, frames))
                    read = partial(
                        read_clip,
                        info.path,
                        piece,
                        min(height, width),
                        info=info,
                        timeout_s=timeout_s,
                        channels=channels,
                    )
                    clip = limited(info.path, read)
                    start = offset + first * height * width * channels
                    data[start : start + clip.size] = clip.reshape(-1)
                    checksum = zlib.crc32(clip.data, checksum)
                entries[info.path] = (offset, frames, height, width, checksum)
            except VideoError as e:
                errors[info.path] = (e.reason, e.detail)
                del entries[info.path]

        good = [info for info in infos if info is not None]
        with reading_threads(workers) as in_threads:
            for done, _ in enumerate(in_threads(decode, good), start=1):
                if progress is not None:
                    progress(done, len(paths))
        if isinstance(data, np.memmap):
            data.flush()
        fsync(temporary / _FRAMES)
        meta: dict[str, Any] = {
            "version": _VERSION,
            "short_side": short_side,
            "channels": channels,
            "bytes": total,
            "written": _stamp(temporary / _FRAMES),
            "videos": entries,
            "rates": {info.path: info.fps for info in good},
            "errors": errors,
        }
        write_json(temporary / _INDEX, meta)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
