"""The loader against the usual way and against other readers, side by side in one run.

The work is always the same: 16 frames at stride 4 from a random place of a file, one multi-scale crop of
224 x 224, one thread. The ways alternate clip by clip on the same clips, so that a busy machine slows all of
them; rates are per second of processor time (all threads of the process), with wall time beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vmae.core.video import augment
from vmae.core.video.clips import ClipDataset
from vmae.core.video.config import DataConfig
from vmae.core.video.probe import VideoInfo, probe_video
from vmae.core.video.reader import open_video, read_clip
from vmae.core.video.samples import Sample
from vmae.core.video.sampling import dense_indices

FRAMES, RATE, SIZE = 16, 4, (224, 224)
_MEAN, _STD = (np.array(v, np.float32) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
Read = Callable[[VideoInfo, np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Clips delivered per second by one way on one file; `exact` None where it was not compared."""

    file: str
    way: str
    clips_per_cpu_s: float
    clips_per_wall_s: float
    exact: bool | None = None
    note: str = ""


# -- readers: frames at full size, uint8 [T, H, W, 3] ----------------------------------------------------


def read_ours(info: VideoInfo, indices: np.ndarray) -> np.ndarray:
    """This project's reader with its probe remembered, as in training from the second epoch on."""
    return read_clip(info.path, indices, info=info)


def read_decord(info: VideoInfo, indices: np.ndarray) -> np.ndarray:
    """decord, one thread."""
    import decord

    frames: np.ndarray = decord.VideoReader(info.path, num_threads=1).get_batch(indices).asnumpy()
    return frames


def read_pyav(info: VideoInfo, indices: np.ndarray) -> np.ndarray:
    """PyAV as it is usually written: seek to the key frame before, decode everything up to the last frame."""
    import av

    with av.open(info.path) as container:
        stream: Any = container.streams.best("video")
        stream.codec_context.thread_count = 1
        wanted = {int(info.pts[i]): int(i) for i in indices} if len(info.pts) else {}
        got: dict[int, np.ndarray] = {}
        if wanted:
            container.seek(min(wanted), stream=stream, backward=True)
        frames: Any = container.decode(stream)
        for count, frame in enumerate(frames):
            index = wanted.get(frame.pts) if wanted else count
            if index is not None and index in indices:
                got[index] = frame.to_ndarray(format="rgb24")
            if len(got) == len(set(indices.tolist())):
                break
        return np.stack([got[int(i)] for i in indices])


