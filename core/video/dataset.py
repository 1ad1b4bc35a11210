"""Lists of videos to uint8 batches: what is drawn, in which order, and what happens to bad files.

Randomness: the order comes from `(seed, epoch)`, a clip's draws from `(seed, epoch, index)`; no global
state. So a run that stops and resumes, or uses other workers, sees the same clips. Bad files: never replaced
by another clip (see `ClipLoader`).
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from vmae.core.errors import InputError, VideoError
from vmae.core.video import augment, sampling
from vmae.core.video.annotations import AnnotationFormat, Sample
from vmae.core.video.cache import DecodedCache
from vmae.core.video.isolate import StuckRead, run_limited
from vmae.core.video.probe import Probes, probes_path
from vmae.core.video.rand_augment import RandAugment, color_jitter, random_erase
from vmae.core.video.reader import (
    VideoInfo,
    cached_info,
    first_frame,
    is_remembered,
    open_video,
    remember_info,
)

T = TypeVar("T")
Mode = Literal["train", "val", "test"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where clips come from and how they are cut."""

    train_csv: str = ""
    val_csv: str = ""
    test_csv: str = ""
    train_share: float = 1.0
    """Share of the training list that is pre-trained on (of every class alike; a smaller share's videos are
    among a larger one's). Probes and fine-tuning read the whole list."""
    data_root: str = ""
    """Folder that relative paths in the lists start from; empty: the list's own folder."""
    annotation_format: AnnotationFormat = "auto"
    time_origin_s: float = 0.0
    """Second of an AVA list's clock at which the files begin: 0 for whole films, 900 for the usual cuts."""
    reader: Literal["pyav", "decord"] = "pyav"
    """`pyav`: by seeking where the file's probe allows it, else from its start (the fastest measured, see
    docs/bench_loader.md). `decord`: where a trial of each file shows the right frames, else as `pyav`."""
    frames: int = 16
    """Frames of a clip, T."""
    sampling_rate: int = 4
    """Stride between a clip's frames (dense sampling)."""
    sampling: Literal["dense", "uniform"] = "dense"
    """`dense`: fixed stride (Kinetics); `uniform`: one frame per equal segment (Something-Something)."""
    size: tuple[int, int] = (224, 224)
    """Height and width of a clip in pixels."""
    short_side: int = 256
    """Videos with a larger short side are scaled down to this as they are decoded; 0: never."""
    augment: Literal["none", "multi_scale_crop", "random_resized_crop"] = "multi_scale_crop"
    """Training crop. `none`: the centre, as in validation."""
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
    cache_dir: str = "runs/cache"
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
    """A bad file in validation or test: stop, or count it as wrong. It is never left out."""

    def __post_init__(self) -> None:
        for name in ("frames", "sampling_rate", "repeats", "segments", "crops", "prefetch"):
            if getattr(self, name) < 1:
                raise InputError(f"data.{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("workers", "short_side", "cache_short_side"):
            if getattr(self, name) < 0:
                raise InputError(f"data.{name}: expected 0 or more, got {getattr(self, name)}")
        if len(self.size) != 2 or min(self.size) < 1:
            raise InputError(f"data.size: expected height and width of at least 1, got {self.size}")
        if not 0 < self.train_share <= 1:
            raise InputError(f"data.train_share: expected a share in (0, 1], got {self.train_share}")
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


class ClipDataset:
    """Clips of a list of videos, by index.

    Args:
        samples: the videos.
        config: sampling, crops, limits.
        mode: `train` draws (time, crop, flip; `config.repeats` clips of each video); `val` takes the central
            clip and the central crop; `test` takes `segments x crops` views.
        seed: of all draws.
        cache: decoded frames to read instead of the files.

    `dataset[i]` is `{"clip": uint8 [T, H, W, 3], "label": int, "index": int, "path": str}`; the clip is
    `[R, T, H, W, 3]` with repeats or views (segment-major).
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        config: DataConfig,
        mode: Mode = "train",
        seed: int = 0,
        *,
        cache: DecodedCache | None = None,
    ) -> None:
        if mode not in ("train", "val", "test"):
            raise InputError(f"mode: expected train, val or test, got '{mode}'")
        if not samples:
            raise InputError("expected at least one video, got an empty list")
        if cache is not None and any(s.time_s is not None for s in samples):
            raise InputError("data.cache: expected a list of short videos, got key frames of films (AVA)")
        self.samples = list(samples)
        self.config = config
        self.mode = mode
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

    def set_epoch(self, epoch: int) -> None:
        """The epoch that draws are made from."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One item; raises VideoError for a bad file."""
        n, (height, width) = self.clips_per_video, self.config.size
        out = np.empty((n, self.config.frames, height, width, 3), np.uint8)
        self.fill(index, self.epoch, out)
        sample = self.samples[index]
        clip = torch.from_numpy(out if n > 1 else out[0])
        return {"clip": clip, "label": sample.label, "index": index, "path": sample.path}

    def fill(self, index: int, epoch: int, out: np.ndarray) -> None:
        """Write the clips of one video into `out`, uint8 `[clips_per_video, T, H, W, 3]`.

        Raises:
            VideoError: a bad file.
        """
        sample, config = self.samples[index], self.config
        rng = np.random.default_rng((self.seed, epoch, index)) if self.mode == "train" else None
        if self.cache is not None:
            frames = self.cache.frames(sample.path)
            indices = self._frame_indices(sample, len(frames), rng)
            self._cut(frames[indices.reshape(-1)], rng, out)
            return
        if sample.path in self.given_up:
            raise VideoError(sample.path, "timeout", "a decoder got stuck on it before")
        # The read has its own limit; a decoder that is stuck inside one call is left behind after twice that.
        frames = run_limited(lambda: self._read(sample, rng), sample.path, 2 * config.timeout_s + 1)
        self._cut(frames, rng, out)

    def _read(self, sample: Sample, rng: np.random.Generator | None) -> np.ndarray:
        """The frames of the clip (of all temporal views, of all repeats with a time of their own), uint8
        `[T, H, W, 3]`, before the crop."""
        config = self.config
        info = self._info(sample.path)
        if sample.time_s is not None:
            indices = self._key_frame_indices(info, sample.time_s)
        else:
            indices = self._frame_indices(sample, info.num_frames, rng)
        native = min(info.height, info.width)
        short = native if config.short_side == 0 else min(native, config.short_side)
        if rng is None:
            # Evaluation resizes the short side to the crop's: decode at that size where it is smaller.
            short = min(short, max(config.size))
        backend = "decord" if config.reader == "decord" else info.backend
        with open_video(sample.path, info=info, backend=backend, timeout_s=config.timeout_s) as video:
            return video.read(indices.reshape(-1), short if short != native else None)

    def _info(self, path: str) -> VideoInfo:
        if self._probes is not None and not is_remembered(path):
            found = self._probes.get(path)
            if found is not None:
                remember_info(found)
        return cached_info(path, timeout_s=self.config.timeout_s)

    def _frame_indices(self, sample: Sample, num_frames: int, rng: np.random.Generator | None) -> np.ndarray:
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
                config.sampling_rate,
                config.segments,
                uniform=config.sampling == "uniform",
            )
        else:
            draws = config.repeats if rng is not None and config.repeat_time == "own" else 1
            indices = (
                np.stack([self._draw(count, rng) for _ in range(draws)])
                if draws > 1
                else (self._draw(count, rng))
            )
        return indices + start

    def _draw(self, count: int, rng: np.random.Generator | None) -> np.ndarray:
        """int64 `[T]`: one clip of `count` frames."""
        config = self.config
        if config.sampling == "uniform":
            return sampling.uniform_indices(count, config.frames, rng)
        return sampling.dense_indices(count, config.frames, config.sampling_rate, rng)

    def _key_frame_indices(self, info: VideoInfo, time_s: float) -> np.ndarray:
        """int64 `[T]` around a key frame, the same in every mode; `[segments, T]`, all alike, in test."""
        config = self.config
        centre = info.frame_at(time_s - config.time_origin_s)
        indices = sampling.centred_indices(info.num_frames, config.frames, config.sampling_rate, centre)
        return np.tile(indices, (config.segments, 1)) if self.mode == "test" else indices

    def _cut(self, frames: np.ndarray, rng: np.random.Generator | None, out: np.ndarray) -> None:
        config = self.config
        height, width = frames.shape[1:3]
        aspect = config.size[1] / config.size[0]
        if self.mode == "test":
            boxes = augment.view_boxes(height, width, config.crops, aspect)
            for s in range(config.segments):
                segment = frames[s * config.frames : (s + 1) * config.frames]
                for c, box in enumerate(boxes):
                    augment.crop_resize(segment, box, out[s * config.crops + c])
            return
        for number, clip in enumerate(out):
            start = number * config.frames if len(frames) > config.frames else 0
            own = frames[start : start + config.frames]
            if rng is None or config.augment == "none":
                box = augment.center_box(height, width, aspect)
            elif config.augment == "multi_scale_crop":
                box = augment.multi_scale_box(height, width, config.size, rng)
            else:
                box = augment.random_resized_box(height, width, rng)
            flip = rng is not None and config.flip and bool(rng.random() < 0.5)
            augment.crop_resize(own, box, clip, flip=flip)
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

    def load_batch(self, keys: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """A batch of `(epoch, index)` keys.

        Returns:
            `clip` uint8 `[B, T, H, W, 3]` with `B = good videos x clips_per_video` (the clips of a video side
            by side), `label` and `index` int64 `[B]`, `view` int64 `[B]` (number within the video), `path`
            list of B, and `failed`: a list of `{"index", "label", "path", "reason", "detail", "stuck"}` for
            the videos that could not be read (`stuck`: a thread of this process is lost to it).
        """
        config, views = self.config, self.clips_per_video
        clips = np.empty((len(keys), views, config.frames, *config.size, 3), np.uint8)
        good: list[int] = []
        failed: list[dict[str, Any]] = []
        for epoch, index in keys:
            try:
                self.fill(index, epoch, clips[len(good)])
                good.append(index)
            except VideoError as e:
                sample = self.samples[index]
                failed.append(
                    {
                        "index": index,
                        "label": sample.label,
                        "path": e.path,
                        "reason": e.reason,
                        "detail": e.detail,
                        "stuck": isinstance(e, StuckRead),
                    }
                )
        index_of = np.repeat(np.asarray(good, np.int64), views)
        return {
            "clip": torch.from_numpy(clips[: len(good)].reshape(-1, *clips.shape[2:])),
            "label": torch.tensor([self.samples[i].label for i in index_of], dtype=torch.int64),
            "index": torch.from_numpy(index_of),
            "view": torch.arange(views, dtype=torch.int64).repeat(len(good)),
            "path": [self.samples[i].path for i in index_of],
            "failed": failed,
        }


class _Batches:
    """torch's `Dataset` protocol: whole batches of keys per call, so that a worker fills one array."""

    def __init__(self, dataset: ClipDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        return self.dataset.load_batch([key])

    def __getitems__(self, keys: list[tuple[int, int]]) -> dict[str, Any]:
        return self.dataset.load_batch(keys)


def _identity(batch: Any) -> Any:
    return batch


def read_ahead(source: Iterator[T], prepare: Callable[[T], T], depth: int = 1) -> Iterator[T]:
    """Yield `prepare(item)` for every item, made in a thread up to `depth` items ahead of the consumer.

    What `source` or `prepare` raises is raised to the consumer in its place; leaving the iteration ends the
    thread.
    """
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(entry: tuple[T | None, BaseException | None]) -> bool:
        while not stop.is_set():
            try:
                ready.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in source:
                if not put((prepare(item), None)):
                    return
            put((None, None))
        except BaseException as e:
            put((None, e))

    thread = threading.Thread(target=work, daemon=True, name="vmae-read-ahead")
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stop.set()
        thread.join()


def upload_ahead(source: Iterator[dict[str, Any]], device: torch.device) -> Iterator[dict[str, Any]]:
    """Batches with their tensors on a CUDA device, copied one batch ahead on a stream of their own.

    The copy of the next batch runs beside the step on this one; the consumer's stream waits for its own
    batch's copy only.
    """
    if device.index is None:  # the copying thread does not inherit this thread's current device
        device = torch.device("cuda", torch.cuda.current_device())
    side = torch.cuda.Stream(device)

    def send(batch: dict[str, Any]) -> dict[str, Any]:
        sent = dict(batch)
        with torch.cuda.device(device), torch.cuda.stream(side):
            for key, value in batch.items():
                if isinstance(value, torch.Tensor):
                    # Only page-locked memory is copied without holding up the host.
                    pinned = value if value.is_pinned() else value.pin_memory()
                    sent[key] = pinned.to(device, non_blocking=True)
            sent["_copied"] = side.record_event()
        return sent

    for batch in read_ahead(source, send):
        current = torch.cuda.current_stream(device)
        current.wait_event(batch.pop("_copied"))
        for value in batch.values():
            if isinstance(value, torch.Tensor):
                value.record_stream(current)
        yield batch


class ClipLoader:
    """Batches of one epoch after another; iterate, then `set_epoch(next)`, and iterate again.

    Bad files. Training: the video is left out (the batch is smaller by its clips), counted in `skipped`
    (path -> reason, of all epochs), and reported once; over `config.max_bad_share` of the rank's epoch, and
    when a whole batch is bad, it stops with a VideoError that lists them. Validation and test: a VideoError
    at once, or with `config.bad_eval == "count"` the batch's `failed` names it and the caller counts it as
    wrong.

    A read that is stuck inside a decoder is given up after its limit and its file refused from then on; with
    workers the processes are replaced after that batch, which ends the stuck call (every decoder here works
    outside the interpreter lock, so the rest of its process goes on). The clips that follow are the same.

    `wait_s` is the time the consumer waited in `next()`; `step_s` all time between the first and the last
    batch: their quotient is `perf/data_wait_share`.
    """

    def __init__(
        self,
        dataset: ClipDataset,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        epoch: int,
        rank: int,
        world_size: int,
        workers: int,
        skip_batches: int,
        drop_last: bool,
        pin_memory: bool,
        start_method: str | None,
        device: torch.device | None,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size: expected at least 1, got {batch_size}")
        if not 0 <= rank < world_size:
            raise InputError(f"rank: expected 0 <= rank < world_size, got {rank} of {world_size}")
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = epoch
        self.rank = rank
        self.world_size = world_size
        self.workers = workers
        self.skip_batches = skip_batches
        self.drop_last = drop_last
        self.pin_memory = pin_memory
        self.start_method = start_method
        self.device = device
        self.yield_empty = False
        """Yield a training batch of which every file was bad, without clips (a loop counts places by it)."""
        self.skipped: dict[str, str] = {}
        self.wait_s = 0.0
        self.step_s = 0.0
        self._keys: list[list[tuple[int, int]]] = []
        self._torch_loader: Any = None
        if dataset.mode == "train" and len(self.batches(epoch)) == 0:
            raise InputError(
                f"batch_size: expected at most {self._per_rank()} (the videos of one rank, with drop_last), "
                f"got {batch_size}"
            )

    def _per_rank(self) -> int:
        n = len(self.dataset)
        if self.dataset.mode == "train":
            return n // self.world_size
        return len(range(self.rank, n, self.world_size))

    def __len__(self) -> int:
        """Batches of a whole epoch (before `skip_batches`)."""
        n = self._per_rank()
        return n // self.batch_size if self.drop_last else math.ceil(n / self.batch_size)

    def set_epoch(self, epoch: int, skip_batches: int = 0) -> None:
        """The epoch that the next iteration yields, from its batch number `skip_batches`."""
        self.epoch = epoch
        self.skip_batches = skip_batches
        self.dataset.set_epoch(epoch)

    def batches(self, epoch: int) -> list[list[int]]:
        """Video numbers of this rank's batches in an epoch.

        Training ranks get equal shares (up to `world_size - 1` videos are left out, others each epoch);
        evaluation ranks get every video exactly once among them.
        """
        n = len(self.dataset)
        order = np.random.default_rng((self.seed, epoch)).permutation(n) if self.shuffle else np.arange(n)
        mine = order[self.rank :: self.world_size][: self._per_rank()].tolist()
        return [mine[b * self.batch_size : (b + 1) * self.batch_size] for b in range(len(self))]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        keys = [[(self.epoch, i) for i in b] for b in self.batches(self.epoch)][self.skip_batches :]
        self.wait_s = self.step_s = 0.0
        start = time.perf_counter()
        source = self._source(keys)
        if self.device is not None and self.device.type == "cuda":
            source = upload_ahead(source, self.device)
        bad_now = 0
        while True:
            asked = time.perf_counter()
            batch = next(source, None)
            now = time.perf_counter()
            self.wait_s += now - asked
            self.step_s = now - start
            if batch is None:
                return
            bad_now += len(batch["failed"])
            if batch["failed"]:
                self._handle(batch, bad_now)
                if len(batch["clip"]) == 0 and self.dataset.mode == "train" and not self.yield_empty:
                    continue
            yield batch

    @property
    def data_wait_share(self) -> float:
        """Share of the time of this iteration that was spent waiting for data, in [0, 1]."""
        return self.wait_s / self.step_s if self.step_s > 0 else 0.0

    def _source(self, keys: list[list[tuple[int, int]]]) -> Iterator[dict[str, Any]]:
        if self.workers == 0:
            return iter(self.dataset.load_batch(k) for k in keys)
        return self._from_workers(keys)

    def _from_workers(self, keys: list[list[tuple[int, int]]]) -> Iterator[dict[str, Any]]:
        done = 0
        while done < len(keys):
            batches = iter(self._workers_for(keys[done:]))
            stuck: set[str] = set()
            while done < len(keys) and not stuck:
                batch = next(batches)
                done += 1
                stuck = {f["path"] for f in batch["failed"] if f["stuck"]}
                yield batch
            if stuck:
                self.dataset.given_up |= stuck
                self._stop_workers()

    def _stop_workers(self) -> None:
        """End the worker processes; the next batches come from new ones, which know what was given up."""
        iterator = None if self._torch_loader is None else self._torch_loader._iterator
        self._torch_loader = None
        if iterator is not None:
            iterator._shutdown_workers()  # asks, waits 5 s, then terminates

    def _workers_for(self, keys: list[list[tuple[int, int]]]) -> Any:
        from torch.utils.data import DataLoader

        self._keys[:] = keys
        if self._torch_loader is None:
            self._torch_loader = DataLoader(
                _Batches(self.dataset),  # type: ignore[arg-type]
                batch_sampler=self._keys,
                num_workers=self.workers,
                collate_fn=_identity,
                pin_memory=self.pin_memory,
                prefetch_factor=self.dataset.config.prefetch,
                persistent_workers=True,
                multiprocessing_context=self.start_method,
                # Above what a batch of files at their own limit takes: only a stuck worker gets here.
                timeout=60 + (2 * self.dataset.config.timeout_s + 1) * self.batch_size,
            )
        return self._torch_loader

    def _handle(self, batch: dict[str, Any], bad_now: int) -> None:
        config = self.dataset.config
        for f in batch["failed"]:
            if self.dataset.mode != "train" and config.bad_eval == "error":
                raise VideoError(f["path"], f["reason"], f["detail"])
            if f["path"] not in self.skipped:
                self.skipped[f["path"]] = f["reason"]
                import logging

                logging.getLogger("vmae").warning(
                    "bad video %s: %s (%s)",
                    "skipped" if self.dataset.mode == "train" else "counted as wrong",
                    f["path"],
                    f["reason"],
                )
        if self.dataset.mode != "train":
            return
        share = bad_now / max(1, self._per_rank())
        if share > config.max_bad_share or (
            len(batch["clip"]) == 0 and self.world_size > 1 and not self.yield_empty
        ):
            named = ", ".join(f"{p} ({r})" for p, r in list(self.skipped.items())[:20])
            raise VideoError(
                batch["failed"][-1]["path"],
                "too_many_bad_files",
                f"{bad_now} of {self._per_rank()} videos of this epoch are bad, more than "
                f"max_bad_share={config.max_bad_share:g}: {named}; see `vmae data check`",
            )


def build_loader(
    dataset: ClipDataset,
    batch_size: int,
    *,
    shuffle: bool | None = None,
    seed: int | None = None,
    epoch: int = 0,
    rank: int = 0,
    world_size: int = 1,
    workers: int | None = None,
    skip_batches: int = 0,
    drop_last: bool | None = None,
    pin_memory: bool | None = None,
    start_method: str | None = None,
    device: torch.device | str | None = None,
) -> ClipLoader:
    """A loader of uint8 batches; see `ClipDataset.load_batch` for what a batch holds.

    Args:
        batch_size: videos per batch of this rank (times `clips_per_video` clips).
        shuffle: a new order each epoch; default: in training.
        seed: of the order; default: the dataset's.
        epoch, skip_batches: where to start (resume mid-epoch).
        workers: processes; default: `config.workers`. 0 loads in this process.
        drop_last: leave out an incomplete last batch; default: in training.
        pin_memory: page-locked batches; default: where there is a CUDA device.
        start_method: `fork`, `spawn` or `forkserver`; default: the platform's.
        device: a CUDA device to copy batches to, one ahead, on a side stream; else batches stay in memory.
    """
    training = dataset.mode == "train"
    if workers is None:
        workers = dataset.config.workers
    dataset.set_epoch(epoch)
    return ClipLoader(
        dataset,
        batch_size,
        shuffle=training if shuffle is None else shuffle,
        seed=dataset.seed if seed is None else seed,
        epoch=epoch,
        rank=rank,
        world_size=world_size,
        workers=workers,
        skip_batches=skip_batches,
        drop_last=training if drop_last is None else drop_last,
        pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
        start_method=start_method,
        device=None if device is None else torch.device(device),
    )


def build_cache(
    samples: Sequence[Sample],
    config: DataConfig,
    *,
    workers: int | None = None,
    progress: Any = None,
) -> DecodedCache | None:
    """The decoded cache that `config` asks for (None where it asks for none); see `DecodedCache.build`."""
    if not config.cache:
        return None
    return DecodedCache.build(
        samples,
        config.cache_dir,
        config.decoded_short_side,
        workers=workers,
        progress=progress,
        timeout_s=config.timeout_s,
    )
