"""Where clips come from and how they are cut: one configuration for lists, clips and loader."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from vmae.core.errors import InputError
from vmae.core.video.annotations import AnnotationFormat
from vmae.core.video.rand_augment import RandAugment


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where clips come from and how they are cut."""

    retired: ClassVar[tuple[str, ...]] = ("cache_dir",)
    """Keys of older configurations that mean nothing now: a run's decoded clips lie in its run directory."""

    train_csv: str = ""
    """List of training videos. `--data a.csv:2 --data b.csv` also sets the two fields below."""
    train_weight: float = 1.0
    """With `more_lists`: how often a video of `train_csv` comes in an epoch; 0.5: half of them, always the
    same."""
    more_lists: tuple[str, ...] = ()
    """More lists of a pre-training, as `FILE` or `FILE:WEIGHT`. Probes and what needs labels read `train_csv`
    alone."""
    val_csv: str = ""
    """Held-out list, on which epochs are measured and chosen."""
    test_csv: str = ""
    """Held-out list that chooses nothing; empty: `val_csv` is measured in the end."""
    train_share: float = 1.0
    """Share of the training list that is pre-trained on (of every class alike; a smaller share's videos are
    among a larger one's). Probes and fine-tuning read the whole list."""
    data_root: str = ""
    """Folder that relative paths in the lists start from; empty: the list's own folder."""
    annotation_format: AnnotationFormat = "auto"
    """Of the lists' lines (docs/data.md); auto: told apart by what they look like."""
    excluded: tuple[str, ...] = ()
    """Lists of key frames (`video_id,timestamp`) that are left out of all lists (AVA has one for each)."""
    time_origin_s: float = 0.0
    """Second of an AVA list's clock at which the files begin: 0 for whole films, 900 for the usual cuts."""
    reader: Literal["pyav", "decord"] = "pyav"
    """`pyav`: by seeking where the file's probe allows it, else from its start (the fastest measured, see
    docs/bench_loader.md). `decord`: where a trial of each file shows the right frames, else as `pyav`."""
    frames: int = 16
    """Frames of a clip, T."""
    sampling_rate: int = 4
    """Stride between a clip's frames (dense sampling)."""
    fps: float = 0.0
    """Frames a second of a clip, whatever the video's rate (dense sampling): the stride is the video's
    average rate over this one. 0: frames `sampling_rate` apart."""
    sampling: Literal["dense", "uniform"] = "dense"
    """`dense`: fixed stride (Kinetics); `uniform`: one frame per equal segment (Something-Something)."""
    size: tuple[int, int] = (224, 224)
    """Height and width of a clip in pixels."""
    channels: int = 3
    """Of every frame. Others than 3 are for lists of `.npy` clips, without augmentations of colour."""
    short_side: int = 256
    """Videos with a larger short side are scaled down to this as they are decoded; 0: never."""
    augment: Literal["none", "multi_scale_crop", "random_resized_crop", "random_crop"] = "multi_scale_crop"
    """Training crop. `none`: the centre, as in validation. `random_crop`: a place at random, of the size that
    `size` has where the short side is `short_side` (AVA)."""
    flip: bool = False
    """Mirror half of the training clips. Never where left and right are classes."""
    rand_augment: str = ""
    """RandAugment of training clips in timm's grammar, e.g. `rand-m7-n4-mstd0.5-inc1`; empty: none."""
    color_jitter: float = 0.0
    """Brightness, contrast and saturation of training clips change by up to this share."""
    random_erasing: float = 0.0
    """Probability that a box of a training clip is filled with noise."""
    repeats: int = 1
    """Clips per decoded training video (repeated sampling, R), each with a crop, flip, augmentation and mask
    of its own. A batch holds batch_size x R clips; an epoch is one pass over the videos whatever R (in clips
    R passes: `effective_epoch`), clips/s counts clips, and the learning rate is not scaled with R."""
    repeat_time: Literal["shared", "own"] = "shared"
    """`shared`: the R clips show the same frames (V1's and V2's `num_sample`). `own`: each starts at a time
    of its own (MAE-ST's `repeat_aug`); decoded once all the same, but more frames of the video."""
    segments: int = 5
    """Temporal views of a test video."""
    crops: int = 3
    """Spatial views of each temporal view of a test video."""
    cache: bool = False
    """Decode the lists once into a memory-mapped file at `cache_short_side`."""
    cache_short_side: int = 0
    """Short side of the cached frames; 0: `short_side`, or where that is 0 the clip's."""
    workers: int = 2
    """Loader processes; 0: load in the training process."""
    prefetch: int = 2
    """Batches that each worker prepares ahead."""
    timeout_s: float = 30.0
    """A file that takes longer to open and read is bad. A read that is stuck inside one call of a decoder is
    given up after twice that, and the loader's processes are replaced, so that nothing of it stays; with
    `workers: 0` a thread of the training process is lost to it until that ends."""
    max_bad_share: float = 0.01
    """Training stops when more than this share of an epoch's videos is bad."""
    bad_eval: Literal["error", "count"] = "error"
    """A bad file in validation or test: stop, or count it as wrong. It is never left out of an accuracy; the
    mean of a reconstruction error is that of the files that could be read."""

    def __post_init__(self) -> None:
        for name in ("frames", "sampling_rate", "repeats", "segments", "crops", "prefetch"):
            if getattr(self, name) < 1:
                raise InputError(f"data.{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("workers", "short_side", "cache_short_side"):
            if getattr(self, name) < 0:
                raise InputError(f"data.{name}: expected 0 or more, got {getattr(self, name)}")
        if len(self.size) != 2 or min(self.size) < 1:
            raise InputError(f"data.size: expected height and width of at least 1, got {self.size}")
        if self.channels < 1:
            raise InputError(f"data.channels: expected at least 1, got {self.channels}")
        coloured = {"rand_augment": self.rand_augment, "color_jitter": self.color_jitter}
        coloured["random_erasing"] = self.random_erasing
        for name, given in coloured.items():
            if given and self.channels != 3:
                raise InputError(f"data.{name}: expected data.channels=3 to go with it, got {self.channels}")
        if self.fps < 0:
            raise InputError(f"data.fps: expected 0 or more frames a second, got {self.fps:g}")
        if self.fps and self.sampling != "dense":
            raise InputError(f"data.fps: expected data.sampling=dense to go with it, got {self.sampling}")
        if not 0 < self.train_share <= 1:
            raise InputError(f"data.train_share: expected a share in (0, 1], got {self.train_share}")
        if not self.train_weight > 0:
            raise InputError(f"data.train_weight: expected more than 0, got {self.train_weight}")
        if self.train_weight != 1 and not self.more_lists:
            raise InputError("data.train_weight: expected data.more_lists to weigh it against, got none")
        for text in self.more_lists:
            weighted(text)
        if not 0 <= self.max_bad_share <= 1:
            raise InputError(f"data.max_bad_share: expected a share in [0, 1], got {self.max_bad_share}")
        if not 0 <= self.random_erasing <= 1:
            raise InputError(f"data.random_erasing: expected a probability, got {self.random_erasing}")
        if self.color_jitter < 0:
            raise InputError(f"data.color_jitter: expected 0 or more, got {self.color_jitter}")
        RandAugment.parse(self.rand_augment)
        for name, known in (("reader", ("pyav", "decord")), ("repeat_time", ("shared", "own"))):
            if getattr(self, name) not in known:
                raise InputError(f"data.{name}: expected {' or '.join(known)}, got '{getattr(self, name)}'")
        if self.timeout_s <= 0:
            raise InputError(f"data.timeout_s: expected more than 0 seconds, got {self.timeout_s}")

    @property
    def decoded_short_side(self) -> int:
        """Short side of cached frames in pixels."""
        return self.cache_short_side or self.short_side or min(self.size)


def weighted(text: str) -> tuple[str, float]:
    """`FILE:WEIGHT` (or `FILE`, weight 1) in its parts; InputError for a weight that is not above 0."""
    match = re.fullmatch(r"(.+):(\d+(?:\.\d*)?|\.\d+)", text)
    if match is None or os.path.exists(text):
        return text, 1.0
    if float(match[2]) <= 0:
        raise InputError(f"{text}: expected a weight of more than 0 after the colon, got {match[2]}")
    return match[1], float(match[2])
