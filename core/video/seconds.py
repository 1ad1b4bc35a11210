"""A film as a folder of clips of a second each, as AlphAction and the official detection repository cut AVA.

`FOLDER/902.mp4` begins with the key frame of second 902. A clip around it takes frames onwards from there and
backwards from the end of 901, over as many files as it needs; beyond the first and the last file there is
their outermost frame.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from vmae.core.errors import VideoError
from vmae.core.video.probe_store import cached_info
from vmae.core.video.reader import read_clip
from vmae.core.video.samples import VIDEO_SUFFIXES


def is_second_folder(path: str) -> bool:
    """Whether `path` is a folder of videos named after seconds."""
    if not os.path.isdir(path):
        return False
    with os.scandir(path) as entries:
        return any(_second(Path(e.name)) is not None for e in entries)


def read_second_clips(
    folder: str, time_s: float, frames: int, sampling_rate: int, short_side: int = 0
) -> np.ndarray:
    """`frames` frames `sampling_rate` apart, number `frames // 2` of them the first of second `time_s`.

    uint8 `[T, H, W, 3]`, with a larger short side scaled down to `short_side` (0: as it is). Raises
    VideoError where that second's file is missing, or a file is bad or of another size.
    """
    files = {s: p for p in sorted(Path(folder).iterdir()) if (s := _second(p)) is not None}
    second = int(time_s)
    if second not in files:
        raise VideoError(folder, "missing", f"expected a clip of second {second}, found none")
    offsets = sampling_rate * (np.arange(frames) - frames // 2)
    places = [_place(files, second, int(k)) for k in offsets]
    first = cached_info(str(files[second]))
    native = min(first.height, first.width)
    short = short_side if 0 < short_side < native else None
    out = np.empty((frames, *first.resized(short), 3), np.uint8)
    for s in dict.fromkeys(s for s, _ in places):
        rows = [k for k, (own, _) in enumerate(places) if own == s]
        got = read_clip(str(files[s]), [places[k][1] for k in rows], short)
        if got.shape[1:] != out.shape[1:]:
            raise VideoError(
                str(files[s]), "corrupt", f"expected {out.shape[1:3]} pixels, got {got.shape[1:3]}"
            )
        out[rows] = got
    return out


def _place(files: dict[int, Path], second: int, offset: int) -> tuple[int, int]:
    """The file's second and the frame in it that lies `offset` frames after the first of `second`."""
    while offset < 0:
        if second - 1 not in files:
            return second, 0
        second -= 1
        offset += cached_info(str(files[second])).num_frames
    while offset >= (count := cached_info(str(files[second])).num_frames):
        if second + 1 not in files:
            return second, count - 1
        second, offset = second + 1, offset - count
    return second, offset


def _second(path: Path) -> int | None:
    return int(path.stem) if path.stem.isdecimal() and path.suffix.lower() in VIDEO_SUFFIXES else None
