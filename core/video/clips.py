"""A list of videos as clips by index: what is drawn, decoded, cropped and changed.

A clip's draws come from `(seed, epoch, index)`; there is no global state.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from vmae.core.errors import InputError, VideoError
from vmae.core.video import augment, sampling
from vmae.core.video.cache import DecodedCache
from vmae.core.video.config import DataConfig
from vmae.core.video.isolate import StuckRead, run_limited
from vmae.core.video.probe import VideoInfo
from vmae.core.video.probe_store import Probes, cached_info, is_remembered, probes_path, remember_info
from vmae.core.video.rand_augment import RandAugment, color_jitter, random_erase
from vmae.core.video.reader import open_video
from vmae.core.video.samples import Sample, subset
from vmae.core.video.seconds import is_second_folder, read_second_clips
from vmae.core.video.stills import first_frame
from vmae.core.video.threads import reading_threads

Mode = Literal["train", "val", "test"]


class Cut(NamedTuple):
    """What of its frames a clip shows: `region` of frames of `height` x `width` pixels, mirrored or not."""

    region: augment.Box
    height: int
    width: int
    flip: bool


class ClipDataset:
    """Clips of a list of videos, by index.

    Args:
        samples: the videos; a path alone is one without a label (-1).
        config: sampling, crops, limits.
        mode: `train` draws (time, crop, flip; `config.repeats` clips of each video); `val` takes the central
            clip and the central crop; `test` takes `segments x crops` views.
        seed: of all draws.
        cache: decoded frames to read instead of the files.
        leave_out: bad files are left out as in training, up to `config.max_bad_share`; default: in training.

    `dataset[i]` is `{"clip": uint8 [T, H, W, C], "label": int, "index": int, "path": str}`; the clip is
    `[R, T, H, W, 3]` with repeats or views (segment-major).
    """

    def __init__(
        self,
        samples: Sequence[Sample | str | os.PathLike[str]],
        config: DataConfig | None = None,
        mode: Mode = "train",
        seed: int = 0,
        *,
        cache: DecodedCache | None = None,
        leave_out: bool | None = None,
    ) -> None:
        if mode not in ("train", "val", "test"):
            raise InputError(f"mode: expected train, val or test, got '{mode}'")
        if not samples:
            raise InputError("expected at least one video, got an empty list")
        known = [s if isinstance(s, Sample) else Sample(path=os.fspath(s), label=-1) for s in samples]
        if cache is not None and any(s.time_s is not None for s in known):
            raise InputError("data.cache: expected a list of short videos, got key frames of films (AVA)")
        self.samples = known
        self.config = config = DataConfig() if config is None else config
        self.mode = mode
        self.leave_out = mode == "train" if leave_out is None else leave_out
        self.seed = seed
        self.cache = cache
        self.epoch = 0
        self.given_up: set[str] = set()
        """Files on which a decoder got stuck: refused at once."""
        self._rand_augment = RandAugment.parse(config.rand_augment)
        # What `vmae data check` has found out about this list, if it has been run.
        listed = {"train": config.train_csv, "val": config.val_csv, "test": config.test_csv}[mode]
        remembered = probes_path(listed) if listed else None
        self._probes = Probes(remembered) if remembered is not None and remembered.is_file() else None

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def clips_per_video(self) -> int:
        """R in training, 1 in validation, segments x crops in test."""
        if self.mode == "train":
            return self.config.repeats
        return self.config.segments * self.config.crops if self.mode == "test" else 1

    def require_readable(self, workers: int = 1, progress: Callable[[int, int], None] | None = None) -> None:
        """Read the frames of every video as evaluation will, in threads; `progress(done, total)`.

        Raises:
            VideoError: the first of the list's bad files.
        """
        with reading_threads(workers) as in_threads:
            for done, _ in enumerate(in_threads(self.frames_of, range(len(self))), start=1):
                if progress is not None:
                    progress(done, len(self))

    def some(self, count: int, seed: int) -> ClipDataset:
        """About `count` of the videos, of every label alike, read as this data set reads them."""
        chosen = subset(self.samples, count / len(self), seed)
        return ClipDataset(chosen, self.config, self.mode, self.seed, cache=self.cache)

    def set_epoch(self, epoch: int) -> None:
        """The epoch that draws are made from."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One item; raises VideoError for a bad file."""
        n, (height, width) = self.clips_per_video, self.config.size
        out = np.empty((n, self.config.frames, height, width, self.config.channels), np.uint8)
        self.fill(index, self.epoch, out)
        sample = self.samples[index]
        clip = torch.from_numpy(out if n > 1 else out[0])
        return {"clip": clip, "label": sample.label, "index": index, "path": sample.path}

    def fill(self, index: int, epoch: int, out: np.ndarray) -> list[Cut]:
        """Write the clips of one video into `out`, uint8 `[clips_per_video, T, H, W, 3]`; how each was cut.

        Raises:
            VideoError: a bad file.
        """
        rng = np.random.default_rng((self.seed, epoch, index)) if self.mode == "train" else None
        return self._cut(self.frames_of(index, rng), rng, out)

    def frames_of(self, index: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """The frames of the clip (of all temporal views, of all repeats with a time of their own), uint8
        `[T, H, W, C]`, before the crop; `rng` draws in training. Raises VideoError for a bad file."""
        sample = self.samples[index]
        if self.cache is not None:
            frames = self.cache.frames(sample.path)
            stride = self._stride(sample.path, self.cache.rate(sample.path) if self.config.fps else 0.0)
            return frames[self._frame_indices(sample, len(frames), stride, rng).reshape(-1)]
        if sample.path in self.given_up:
            raise VideoError(sample.path, "timeout", "a decoder got stuck on it before")
        # The read has its own limit; a decoder that is stuck inside one call is left behind after twice that.
        return run_limited(lambda: self._read(sample, rng), sample.path, 2 * self.config.timeout_s + 1)

    def _read(self, sample: Sample, rng: np.random.Generator | None) -> np.ndarray:
        config = self.config
        if sample.time_s is not None and is_second_folder(sample.path):
            if config.fps:
                raise InputError(f"data.fps: expected videos, got seconds of images ({sample.path})")
            limit = config.short_side if rng is not None else min(config.short_side, max(config.size))
            frames = read_second_clips(sample.path, sample.time_s, config.frames, config.sampling_rate, limit)
            return np.tile(frames, (config.segments, 1, 1, 1)) if self.mode == "test" else frames
        info = self._info(sample.path)
        if sample.time_s is not None:
            indices = self._key_frame_indices(info, sample.time_s)
        else:
            stride = self._stride(sample.path, info.fps)
            indices = self._frame_indices(sample, info.num_frames, stride, rng)
        native = min(info.height, info.width)
        short = native if config.short_side == 0 else min(native, config.short_side)
        if rng is None:
            # Evaluation resizes the short side to the crop's: decode at that size where it is smaller.
            short = min(short, max(config.size))
        backend = "decord" if config.reader == "decord" else info.backend
        with open_video(sample.path, info=info, backend=backend, timeout_s=config.timeout_s) as video:
            return video.read(indices.reshape(-1), short if short != native else None, config.channels)

    def _info(self, path: str) -> VideoInfo:
        if self._probes is not None and not is_remembered(path):
            found = self._probes.get(path)
            if found is not None:
                remember_info(found)
        return cached_info(path, timeout_s=self.config.timeout_s)

    def _stride(self, path: str, rate: float) -> float:
        """Frames from one of a clip's to the next, of a video of `rate` frames a second (0: it has none)."""
        if not self.config.fps:
            return self.config.sampling_rate
        if not rate:
            raise VideoError(
                path, "no_rate", "data.fps: expected a video with a frame rate, not images or .npy"
            )
        return rate / self.config.fps

    def _frame_indices(
        self, sample: Sample, num_frames: int, stride: float, rng: np.random.Generator | None
    ) -> np.ndarray:
        """int64 `[T]`; `[segments, T]` in test; `[R, T]` where repeats have a time of their own."""
        config = self.config
        start = first_frame(sample.path, sample.start)
        available = num_frames - start
        count = available if sample.num_frames is None else sample.num_frames
        if available < 1 or count > available:
            raise VideoError(
                sample.path,
                "truncated",
                f"expected {start + (sample.num_frames or 1)} frames, the file has {num_frames}",
            )
        if self.mode == "test":
            indices = sampling.multi_view_indices(
                count,
                config.frames,
                stride,
                config.segments,
                uniform=config.sampling == "uniform",
            )
        else:
            draws = config.repeats if rng is not None and config.repeat_time == "own" else 1
            indices = (
                np.stack([self._draw(count, stride, rng) for _ in range(draws)])
                if draws > 1
                else (self._draw(count, stride, rng))
            )
        return indices + start

    def _draw(self, count: int, stride: float, rng: np.random.Generator | None) -> np.ndarray:
        """int64 `[T]`: one clip of `count` frames."""
        config = self.config
        if config.sampling == "uniform":
            return sampling.uniform_indices(count, config.frames, rng)
        return sampling.dense_indices(count, config.frames, stride, rng)

    def _key_frame_indices(self, info: VideoInfo, time_s: float) -> np.ndarray:
        """int64 `[T]` around a key frame, the same in every mode; `[segments, T]`, all alike, in test."""
        config = self.config
        centre = info.frame_at(time_s - config.time_origin_s)
        indices = sampling.centred_indices(
            info.num_frames, config.frames, self._stride(info.path, info.fps), centre
        )
        return np.tile(indices, (config.segments, 1)) if self.mode == "test" else indices

    def _cut(self, frames: np.ndarray, rng: np.random.Generator | None, out: np.ndarray) -> list[Cut]:
        config = self.config
        height, width = frames.shape[1:3]
        aspect = config.size[1] / config.size[0]
        if self.mode == "test":
            boxes = augment.view_boxes(height, width, config.crops, aspect)
            for s in range(config.segments):
                segment = frames[s * config.frames : (s + 1) * config.frames]
                for c, box in enumerate(boxes):
                    augment.crop_resize(segment, box, out[s * config.crops + c])
            return [Cut(box, height, width, False) for _ in range(config.segments) for box in boxes]
        cuts = []
        for number, clip in enumerate(out):
            start = number * config.frames if len(frames) > config.frames else 0
            own = frames[start : start + config.frames]
            if rng is None or config.augment == "none":
                box = augment.center_box(height, width, aspect)
            elif config.augment == "multi_scale_crop":
                box = augment.multi_scale_box(height, width, config.size, rng)
            elif config.augment == "random_crop":
                box = augment.random_box(height, width, config.size, config.short_side, rng)
            else:
                box = augment.random_resized_box(height, width, rng)
            flip = rng is not None and config.flip and bool(rng.random() < 0.5)
            augment.crop_resize(own, box, clip, flip=flip)
            cuts.append(Cut(box, height, width, flip))
            if rng is None:
                continue
            changed = clip
            if self._rand_augment is not None:
                changed = self._rand_augment(changed, rng)
            if config.color_jitter:
                changed = color_jitter(changed, config.color_jitter, rng)
            if changed is not clip:
                clip[...] = changed
            if config.random_erasing:
                random_erase(clip, config.random_erasing, rng)
        return cuts

    def load_batch(self, keys: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """A batch of `(epoch, index)` keys.

        Returns:
            `clip` uint8 `[B, T, H, W, 3]` with `B = good videos x clips_per_video` (the clips of a video side
            by side), `label` and `index` int64 `[B]`, `view` int64 `[B]` (number within the video), `path`
            list of B, `cut` a `Cut` for each, and `failed`: a list of `{"index", "label", "path", "reason",
            "detail", "stuck"}` for the videos that could not be read (`stuck`: a thread of this process is
            lost to it).
        """
        config, views = self.config, self.clips_per_video
        clips = np.empty((len(keys), views, config.frames, *config.size, config.channels), np.uint8)
        good: list[int] = []
        cuts: list[Cut] = []
        failed: list[dict[str, Any]] = []
        for epoch, index in keys:
            try:
                cuts += self.fill(index, epoch, clips[len(good)])
                good.append(index)
            except VideoError as e:
                failed.append(failure(e, index, self.samples[index]))
        index_of = np.repeat(np.asarray(good, np.int64), views)
        return {
            "clip": torch.from_numpy(clips[: len(good)].reshape(-1, *clips.shape[2:])),
            "label": torch.tensor([self.samples[i].label for i in index_of], dtype=torch.int64),
            "index": torch.from_numpy(index_of),
            "view": torch.arange(views, dtype=torch.int64).repeat(len(good)),
            "path": [self.samples[i].path for i in index_of],
            "cut": cuts,
            "failed": failed,
        }


def failure(error: VideoError, index: int, sample: Sample) -> dict[str, Any]:
    """A batch's entry of `failed`."""
    return {
        "index": index,
        "label": sample.label,
        "path": error.path,
        "reason": error.reason,
        "detail": error.detail,
        "stuck": isinstance(error, StuckRead),
    }
