"""What a list of videos is like: counts, classes and the median video, from a few probes."""

from __future__ import annotations

import contextlib
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from vmae.core.errors import InputError, VideoError
from vmae.core.video.config import DataConfig
from vmae.core.video.isolate import run_limited
from vmae.core.video.probe import VideoInfo
from vmae.core.video.probe_store import cached_info
from vmae.core.video.reader import read_clip
from vmae.core.video.samples import Sample
from vmae.core.video.sampling import uniform_indices
from vmae.core.video.stills import first_frame

PROBED = 48
"""Videos of a list that are opened for its medians."""
LOOKED_AT = 12
"""Videos of a list of which frames are decoded."""
LIMIT_S = 20.0
"""For opening a video, and for reading from it: a pipe or a store that is away is passed over."""
_FRAMES, _SIDE, _THUMB = 8, 48, 8
_SIDES = re.compile(r"left|right|clockwise|leftward|rightward|east|west|cw|ccw|forehand|backhand", re.I)


@dataclass(frozen=True, kw_only=True)
class ListFacts:
    """Medians are over up to `PROBED` readable videos, spread over the list."""

    videos: int
    class_counts: tuple[int, ...]
    """Videos of each label that occurs, in the order of labels; empty where the list has none."""
    classes: int
    """One more than the largest label."""
    names: tuple[str, ...] = ()
    """Of the classes, where they are known."""
    frames: int
    fps: float
    height: int
    width: int
    still: float = 0.0
    """Share of the pixels' variance over 8 frames of a video that their mean frame has, median of a dozen:
    near 1 where the camera stands still before a scene, 1/8 for frames that have nothing in common."""
    scene: float = 0.0
    """Share of the probed videos whose nearest other one, by 8x8 thumbnails of their middle frames, is of
    their class: near 1 where what is in the picture tells the classes, about chance where only motion does.
    0 without labels."""
    key_frames: bool = False
    """Whether its lines are key frames of films (AVA): `videos` counts these."""

    @property
    def seconds(self) -> float:
        """Length of the median video."""
        return self.frames / self.fps

    @property
    def chance(self) -> float:
        """One over the number of classes; 0 without labels."""
        return 1 / self.classes if self.classes else 0.0

    @property
    def largest_share(self) -> float:
        """Accuracy of always naming the largest class; 0 without labels."""
        return max(self.class_counts) / sum(self.class_counts) if self.class_counts else 0.0

    def sided(self) -> list[str]:
        """Names of classes that a mirror may change into another: left, right, clockwise, backhand, ..."""
        return [n for n in self.names if _SIDES.search(n)]


def list_facts(samples: Sequence[Sample], names: Sequence[str] = ()) -> ListFacts:
    """Count the list and open some of its videos. Raises InputError where none of them can be read.

    Seconds: about fifty files are probed, a dozen of them decoded in eight places.
    """
    chosen = [samples[i] for i in np.linspace(0, len(samples) - 1, min(PROBED, len(samples))).astype(int)]
    infos = []
    for sample in chosen:
        with contextlib.suppress(VideoError):
            infos.append((run_limited(partial(cached_info, sample.path), sample.path, LIMIT_S), sample))
    if not infos:
        raise InputError(f"expected readable videos; none of {len(chosen)} tried is (vmae data check)")
    counts = Counter(s.label for s in samples if s.label >= 0)
    return ListFacts(
        videos=len(samples),
        class_counts=tuple(counts[label] for label in sorted(counts)),
        classes=max(counts, default=-1) + 1,
        names=tuple(names),
        frames=int(statistics.median(s.num_frames or i.num_frames - s.start for i, s in infos)),
        fps=statistics.median(i.fps for i, _ in infos) or 25.0,
        height=int(statistics.median(i.height for i, _ in infos)),
        width=int(statistics.median(i.width for i, _ in infos)),
        still=_still_share([infos[i] for i in np.linspace(0, len(infos) - 1, LOOKED_AT).astype(int)]),
        scene=_told_by_scene(infos) if len(counts) > 1 else 0.0,
        key_frames=any(s.time_s is not None for s in samples),
    )


def _read(info: VideoInfo, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """Frames at a small size; VideoError where they do not come in time."""
    side = min(_SIDE, info.height, info.width)
    return run_limited(partial(read_clip, info.path, indices, side, info=info), info.path, LIMIT_S)


def _still_share(chosen: Sequence[tuple[VideoInfo, Sample]]) -> float:
    """See `ListFacts.still`; 0 where none of the videos shows anything."""
    shares = []
    for info, sample in {(i.path, s.start): (i, s) for i, s in chosen}.values():
        start = first_frame(sample.path, sample.start)
        count = max(1, sample.num_frames or info.num_frames - start)
        indices = np.minimum(start + uniform_indices(count, _FRAMES), info.num_frames - 1)
        with contextlib.suppress(VideoError):
            clip = _read(info, indices)
            whole = float(clip.var())
            if whole > 0:
                shares.append(float(clip.mean(0).var()) / whole)
    return statistics.median(shares) if shares else 0.0


def _told_by_scene(infos: Sequence[tuple[VideoInfo, Sample]]) -> float:
    """See `ListFacts.scene`."""
    thumbs, labels = [], []
    for info, sample in infos:
        start = first_frame(sample.path, sample.start)
        count = max(1, sample.num_frames or info.num_frames - start)
        middle = min(start + count // 2, info.num_frames - 1)
        with contextlib.suppress(VideoError):
            frame = _read(info, [middle])[0]
            rows, columns = (np.arange(_THUMB) * side // _THUMB for side in frame.shape[:2])
            sums = np.add.reduceat(np.add.reduceat(frame.astype(np.float64), rows, 0), columns, 1)
            areas = np.diff([*rows, frame.shape[0]])[:, None] * np.diff([*columns, frame.shape[1]])[None]
            thumbs.append((sums / areas[..., None]).ravel())
            labels.append(sample.label)
    if len(thumbs) < 2:
        return 0.0
    x, y = np.array(thumbs), np.array(labels)
    apart = ((x[:, None] - x[None]) ** 2).sum(-1)
    np.fill_diagonal(apart, np.inf)
    return float((y[apart.argmin(1)] == y).mean())


def coverage(facts: ListFacts, data: DataConfig) -> float:
    """Share of the median video that one clip of `data` spans from first to last frame, in (0, 1]."""
    if data.sampling == "uniform":
        return 1.0
    if data.fps:
        return min(1.0, data.frames / data.fps / max(1e-6, facts.seconds))
    return min(1.0, ((data.frames - 1) * data.sampling_rate + 1) / max(1, facts.frames))
