"""Decode a list of videos once, at a small size, into one memory-mapped file that every process shares.

For small data sets that are read hundreds of times (sweeps): reading a clip becomes a copy of a few pages.
The file is found by a digest of the list (paths, sizes, times of change) and the short side, so an edited
video is decoded again and an unchanged list never is.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vmae.core.errors import InputError, VideoError
from vmae.core.video.config import DataConfig
from vmae.core.video.container import DEFAULT_TIMEOUT_S
from vmae.core.video.isolate import run_limited
from vmae.core.video.probe import VideoInfo, probe_video
from vmae.core.video.reader import read_clip
from vmae.core.video.samples import Sample

R = TypeVar("R")
ProgressCallback = Callable[[int, int], None]
_VERSION = 1
_CHUNK_FRAMES = 256


class DecodedCache:
    """Whole videos as uint8 `[T, H, W, 3]`, read-only, by path.

    Use `DecodedCache.build`, which opens the cache where it exists. Pickles to its path (workers map the
    file themselves).
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        meta = json.loads((self.folder / "index.json").read_text(encoding="utf-8"))
        self.short_side: int = meta["short_side"]
        # path -> (byte offset, frames, height, width)
        self._entries: dict[str, tuple[int, int, int, int]] = {k: tuple(v) for k, v in meta["videos"].items()}
        self.errors: dict[str, tuple[str, str]] = {k: tuple(v) for k, v in meta["errors"].items()}
        data = self.folder / "frames.bin"
        self.nbytes = data.stat().st_size
        self._data = np.memmap(data, np.uint8, mode="r") if self.nbytes else np.empty(0, np.uint8)

    def __reduce__(self) -> tuple[type[DecodedCache], tuple[str]]:
        return type(self), (str(self.folder),)

    def __contains__(self, path: str) -> bool:
        return path in self._entries or path in self.errors

    def __len__(self) -> int:
        return len(self._entries)

    def frames(self, path: str) -> np.ndarray:
        """The whole video, uint8 `[T, H, W, 3]`, a view of the mapped file.

        Raises:
            VideoError: the file could not be decoded when the cache was built, or is not in it.
        """
        entry = self._entries.get(path)
        if entry is None:
            raise VideoError(path, *self.errors.get(path, ("missing", f"not in the cache {self.folder}")))
        offset, frames, height, width = entry
        return self._data[offset : offset + frames * height * width * 3].reshape(frames, height, width, 3)

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
    ) -> DecodedCache:
        """Open the cache of these videos under `root`, decoding them first where it is not there yet.

        Args:
            samples: the list; a path may occur more than once.
            root: folder of all caches; this one gets a folder named by its digest.
            short_side: pixels of the shorter side; larger videos are scaled down, smaller ones kept.
            workers: decoding threads (FFmpeg works outside the interpreter lock); default: the cores.
            progress: called as `progress(done, total)` with videos; also once for an existing cache.
            timeout_s: limit for each video.

        Several processes may call this at once: one builds, the others wait. An interrupted build leaves
        nothing behind that a later one would take for whole.

        Raises:
            InputError: no sample, or a short side below 8.
        """
        if not samples:
            raise InputError("cache: expected at least one video, got none")
        if short_side < 8:
            raise InputError(f"cache: expected a short side of at least 8 pixels, got {short_side}")
        paths = sorted({s.path for s in samples})
        root = Path(root)
        root.mkdir(parents=True, exist_ok=True)
        folder = root / _digest(paths, short_side)
        with open(root / f"{folder.name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / "index.json").is_file():
                _decode_all(
                    paths,
                    folder,
                    short_side,
                    workers=workers or os.cpu_count() or 1,
                    progress=progress,
                    timeout_s=timeout_s,
                )
        cache = cls(folder)
        if progress is not None:
            progress(len(paths), len(paths))
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
    )


def _digest(paths: list[str], short_side: int) -> str:
    digest = hashlib.sha256(f"{_VERSION} {short_side}\n".encode())
    for path in paths:
        try:
            st = os.stat(path)
            digest.update(f"{path}\0{st.st_size}\0{st.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
        except (OSError, ValueError):
            digest.update(f"{path}\0missing\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:20]


def _decode_all(
    paths: list[str],
    folder: Path,
    short_side: int,
    *,
    workers: int,
    progress: ProgressCallback | None,
    timeout_s: float | None,
) -> None:
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
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

    try:
        with ThreadPoolExecutor(workers) as pool:
            infos = list(pool.map(probe, paths))
        entries: dict[str, tuple[int, int, int, int]] = {}
        total = 0
        for info in infos:
            if info is not None:
                height, width = info.resized(min(short_side, info.height, info.width))
                entries[info.path] = (total, info.num_frames, height, width)
                total += info.num_frames * height * width * 3
        with open(temporary / "frames.bin", "wb") as f:
            f.truncate(total)
        data = np.memmap(temporary / "frames.bin", np.uint8, mode="r+") if total else np.empty(0, np.uint8)

        def decode(info: VideoInfo) -> None:
            offset, frames, height, width = entries[info.path]
            try:
                # In pieces, so that a long video at full size never stands in memory whole.
                for first in range(0, frames, _CHUNK_FRAMES):
                    piece = range(first, min(first + _CHUNK_FRAMES, frames))
                    read = partial(
                        read_clip, info.path, piece, min(height, width), info=info, timeout_s=timeout_s
                    )
                    clip = limited(info.path, read)
                    start = offset + first * height * width * 3
                    data[start : start + clip.size] = clip.reshape(-1)
            except VideoError as e:
                errors[info.path] = (e.reason, e.detail)
                del entries[info.path]

        good = [info for info in infos if info is not None]
        with ThreadPoolExecutor(workers) as pool:
            for done, _ in enumerate(pool.map(decode, good), start=1):
                if progress is not None:
                    progress(done, len(paths))
        if isinstance(data, np.memmap):
            data.flush()
        meta: dict[str, Any] = {
            "version": _VERSION,
            "short_side": short_side,
            "videos": entries,
            "errors": errors,
        }
        (temporary / "index.json").write_text(json.dumps(meta), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