def read_torchcodec(info: VideoInfo, indices: np.ndarray) -> np.ndarray:
    """torchcodec in its exact mode, one thread."""
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, OSError, RuntimeError):
        # Its message runs over a page; it needs FFmpeg's shared libraries of a version it was built for.
        raise RuntimeError("does not load here") from None

    decoder = VideoDecoder(info.path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
    frames: np.ndarray = decoder.get_frames_at(indices.tolist()).data.numpy()
    return frames


READERS: dict[str, Read] = {
    "ours": read_ours,
    "decord": read_decord,
    "pyav": read_pyav,
    "torchcodec": read_torchcodec,
}


def usual_way(info: VideoInfo, indices: np.ndarray, rng: np.random.Generator) -> Any:
    """The baseline: decord at full size, PIL images, crop and resize frame by frame, float, normalise.

    As the official loader does it; returns float32 `[C, T, H, W]`.
    """
    import torch
    from PIL import Image

    images = [Image.fromarray(frame) for frame in read_decord(info, indices)]
    box = augment.multi_scale_box(images[0].height, images[0].width, SIZE, rng)
    edges = (box.left, box.top, box.left + box.width, box.top + box.height)
    resized = [im.crop(edges).resize(SIZE[::-1], Image.Resampling.BILINEAR) for im in images]
    stacked = torch.from_numpy(np.stack([np.asarray(im) for im in resized])).float().div_(255)
    return (stacked - torch.from_numpy(_MEAN)).div_(torch.from_numpy(_STD)).permute(3, 0, 1, 2).contiguous()


# -- measuring -------------------------------------------------------------------------------------------


class _Clock:
    def __init__(self) -> None:
        self.cpu = self.wall = 0.0
        self.clips = 0

    def run(self, work: Callable[[], Any], clips: int = 1) -> Any:
        cpu, wall = time.process_time(), time.perf_counter()
        result = work()
        self.cpu += time.process_time() - cpu
        self.wall += time.perf_counter() - wall
        self.clips += clips
        return result

    def rate(self, file: str, way: str, exact: bool | None = None, note: str = "") -> Rate:
        if not self.clips:
            return Rate(file=file, way=way, clips_per_cpu_s=0.0, clips_per_wall_s=0.0, note=note)
        return Rate(
            file=file,
            way=way,
            clips_per_cpu_s=self.clips / max(self.cpu, 1e-9),
            clips_per_wall_s=self.clips / self.wall,
            exact=exact,
            note=note,
        )


def _places(info: VideoInfo, clips: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [dense_indices(info.num_frames, FRAMES, RATE, rng) for _ in range(clips)]


def _loader(path: str, repeats: int, short_side: int) -> ClipDataset:
    config = DataConfig(
        frames=FRAMES, sampling_rate=RATE, size=SIZE, short_side=short_side, repeats=repeats, workers=0
    )
    return ClipDataset([Sample(path=path, label=0)], config)


def bench_loader(path: str | Path, *, clips: int = 10, short_side: int = 256) -> list[Rate]:
    """`usual`, `ours` and `ours x4` (repeated sampling of 4) on one file, alternating."""
    path, name = str(path), Path(path).name
    info = probe_video(path)
    one, four = _loader(path, 1, short_side), _loader(path, 4, short_side)
    clocks = {way: _Clock() for way in ("usual", "ours", "ours x4")}
    rng = np.random.default_rng(0)
    out = np.empty((4, FRAMES, *SIZE, 3), np.uint8)
    note = ""
    for k, indices in enumerate([*_places(info, 1), *_places(info, clips)]):
        if k == 1:  # the first clip only warms up
            clocks = {way: _Clock() for way in clocks}
        try:
            clocks["usual"].run(lambda i=indices: usual_way(info, i, rng))  # type: ignore[misc]
        except Exception as e:
            note = (str(e).strip().splitlines() or ["error"])[0][:60]
        clocks["ours"].run(lambda e=k: one.fill(0, e, out[:1]))  # type: ignore[misc]
        clocks["ours x4"].run(lambda e=k: four.fill(0, e, out), clips=4)  # type: ignore[misc]
    return [clock.rate(name, way, note=note if way == "usual" else "") for way, clock in clocks.items()]


def bench_readers(path: str | Path, *, clips: int = 10) -> list[Rate]:
    """Every reader in this pipeline on one file: full-size frames, then the same crop; whether it is
    frame-exact (mean difference under 2 grey levels from a sequential decode in every clip)."""
    path, name = str(path), Path(path).name
    info = probe_video(path)
    places = _places(info, clips)
    truth = _sequential(info, sorted({int(i) for p in places for i in p}))
    clocks = {way: _Clock() for way in READERS}
    exact = dict.fromkeys(READERS, True)
    notes = dict.fromkeys(READERS, "")
    out = np.empty((FRAMES, *SIZE, 3), np.uint8)
    for k, indices in enumerate([places[0], *places]):
        if k == 1:
            clocks = {way: _Clock() for way in clocks}
        box = augment.multi_scale_box(info.height, info.width, SIZE, np.random.default_rng(k))
        for way, read in READERS.items():
            if notes[way]:
                continue

            def work(read: Read = read, indices: np.ndarray = indices, box: augment.Box = box) -> np.ndarray:
                frames = read(info, indices)
                augment.crop_resize(frames, box, out)
                return frames

            try:
                frames = clocks[way].run(work)
                worst = max(
                    np.abs(f.astype(np.int16) - truth[int(i)]).mean()
                    for f, i in zip(frames, indices, strict=True)
                )
                exact[way] = exact[way] and bool(worst < 2)
            except Exception as e:
                notes[way] = (str(e).strip().splitlines() or [type(e).__name__])[0][:60]
                clocks[way] = _Clock()
    return [clocks[way].rate(name, way, None if notes[way] else exact[way], notes[way]) for way in READERS]


def _sequential(info: VideoInfo, indices: Sequence[int]) -> dict[int, np.ndarray]:
    wanted = set(indices)
    with open_video(info.path, info=info, timeout_s=None) as video:
        return {
            i: video.to_array(frame).astype(np.int16) for i, frame in enumerate(video.decode()) if i in wanted
        }


def bench_optimized(source: str | Path, target: str | Path, *, clips: int = 10) -> list[Rate]:
    """Our loader on a file before and after `vmae data optimize`, alternating."""
    clocks = {"before": _Clock(), "after": _Clock()}
    datasets = {"before": _loader(str(source), 1, 256), "after": _loader(str(target), 1, 256)}
    out = np.empty((1, FRAMES, *SIZE, 3), np.uint8)
    for k in range(clips + 1):
        if k == 1:
            clocks = {way: _Clock() for way in clocks}
        for way, dataset in datasets.items():
            clocks[way].run(lambda d=dataset, e=k: d.fill(0, e, out))  # type: ignore[misc]
    return [clock.rate(Path(source).name, way) for way, clock in clocks.items()]


def memory_over_opens(path: str | Path, opens: int = 2000) -> tuple[float, float]:
    """`(resident MiB after a tenth of the opens, largest after that)`; each open reads a clip."""
    import psutil

    process = psutil.Process()
    info = probe_video(path)
    rng = np.random.default_rng(0)
    start = peak = 0.0
    for k in range(opens):
        read_clip(path, dense_indices(info.num_frames, FRAMES, RATE, rng), info=info)
        if k % max(1, opens // 100) == 0 or k == opens - 1:
            now = process.memory_info().rss / 2**20
            if k < opens // 10:
                start = max(start, now)
            else:
                peak = max(peak, now)
    return start, peak


def make_bench_video(path: str | Path, *, height: int, width: int, keyint: int, frames: int = 300) -> Path:
    """H.264 at x264's defaults but for the key frame distance: a textured background that pans under a
    moving foreground, with sensor noise."""
    import av
    import cv2

    path = Path(path)
    rng = np.random.default_rng(0)
    coarse = cv2.resize(rng.integers(0, 255, (18, 32, 3), np.uint8), (2 * width, 2 * height))
    fine = cv2.resize(rng.integers(0, 90, (height // 2, width // 2, 3), np.uint8), (2 * width, 2 * height))
    scene = cv2.addWeighted(coarse, 0.7, fine, 0.6, 0)
    noise = [rng.normal(0, 3, (height, width, 1)).astype(np.int16) for _ in range(8)]
    unfinished = path.with_suffix(".part.mp4")
    with av.open(str(unfinished), "w") as container:
        stream: Any = container.add_stream("libx264", rate=30, options={"g": str(keyint)})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(frames):
            image = scene[i % height : i % height + height, i % width : i % width + width].copy()
            center = (int(width * (0.5 + 0.4 * np.sin(i / 20))), int(height * (0.5 + 0.3 * np.cos(i / 13))))
            cv2.circle(image, center, height // 6, (220, 60, 40), -1)
            image = np.clip(image.astype(np.int16) + noise[i % 8], 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return unfinished.replace(path)
