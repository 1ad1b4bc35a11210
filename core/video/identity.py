"""Which file a path names, and whether it is still the same: one form of paths, and identity by content.

Two lists may name one file in two ways (from another folder, with `..`), and one name may hold another video
after a while. What is remembered of files (the decoded cache, half an evaluation, lists that share videos)
asks here.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence

from vmae.core.video.samples import Sample
from vmae.core.video.threads import reading_threads

_WHOLE = 2**20  # bytes of a file up to which all of it is read
_PIECES = 16
_THREADS = 16  # reading waits for the disk or the network, not for the processor


def canonical(path: str) -> str:
    """The absolute form of a path that every list, cache and comparison uses.

    `..` goes where the file system goes (through links too); other links keep their names, which say what a
    file is.
    """
    path = os.path.join(os.getcwd(), path)
    parts = path.split(os.sep)
    if os.pardir in parts:
        last = len(parts) - parts[::-1].index(os.pardir)
        path = os.path.join(os.path.realpath(os.sep.join(parts[:last])), *parts[last:])
    return os.path.normpath(path)


def fingerprint(path: str) -> str:
    """32 hex digits that change when a video's content does, `absent` where there is none.

    Of a file: its size and bytes, all of them up to 1 MiB, else 16 pieces of 64 KiB from its first to its
    last byte (a video that is encoded anew or cut differs in every one; a few bytes flipped between pieces
    go unseen). Of a folder: the names, sizes and times of what is in it, and as much of 16 files.
    """
    digest = hashlib.blake2b(digest_size=16)
    try:
        if os.path.isdir(path):
            with os.scandir(path) as entries:
                stats = [(e.name, e.stat()) for e in entries if e.is_file()]
            files = sorted((name, st.st_size, st.st_mtime_ns) for name, st in stats)
            digest.update(repr(files).encode("utf-8", "surrogateescape"))
            for name, size, _ in _spread(files):
                _add(digest, os.path.join(path, name), size, _WHOLE // _PIECES)
        elif not os.path.isfile(path):
            return "absent"
        else:
            _add(digest, path, os.path.getsize(path), _WHOLE)
    except (OSError, ValueError):
        return "absent"
    return digest.hexdigest()


def _spread(items: Sequence[tuple[str, int, int]]) -> Iterable[tuple[str, int, int]]:
    if len(items) <= _PIECES:
        return items
    return [items[k * (len(items) - 1) // (_PIECES - 1)] for k in range(_PIECES)]


def _add(digest: hashlib.blake2b, path: str, size: int, whole: int) -> None:
    digest.update(f"{size}\n".encode())
    with open(path, "rb", buffering=0) as file:
        if size <= whole:
            digest.update(file.read(whole))
            return
        piece = whole // _PIECES
        for k in range(_PIECES):
            file.seek(k * (size - piece) // (_PIECES - 1))
            digest.update(file.read(piece))


def fingerprints(paths: Iterable[str]) -> dict[str, str]:
    """`fingerprint` of each path."""
    names = list(dict.fromkeys(paths))
    with reading_threads(_THREADS) as in_threads:
        return dict(zip(names, in_threads(fingerprint, names), strict=True))


def shared_videos(first: Sequence[Sample], second: Sequence[Sample]) -> list[tuple[str, str]]:
    """Pairs of paths, one of each list, that show the same: the same file and stretch, or copies of it.

    Files are read only where a file of the other list has their size.
    """
    mine, theirs = ({_shown(s, os.path.realpath(s.path)): s.path for s in part} for part in (first, second))
    pairs = [(mine[key], theirs[key]) for key in theirs if key in mine]
    both = set(mine) & set(theirs)
    sizes = [_by_size(path for key, path in part.items() if key not in both) for part in (mine, theirs)]
    alike = set(sizes[0]) & set(sizes[1])
    prints = fingerprints(p for by_size in sizes for size in alike for p in by_size[size])
    copies = {_shown(s, prints[s.path]): s.path for s in first if s.path in prints}
    for sample in second:
        known = copies.get(_shown(sample, prints.get(sample.path, "")))
        if known is not None and _shown(sample, os.path.realpath(sample.path)) not in mine:
            pairs.append((known, sample.path))
    return pairs


def _shown(sample: Sample, file: str) -> tuple[object, ...]:
    return file, sample.start, sample.num_frames, sample.time_s


def _by_size(paths: Iterable[str]) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for path in paths:
        if os.path.isfile(path) and (size := os.path.getsize(path)):
            found.setdefault(size, set()).add(path)
    return found
