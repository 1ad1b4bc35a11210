"""What a training step of a configuration takes on this machine: a few are run.

The fastest of several counts: what else the machine does then slows it least. So a prediction made from it is
for a machine that is left alone.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch.nn import functional

from vmae.core.errors import InputError, VideoError
from vmae.core.model.classifier import VideoClassifier, VideoClassifierConfig
from vmae.core.model.detector import VideoDetector, detection_loss
from vmae.core.model.end_to_end import EndToEndDetector, end_to_end_loss
from vmae.core.model.joint import JointEncoder, draw_directions, pretraining_model
from vmae.core.model.masking import sample_masks
from vmae.core.model.videomae import VideoMAE
from vmae.core.numerics import autocast, resolve_precision
from vmae.core.train.optim import build_optimizer
from vmae.core.video.clips import ClipDataset
from vmae.core.video.config import DataConfig
from vmae.core.video.facts import LIMIT_S
from vmae.core.video.isolate import run_limited
from vmae.core.video.probe_store import cached_info
from vmae.core.video.reader import read_clip
from vmae.core.video.samples import Sample
from vmae.core.weights.teacher import read_teacher, sized
from vmae.experiments import stages
from vmae.experiments.config import ExperimentConfig


@dataclass(frozen=True, kw_only=True)
class ClipTime:
    """Seconds a clip takes of a step's forward, backward and update, and in how many threads."""

    step_s: float
    threads: int


@dataclass(frozen=True, kw_only=True)
class LoadTime:
    """Seconds of one thread for a video, of which `decode_s` once with a cache, and `cut_s` for its clips."""

    decode_s: float
    cut_s: float


