"""Probes remembered: in this process (`cached_info`), and on disk what `vmae data check` found out.

On disk: one SQLite file beside the list (`train.csv.probes`), written by one process, read by many. An entry
counts only while the file's size and time of change are the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import sqlite3
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from vmae.core.files import replacing
from vmae.core.video.container import DEFAULT_TIMEOUT_S
from vmae.core.video.identity import canonical
from vmae.core.video.probe import VideoInfo, probe_video, stat_file

_ARRAYS = ("pts", "key_pts", "key_dts")
_VERSION = 2
_INFO: OrderedDict[str, VideoInfo] = OrderedDict()
_INFO_LIMIT = 20_000


def cached_info(path: str | Path, *, timeout_s: float | None = DEFAULT_TIMEOUT_S) -> VideoInfo:
    """`probe_video`, remembered in this process as long as the file's size and time stay the same."""
    path = str(path)
    known = _INFO.get(path)
    if known is not None:
        st = stat_file(path)
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


def probes_path(csv: str | Path) -> Path:
    """Where the probes of a list are remembered."""
    return Path(f"{csv}.probes")


def save_probes(path: str | Path, infos: Iterable[VideoInfo]) -> None:
    """Write the probes of a list, replacing what was there."""
    path = Path(path)
    with replacing(path) as temporary:
        temporary.unlink(missing_ok=True)  # of a killed process that had this one's number
        with contextlib.closing(sqlite3.connect(temporary)) as db, db:
            db.execute("CREATE TABLE probes (path TEXT PRIMARY KEY, size INTEGER, mtime INTEGER, info BLOB)")
            db.execute(f"PRAGMA user_version = {_VERSION}")
            rows = ((canonical(i.path), i.size_bytes, i.mtime_ns, pack(i)) for i in infos)
            db.executemany("INSERT OR REPLACE INTO probes VALUES (?, ?, ?, ?)", rows)


class Probes:
    """Read-only lookups; opened where it is first asked, so it may be pickled or forked before."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._db: sqlite3.Connection | None = None
        self._pid = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_db": None, "_pid": 0}

    def get(self, path: str) -> VideoInfo | None:
        """The remembered probe; None where the file is unknown or has changed."""
        if self._db is None or self._pid != os.getpid():
            try:
                # Any thread of this process may ask; nothing is ever written.
                place = f"{self.path.absolute().as_uri()}?mode=ro"
                self._db = sqlite3.connect(place, uri=True, check_same_thread=False)
                if self._db.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
                    return None
            except sqlite3.Error:
                return None
            self._pid = os.getpid()
        try:
            row = self._db.execute(
                "SELECT size, mtime, info FROM probes WHERE path = ?", (canonical(path),)
            ).fetchone()
            st = os.stat(path)
        except (sqlite3.Error, OSError, ValueError):
            return None
        if row is None or (row[0], row[1]) != (st.st_size, st.st_mtime_ns):
            return None
        return dataclasses.replace(unpack(row[2]), path=path)


def pack(info: VideoInfo) -> bytes:
    plain = {f.name: getattr(info, f.name) for f in dataclasses.fields(info) if f.name not in _ARRAYS}
    # Steps instead of stamps: a constant rate compresses to almost nothing.
    arrays = {n: np.diff(getattr(info, n), prepend=0) for n in _ARRAYS}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, info=np.frombuffer(json.dumps(plain).encode(), np.uint8), **arrays)
    return buffer.getvalue()


def unpack(data: bytes) -> VideoInfo:
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        fields: dict[str, Any] = json.loads(stored["info"].tobytes())
        return VideoInfo(**fields | {n: np.cumsum(stored[n]) for n in _ARRAYS})
