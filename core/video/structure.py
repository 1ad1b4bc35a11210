"""What a file's own structure says before any decoder sees it: whether bytes are missing, and what it claims.

Boxes of MP4 and MOV (ISO/IEC 14496-12, 4.2), elements of Matroska and WebM (RFC 8794), chunks of AVI. Only
heads are read. FFmpeg makes room for what an index claims before it looks for the bytes: a file of 13 kB that
claims 89 million samples costs 5 GiB. So the claims of an MP4 are held against the file's size first.
"""

from __future__ import annotations

import contextlib
import io
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np

from vmae.core.errors import VideoError

MAX_SAMPLES = 2**23
"""Samples that a file's index may claim (77 hours at 30 frames a second): at most 0.5 GB of FFmpeg's."""
_FEW_SAMPLES = 2**16  # as many may be claimed by a file that is cut short, whatever is left of it
_INNER = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"moof", b"traf", b"cmov"})
_FIRST = frozenset({b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide", b"pnot", b"sidx"})
_MAX_DEPTH = 8


def ends_inside(path: str) -> str | None:
    """Where a file ends inside a part whose length it states, in words; "" where it does not; None where it
    states none (or is of another kind).

    That bytes are missing does not say that frames are.
    """
    with contextlib.suppress(OSError, ValueError), open(path, "rb") as f:
        size = os.fstat(f.fileno()).st_size
        head = f.read(16)
        if head[4:8] in _FIRST:
            end, what = _last_box(f, size)
        elif head[:4] == b"\x1a\x45\xdf\xa3":
            end, what = _segment_end(f), "segment"
        elif head[:4] == b"RIFF":
            end, what = _last_chunk(f, size), "last RIFF chunk"
        else:
            return None
        if end > size:
            return f"the file ends at {size} bytes, inside its {what}"
        return "" if end else None
    return None


def _last_box(f: IO[bytes], size: int) -> tuple[int, str]:
    at, name = 0, ""
    while at < size:
        f.seek(at)
        head = f.read(16)
        if len(head) < 8:
            return size + 1, "next box"
        length = int.from_bytes(head[:4], "big")
        name = head[4:8].decode("ascii", "replace") + " box"
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8:
            return 0, name  # 0: as long as the file is; others: no box
        at += length
    return at, name


def _segment_end(f: IO[bytes]) -> int:
    """Where the EBML head and the segment after it end; 0 where the segment's length is not stated."""
    f.seek(4)
    head = _ebml_number(f)
    if head is None:
        return 0
    f.seek(head, os.SEEK_CUR)
    if f.read(4) != b"\x18\x53\x80\x67":
        return 0
    length = _ebml_number(f)
    return 0 if length is None else f.tell() + length


def _ebml_number(f: IO[bytes]) -> int | None:
    """A length as RFC 8794 writes it (section 4); None for an unknown one."""
    first = f.read(1)
    if not first or not first[0]:
        return None
    more = 8 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & (0xFF >> more + 1)]) + f.read(more), "big")
    return None if value == 2 ** (7 * (more + 1)) - 1 else value


def _last_chunk(f: IO[bytes], size: int) -> int:
    """The end of an AVI's last RIFF chunk; 0 where one was never finished (its length is 0)."""
    at = 0
    while at + 12 <= size:
        f.seek(at)
        head = f.read(8)
        length = int.from_bytes(head[4:8], "little")
        if head[:4] != b"RIFF":
            break
        if not length:
            return 0
        at += 8 + length + length % 2
    return min(at, size) if at == size + 1 else at  # the last chunk's byte of padding may be left out


@dataclass
class _Track:
    """What one track's tables claim."""

    samples: int = 0
    of_one_size: bool = False
    timed: int = 0
    chunks: int = 0
    edits: int = 0
    sound: bool = False
    steps: tuple[int, int] = (0, 0)
    """Entries of the table of durations, and the first one's duration."""
    per_chunk: np.ndarray | None = None


def require_bounded(path: str, check: Callable[[], None]) -> None:
    """Raise VideoError (`corrupt`) where an MP4's or MOV's index claims more than the file can hold.

    `check` is called often and may raise (a time limit). Other kinds of file pass: what their demuxers
    allocate grows with the bytes that are there.
    """
    with open(path, "rb") as f:
        size = os.fstat(f.fileno()).st_size
        if f.read(8)[4:8] in _FIRST:
            _Claims(path, size, check).read(f, 0, size)