def time_steps(
    config: ExperimentConfig,
    num_classes: int,
    *,
    device: torch.device,
    threads: Sequence[int] = (0,),
    limit_s: float = 1.5,
) -> ClipTime:
    """Run training steps of `config` on random clips; the best of the numbers of threads tried (0: as it is).

    A step has as many clips as `limit_s` allows, at most a micro-batch's. Raises InputError where not even
    one clip fits into memory.
    """
    micro = max(1, config.train.batch_size // config.train.accumulate) * config.data.repeats
    before = torch.get_num_threads()
    found: list[ClipTime] = []
    try:
        step = _step_of(config, num_classes, device)
        for count in threads:
            torch.set_num_threads(count or before)
            one = _fastest(
                step, 1, 1
            )  # with what is built on first use, which may take longer than all the rest
            if one < 4 * limit_s:
                one = _fastest(step, 1, 1)
            if one < limit_s:
                one = min(one, _fastest(step, 1, 1))
            clips = max(1, min(micro, int(limit_s / 4 / one)))
            best = one if clips == 1 else _fastest(step, clips, 3) / clips
            found.append(ClipTime(step_s=best, threads=torch.get_num_threads()))
    except (MemoryError, torch.OutOfMemoryError):
        raise InputError("expected one clip of a training step to fit into memory; it does not") from None
    finally:
        torch.set_num_threads(before)
    return min(found, key=lambda t: t.step_s)


def fastest_threads(config: ExperimentConfig, *, limit_s: float = 0.3, rounds: int = 5) -> int:
    """With how many CPU threads a training step takes the least time on this machine as it is now.

    The numbers tried take turns, so that what else the machine does slows all of them, and their medians
    count: threads that wait for a core that is busy show. 0 (as torch has it) where there is one core, or a
    step of one clip takes longer than `limit_s`. Raises InputError where one does not fit into memory.
    """
    cores = usable_cores()
    tried = sorted({1, max(1, cores // 2), cores})
    if len(tried) == 1:
        return 0
    before = torch.get_num_threads()
    seconds: dict[int, list[float]] = {count: [] for count in tried}
    try:
        step = _step_of(config, 2, torch.device("cpu"))
        _fastest(step, 1, 1)
        one = _fastest(step, 1, 1)
        if one > limit_s:  # a large model, or threads that wait for each other on a busy machine
            torch.set_num_threads(1)
            one = _fastest(step, 1, 1)
        if one > limit_s:
            return 0
        clips = max(1, min(config.train.batch_size, int(limit_s / 3 / one)))
        for count in tried * (rounds + 1):
            torch.set_num_threads(count)
            seconds[count].append(_fastest(step, clips, 1))
    except (MemoryError, torch.OutOfMemoryError):
        raise InputError("expected one clip of a training step to fit into memory; it does not") from None
    finally:
        torch.set_num_threads(before)
    return min(tried, key=lambda count: float(np.median(seconds[count][1:])))


def own_threads(config: ExperimentConfig, device: torch.device) -> int:
    """The CPU threads with which a step is the fastest here; 0 where they are not for us to choose.

    Errors as `fastest_threads`.
    """
    # With OMP_NUM_THREADS it is chosen already: torch has it from there, and two runs sum in the same order.
    if os.environ.get("OMP_NUM_THREADS") or device.type != "cpu":
        return 0
    return fastest_threads(config)


def _fastest(step: Callable[[int], None], clips: int, times: int) -> float:
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        step(clips)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _step_of(config: ExperimentConfig, num_classes: int, device: torch.device) -> Callable[[int], None]:
    """One optimiser step on that many random clips, as the job does it (without mixing and clipping)."""
    with _own_generator():
        shape = config.model
        model: torch.nn.Module
        if config.job == stages.detection.STAGE.name:
            model = stages.detection.build_detector(config)
        elif not stages.STAGES[config.job].masked:
            model = VideoClassifier(VideoClassifierConfig.from_encoder(shape), max(1, num_classes))
            model.encoder.requires_grad_(not config.finetune.freeze_encoder)
        else:
            teacher = read_teacher(shape)
            model = pretraining_model(sized(shape, teacher))
            if teacher is not None and isinstance(model, VideoMAE):
                model.learn_from(teacher)
    model.to(device).train()
    optimizer = build_optimizer(model, config.optim)
    precision = resolve_precision(config.train.precision, device)
    generator = torch.Generator().manual_seed(0)

    def step(clips: int) -> None:
        if isinstance(model, JointEncoder):  # whole videos, all their views
            clips = -(-clips // config.data.repeats) * config.data.repeats
        size = (clips, shape.channels, shape.frames, shape.height, shape.width)
        seen = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
        video = seen.to(device)
        optimizer.zero_grad(set_to_none=True)
        with autocast(precision, device):
            if isinstance(model, JointEncoder):
                mask, _ = sample_masks(config.mask, shape.grid, clips, generator, video=seen)
                directions = draw_directions(shape.predicted_dim, generator).to(device)
                loss = model(video, mask.to(device), directions, config.data.repeats)
            elif isinstance(model, VideoMAE):
                mask, decode = sample_masks(config.mask, shape.grid, clips, generator, video=seen)
                loss = model(video, mask.to(device), *(() if decode is None else (decode.to(device),)))
            elif isinstance(model, VideoDetector | EndToEndDetector):
                loss = _detection_loss(model, video)
            else:
                labels = torch.zeros(clips, dtype=torch.int64, device=device)
                loss = functional.cross_entropy(model(video).float(), labels)
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def _detection_loss(model: VideoDetector | EndToEndDetector, video: torch.Tensor) -> torch.Tensor:
    """Of two people in every clip."""
    (clips, *_, height, width), device = video.shape, video.device
    of_clip = torch.arange(clips, device=device).repeat_interleave(2)
    shares = torch.tensor([0.2, 0.2, 0.8, 0.8], device=device).repeat(2 * clips, 1)
    targets = torch.zeros(2 * clips, model.num_classes, device=device)
    if isinstance(model, EndToEndDetector):
        return end_to_end_loss(model(video), shares, of_clip, targets)
    return detection_loss(model(video, shares * shares.new_tensor([width, height] * 2), of_clip), targets)


@contextlib.contextmanager
def _own_generator() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def time_loading(samples: Sequence[Sample], data: DataConfig, *, videos: int = 3) -> LoadTime:
    """Decode a few of the videos whole, as the cache does, and cut training clips from them.

    Bad files are passed over. Raises InputError where none of the first ten can be read.
    """
    chosen = [samples[i] for i in np.linspace(0, len(samples) - 1, min(10, len(samples))).astype(int)]
    frames: dict[str, np.ndarray] = {}
    decode: list[float] = []
    for sample in chosen:
        if len(frames) == videos:
            break
        with contextlib.suppress(VideoError):
            start = time.perf_counter()
            info = run_limited(partial(cached_info, sample.path), sample.path, LIMIT_S)
            side = min(data.decoded_short_side, info.height, info.width)
            # Of a film (a list of key frames) as much as one clip spans.
            span = info.num_frames if sample.time_s is None else data.frames * data.sampling_rate
            wanted = range(min(span, info.num_frames))
            read = partial(read_clip, sample.path, wanted, side, info=info, channels=data.channels)
            frames[sample.path] = run_limited(read, sample.path, LIMIT_S)
            decode.append(time.perf_counter() - start)
    if not frames:
        raise InputError(f"expected readable videos; none of {len(chosen)} tried is (vmae data check)")
    known = [replace(s, start=0, num_frames=None, time_s=None) for s in chosen if s.path in frames]
    dataset = ClipDataset(known, data, "train", cache=_Decoded(frames))  # type: ignore[arg-type]
    out = np.empty((dataset.clips_per_video, data.frames, *data.size, data.channels), np.uint8)
    cut = []
    for epoch in range(4):
        for index in range(len(known)):
            start = time.perf_counter()
            dataset.fill(index, epoch, out)
            cut.append(time.perf_counter() - start)
    return LoadTime(decode_s=float(np.mean(decode)), cut_s=float(np.median(cut)))


class _Decoded:
    """Decoded videos in memory, with the methods of a cache that a data set calls."""

    def __init__(self, frames: dict[str, np.ndarray]) -> None:
        self._frames = frames

    def frames(self, path: str) -> np.ndarray:
        return self._frames[path]

    def rate(self, path: str) -> float:
        return cached_info(path).fps


def usable_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
