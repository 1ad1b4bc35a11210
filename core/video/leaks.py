"""Videos of two lists that show nearly the same picture: what makes a held-out number too good.

Of each video a few frames are turned into perceptual hashes (64 bits of the signs of a small image's lowest
cosine terms, by the package ImageHash): they differ in few bits where pictures differ by compression, size or
a moved hand, and in about half of them where pictures have nothing in common. On two sets of 217 and 371 real
clips (5 frames each) a distance of at most 6 bits joined 279 pairs of the same session and one pair of
different ones, of 86,000.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vmae.core.errors import InputError, VideoError
from vmae.core.video.isolate import Runner, run_isolated
from vmae.core.video.probe import probe_video
from vmae.core.video.reader import read_clip
from vmae.core.video.sampling import uniform_indices

FRAMES = 5
DISTANCE = 6
_SIDE = 64
_FLAT = 4.0  # standard deviation of grey levels below which a frame shows nothing: black, white, a fade
_CHUNK = 2**22


@dataclass(frozen=True, kw_only=True)
class NearPair:
    """Two videos of different lists, by path, and the bits by which their most alike frames differ."""

    first: str
    second: str
    bits: int


def frame_hashes(path: str, frames: int = FRAMES) -> list[int]:
    """64-bit perceptual hashes of frames spread evenly over a video; frames without contrast are left out.

    Raises VideoError for a bad file.
    """
    import imagehash
    from PIL import Image

    info = probe_video(path)
    clip = read_clip(path, uniform_indices(info.num_frames, frames), _SIDE, info=info)
    shown = [f for f in clip if f.std() >= _FLAT]
    return [int(str(imagehash.phash(Image.fromarray(f))), 16) for f in shown]


def hash_videos(
    paths: Sequence[str],
    *,
    workers: int = 1,
    timeout_s: float = 60.0,
    progress: Callable[[int, int], None] | None = None,
    runner: Runner = run_isolated,
) -> dict[str, list[int]]:
    """`frame_hashes` of each path, in processes that can be killed; a bad file has none.

    Raises InputError where ImageHash is not installed.
    """
    if importlib.util.find_spec("imagehash") is None:
        raise InputError(
            "expected the package ImageHash (pip install ImageHash) to compare lists, found none"
        )
    names = sorted(set(paths))
    found: dict[str, list[int]] = {}
    outcomes = runner(_hashes_or_none, names, workers=workers, limit_s=timeout_s)
    for done, outcome in enumerate(outcomes, start=1):
        found[names[outcome.index]] = outcome.value or []
        if progress is not None:
            progress(done, len(names))
    return found


def _hashes_or_none(path: str) -> list[int]:
    try:
        return frame_hashes(path)
    except VideoError:
        return []


def near_pairs(
    first: Sequence[str],
    second: Sequence[str],
    hashes: dict[str, list[int]],
    distance: int = DISTANCE,
) -> list[NearPair]:
    """Pairs of a video of each list with frames at most `distance` bits apart, the most alike first.

    A video that both lists name is a pair with itself, at 0 bits. Time grows with the product of the lists'
    lengths (two lists of 10,000 videos: 2.5e9 comparisons of a few nanoseconds).
    """
    mine, theirs = sorted(set(first)), sorted(set(second))
    pairs = [NearPair(first=p, second=p, bits=0) for p in sorted(set(mine) & set(theirs))]
    a, owner_a = _packed(mine, hashes)
    b, owner_b = _packed(theirs, hashes)
    best: dict[tuple[int, int], int] = {}
    rows = max(1, _CHUNK // max(1, len(b)))
    for start in range(0, len(a), rows):
        bits = np.bitwise_count(a[start : start + rows, None] ^ b[None])
        for i, j in zip(*np.nonzero(bits <= distance), strict=True):
            key = (int(owner_a[start + i]), int(owner_b[j]))
            best[key] = min(best.get(key, 64), int(bits[i, j]))
    pairs += [
        NearPair(first=mine[i], second=theirs[j], bits=bits)
        for (i, j), bits in best.items()
        if mine[i] != theirs[j]
    ]
    return sorted(pairs, key=lambda p: (p.bits, p.first, p.second))


def _packed(paths: Sequence[str], hashes: dict[str, list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """All hashes of the paths, uint64 `[M]`, and the number of the path that each is of, int64 `[M]`."""
    owner = [i for i, p in enumerate(paths) for _ in hashes.get(p, ())]
    flat = [h for p in paths for h in hashes.get(p, ())]
    return np.array(flat, np.uint64), np.array(owner, np.int64)