class _Claims:
    def __init__(self, path: str, size: int, check: Callable[[], None]) -> None:
        self.path = path
        self.size = size
        self.check = check
        self.track = _Track()
        self.in_fragments = 0

    def read(self, f: IO[bytes], at: int, end: int, depth: int = 0) -> None:
        for kind, start, stop in _boxes(f, at, end):
            self.check()
            if kind == b"trak":
                self.track = _Track()
            if kind == b"cmvd":
                # A compressed index (QuickTime): its length, then zlib. FFmpeg unpacks it as we do.
                f.seek(start + 4)
                with contextlib.suppress(zlib.error):
                    data = zlib.decompressobj().decompress(f.read(stop - start - 4), 2**26)
                    self.read(io.BytesIO(data), 0, len(data), depth + 1)
            elif kind in _INNER and depth < _MAX_DEPTH:
                self.read(f, start, min(stop, end), depth + 1)
            else:
                f.seek(start)
                self.table(kind, f, stop - start)
            if kind == b"trak":
                self.require_track()

    def table(self, kind: bytes, f: IO[bytes], length: int) -> None:
        def number() -> int:
            return int.from_bytes(f.read(4), "big")

        track = self.track
        if kind == b"hdlr":
            f.seek(8, os.SEEK_CUR)
            track.sound = f.read(4) == b"soun"
        elif kind in (b"stsz", b"stz2"):
            f.seek(4, os.SEEK_CUR)
            size = number()
            track.of_one_size = kind == b"stsz" and size > 0
            track.samples = number()
        elif kind in (b"stts", b"ctts"):
            f.seek(4, os.SEEK_CUR)
            pairs = self.entries(f, number(), 8, length - 8, kind)
            track.timed = max(track.timed, int(pairs[:, 0].sum()))
            if kind == b"stts" and len(pairs):
                track.steps = (len(pairs), int(pairs[0, 1]))
        elif kind in (b"stco", b"co64"):
            f.seek(4, os.SEEK_CUR)
            track.chunks = self.claimed(number(), 4 if kind == b"stco" else 8, length - 8, kind)
        elif kind == b"stsc":
            f.seek(4, os.SEEK_CUR)
            track.per_chunk = self.entries(f, number(), 12, length - 8, kind)
        elif kind == b"elst":
            version = f.read(4)[:1]
            track.edits = self.claimed(number(), 20 if version == b"\1" else 12, length - 8, kind)
        elif kind == b"trun":
            f.seek(4, os.SEEK_CUR)
            self.in_fragments += number()
            self.require_few(self.in_fragments)

    def claimed(self, count: int, each: int, room: int, kind: bytes) -> int:
        if count * each > room:
            raise VideoError(
                self.path,
                "corrupt",
                f"its {kind.decode()} box claims {count:,} entries and has room for {max(0, room) // each:,}",
            )
        return count

    def entries(self, f: IO[bytes], count: int, each: int, room: int, kind: bytes) -> np.ndarray:
        """int64 `[count, each / 4]`."""
        data = f.read(self.claimed(count, each, room, kind) * each)
        whole = len(data) - len(data) % each
        return np.frombuffer(data[:whole], ">u4").astype(np.int64).reshape(-1, each // 4)

    def require_track(self) -> None:
        t = self.track
        # FFmpeg lists uncompressed sound by pieces of chunks, everything else by samples.
        listed = 0 if t.sound and t.of_one_size and t.steps == (1, 1) else max(t.samples, t.timed)
        self.require_few(listed)
        if t.edits * listed > 4 * MAX_SAMPLES:
            raise VideoError(self.path, "corrupt", f"its edit list claims {t.edits:,} stretches")
        if t.per_chunk is not None and len(t.per_chunk):
            until = np.append(t.per_chunk[1:, 0], t.chunks + 1)
            in_chunks = int((np.maximum(0, until - t.per_chunk[:, 0]) * t.per_chunk[:, 1]).sum())
            # A piece is 1,024 samples, of which at most eight share a byte.
            if in_chunks > max(8 * self.size, 1024 * _FEW_SAMPLES):
                self.refuse(in_chunks)

    def require_few(self, count: int) -> None:
        """A sample takes a byte or more."""
        if count > min(MAX_SAMPLES, max(self.size, _FEW_SAMPLES)):
            self.refuse(count)

    def refuse(self, count: int) -> None:
        raise VideoError(
            self.path, "corrupt", f"its index claims {count:,} samples, the file has {self.size:,} bytes"
        )


def _boxes(f: IO[bytes], at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """`(kind, start of the content, end)` of the boxes in a stretch of a file; the last may end after it."""
    while at + 8 <= end:
        f.seek(at)
        head = f.read(16)
        length, content = int.from_bytes(head[:4], "big"), 8
        if length == 1:
            length, content = int.from_bytes(head[8:16], "big"), 16
        if length == 0:
            length = end - at
        if length < content:
            return
        yield head[4:8], at + content, at + length
        at += length
