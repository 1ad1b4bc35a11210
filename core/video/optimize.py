"""Re-encode a set of videos so that reading a clip decodes few frames: small, short groups, no reordering.

The cost of a random clip is the pixels that must be decoded before and around the wanted frames. A short side
of 256 and a key frame every 4 frames take almost all of that away, for a moderate size on disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fractions
import glob
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vmae.core.errors import InputError, VideoError
from vmae.core.video.container import file_url
from vmae.core.video.isolate import Runner, run_isolated
from vmae.core.video.probe import VideoInfo, probe_video
from vmae.core.video.reader import open_video, read_clip
from vmae.core.video.samples import Sample
from vmae.core.video.sampling import dense_indices

MANIFEST = "optimize.jsonl"


@dataclass(frozen=True, kw_only=True)
class OptimizeConfig:
    """How videos are re-encoded."""

    short_side: int = 256
    """Larger videos are scaled down to this; smaller ones keep their size."""
    gop: int = 4
    """Distance of key frames in frames."""
    fps: float | None = None
    """Frames per second of the result; none: every frame of the source at its own time."""
    crf: int = 23
    """x264's quality (lower is better and larger)."""
    preset: str = "veryfast"
    """x264's preset."""
    max_difference: float = 6.0
    """Mean absolute difference in grey levels over which a frame fails the comparison with its source."""

    def __post_init__(self) -> None:
        if self.short_side < 16 or self.short_side % 2:
            raise InputError(f"short_side: expected an even number of at least 16, got {self.short_side}")
        if self.gop < 1:
            raise InputError(f"gop: expected at least 1, got {self.gop}")
        if self.fps is not None and self.fps <= 0:
            raise InputError(f"fps: expected more than 0, got {self.fps}")
        if not 0 <= self.crf <= 51:
            raise InputError(f"crf: expected 0 to 51, got {self.crf}")


@dataclass(frozen=True, kw_only=True)
class Optimized:
    """One video: `action` is `encoded`, `kept` (already good: copied as it is) or `failed`; `earlier`: a run
    before this one did it."""

    source: str
    target: str
    action: str
    source_size: int = 0
    source_mtime_ns: int = 0
    target_size: int = 0
    frames: int = 0
    worst_difference: float = 0.0
    error: str = ""
    earlier: bool = False


def is_good(info: VideoInfo, config: OptimizeConfig) -> bool:
    """Whether a file is read as fast as a re-encoded one would be (H.264, small, short groups, right rate)
    and stored as it is shown: not turned, not mirrored, of square pixels."""
    if info.backend != "seek" or info.codec != "h264":
        return False
    if info.rotation or info.mirrored or info.pixel_aspect != 1:
        return False
    if min(info.height, info.width) > config.short_side:
        return False
    if config.fps is not None and abs(info.fps - config.fps) > 1e-3 * config.fps:
        return False
    keys = np.searchsorted(info.pts, info.key_pts)
    longest = int(np.diff(np.append(keys, info.num_frames)).max())
    return int(keys[0]) == 0 and longest <= config.gop


def optimize_file(
    paths: tuple[str, str], *, config: OptimizeConfig, timeout_s: float | None = None
) -> Optimized:
    """Re-encode or copy one `(source, target)` and compare every frame of the result with its source.

    The target appears under its name only when it is whole and has passed.

    Raises:
        VideoError: the source is bad, or reason `verification` where a frame differs too much.
    """
    source, target = paths
    info = probe_video(source, timeout_s=timeout_s)
    if info.backend not in ("seek", "sequential"):
        raise VideoError(source, "not_a_file", f"expected a video file, got {info.codec}")
    done: dict[str, Any] = {
        "source": source,
        "target": target,
        "source_size": info.size_bytes,
        "source_mtime_ns": info.mtime_ns,
    }
    temporary = f"{target}.{os.getpid()}.part.mp4"
    os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
    try:
        if is_good(info, config) and info.container.startswith("mov"):
            shutil.copyfile(source, temporary)
            frames, worst, action = info.num_frames, 0.0, "kept"
        else:
            frames = _encode(info, temporary, config, timeout_s)
            worst, action = _compare(info, temporary, config, timeout_s, frames), "encoded"
        os.replace(temporary, target)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
    return Optimized(
        action=action,
        target_size=os.path.getsize(target),
        frames=frames,
        worst_difference=round(worst, 3),
        **done,
    )


def _shape(info: VideoInfo, config: OptimizeConfig) -> tuple[int, int]:
    """Even `(height, width)` of the result."""
    height, width = info.resized(min(config.short_side, info.height, info.width))
    return max(2, height - height % 2), max(2, width - width % 2)


def _source_frames(
    info: VideoInfo, config: OptimizeConfig, timeout_s: float | None
) -> Iterator[tuple[int, fractions.Fraction, np.ndarray]]:
    """`(number in the result, time stamp, uint8 [h, w, 3])` of every frame that the result must show."""
    height, width = _shape(info, config)
    number, first = 0, None
    step = None if config.fps is None else 1 / fractions.Fraction(config.fps).limit_denominator(100_000)
    held: tuple[fractions.Fraction, np.ndarray] | None = None
    with open_video(info.path, info=info, timeout_s=timeout_s) as video:
        for count, frame in enumerate(video.decode()):
            if frame.pts is not None and frame.time_base:
                stamp = frame.pts * fractions.Fraction(frame.time_base)
            else:
                stamp = fractions.Fraction(count) / fractions.Fraction(info.fps or 25).limit_denominator(
                    100_000
                )
            first = stamp if first is None else first
            image = video.to_array(frame, (height, width))
            if step is None:
                yield number, stamp - first, image
                number += 1
                continue
            # A fixed rate: at each tick the frame that is on the screen.
            while held is not None and number * step < stamp - first:
                yield number, number * step, held[1]
                number += 1
            held = (stamp - first, image)
        if step is not None and held is not None:
            yield number, number * step, held[1]


def _encode(info: VideoInfo, target: str, config: OptimizeConfig, timeout_s: float | None) -> int:
    import av

    height, width = _shape(info, config)
    rate = fractions.Fraction(config.fps or info.fps or 25).limit_denominator(100_000)
    clock = 1 / rate if config.fps is not None else fractions.Fraction(1, 90_000)
    options = {
        "crf": str(config.crf),
        "preset": config.preset,
        # No reordering, one reference, no loop filter: few and cheap frames between any two key frames.
        "x264-params": f"keyint={config.gop}:min-keyint={config.gop}:scenecut=0:bframes=0:ref=1",
        "tune": "fastdecode",
    }
    count, last = 0, -1
    with av.open(file_url(target), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream: Any = container.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = clock
        for _, stamp, image in _source_frames(info, config, timeout_s):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            # Two frames on one stamp (broken clocks) would be one frame in mp4.
            last = max(last + 1, round(stamp / clock))
            frame.pts, frame.time_base = last, clock
            container.mux(stream.encode(frame))
            count += 1
        container.mux(stream.encode())
    return count


def _compare(
    info: VideoInfo, target: str, config: OptimizeConfig, timeout_s: float | None, frames: int
) -> float:
    """The largest mean absolute difference of a frame, in grey levels; raises where one fails."""
    result = probe_video(target, timeout_s=timeout_s)
    if result.num_frames != frames:
        raise VideoError(
            info.path, "verification", f"encoded {frames} frames, the result shows {result.num_frames}"
        )
    worst = 0.0
    with open_video(target, info=result, timeout_s=timeout_s) as video:
        pairs = zip(_source_frames(info, config, timeout_s), video.decode(), strict=True)
        for (number, _, expected), frame in pairs:
            got = video.to_array(frame)
            # Brightness only: the halved colour samples differ more than the eye sees.
            difference = np.abs(_luma(got) - _luma(expected)).mean()
            worst = max(worst, float(difference))
            if difference > config.max_difference:
                raise VideoError(
                    info.path,
                    "verification",
                    f"frame {number} differs by {difference:.1f} grey levels (> {config.max_difference:g})",
                )
    return worst


def _luma(image: np.ndarray) -> np.ndarray:
    import cv2

    return cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY).astype(np.int16)


def target_names(paths: Sequence[str], out: str | Path) -> dict[str, str]:
    """Source -> target under `out`: the folders below the common one are kept, names never collide."""
    parents = [os.path.dirname(os.path.abspath(p)) for p in paths]
    common = os.path.commonpath(parents)
    stems: dict[str, int] = {}
    relative = {p: os.path.relpath(os.path.abspath(p), common) for p in paths}
    for r in relative.values():
        stem = os.path.splitext(r)[0]
        stems[stem] = stems.get(stem, 0) + 1
    # `a.avi` beside `a.mkv`: both keep their own suffix.
    return {
        p: str(Path(out) / ((os.path.splitext(r)[0] if stems[os.path.splitext(r)[0]] == 1 else r) + ".mp4"))
        for p, r in relative.items()
    }


def optimize_samples(
    samples: Sequence[Sample],
    out: str | Path,
    config: OptimizeConfig,
    *,
    workers: int = 1,
    timeout_s: float = 600.0,
    progress: Callable[[int, int], None] | None = None,
    runner: Runner = run_isolated,
) -> tuple[list[Sample], list[Optimized]]:
    """Re-encode every video of a list into `out`, in parallel, each in a process that can be killed.

    Resumable: what an earlier call with the same settings finished (listed in `optimize.jsonl`, source
    unchanged, target there at its size) is not done again. `runner` is where: processes of this machine, or
    another function of the same form (a cluster's).

    Returns:
        The list with the new paths (bad videos left out), and what became of each video.
    """
    stretched = next((s for s in samples if s.num_frames is not None or s.start), None)
    if stretched is not None and config.fps is not None:
        raise InputError(f"fps: a list of stretches counts in frames of the source: {stretched.path}")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    paths = sorted({s.path for s in samples})
    targets = target_names(paths, out)
    manifest = out / MANIFEST
    settings = asdict(config)
    finished = _read_manifest(manifest, settings)
    results: dict[str, Optimized] = {}
    todo = []
    for path in paths:
        known = finished.get((path, targets[path]))
        if known is not None and _unchanged(known):
            results[path] = dataclasses.replace(known, earlier=True)
        else:
            todo.append((path, targets[path]))
    if progress is not None and results:
        progress(len(results), len(paths))
    with open(manifest, "a", encoding="utf-8") as log, _unfinished_removed([t for _, t in todo]):
        work = partial(optimize_file, config=config, timeout_s=timeout_s)
        for outcome in runner(work, todo, workers=workers, limit_s=2 * timeout_s):
            source, target = todo[outcome.index]
            result = outcome.value
            if outcome.failure:
                what = (
                    outcome.detail if outcome.failure == "error" else f"{outcome.failure}: {outcome.detail}"
                )
                result = Optimized(source=source, target=target, action="failed", error=what)
            else:
                log.write(json.dumps({"settings": settings, "result": asdict(result)}) + "\n")
                log.flush()
            results[source] = result
            if progress is not None:
                progress(len(results), len(paths))
    listed = [
        dataclasses.replace(s, path=results[s.path].target)
        for s in samples
        if results[s.path].action != "failed"
    ]
    return listed, [results[p] for p in paths]


@contextlib.contextmanager
def _unfinished_removed(targets: Sequence[str]) -> Iterator[None]:
    """Afterwards, interrupted or not, no file of a killed process is left beside the targets."""
    try:
        yield
    finally:
        for target in targets:
            for leftover in glob.glob(f"{glob.escape(target)}.*.part.mp4"):
                os.unlink(leftover)


def _read_manifest(path: Path, settings: dict[str, Any]) -> dict[tuple[str, str], Optimized]:
    found: dict[tuple[str, str], Optimized] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
                if entry["settings"] == settings:
                    result = Optimized(**entry["result"])
                    found[result.source, result.target] = result
            except (ValueError, KeyError, TypeError):
                continue  # the last line of an interrupted run
    return found


def _unchanged(result: Optimized) -> bool:
    try:
        source, target = os.stat(result.source), os.stat(result.target)
    except OSError:
        return False
    same = (source.st_size, source.st_mtime_ns) == (result.source_size, result.source_mtime_ns)
    return same and target.st_size == result.target_size


def measure_speed_up(
    results: Sequence[Optimized], short_side: int, *, files: int = 10
) -> tuple[float, float]:
    """Clips per second before and after, on one thread: random clips of 16 frames at stride 4, both read to
    `short_side`, the same clips from both files, `files` files alternating."""
    usable = [r for r in results if r.action == "encoded"]
    rng = np.random.default_rng(0)
    chosen = [usable[i] for i in rng.permutation(len(usable))[:files]]
    if not chosen:
        return 0.0, 0.0
    spent = [0.0, 0.0]
    for r in chosen:
        infos = [probe_video(r.source), probe_video(r.target)]
        for _ in range(3):
            place = rng.random()
            for k, info in enumerate(infos):
                span = max(0, info.num_frames - 64)
                indices = dense_indices(info.num_frames - int(place * span), 16, 4) + int(place * span)
                start = time.perf_counter()
                read_clip(info.path, indices, min(short_side, info.height, info.width), info=info)
                spent[k] += time.perf_counter() - start
    clips = 3 * len(chosen)
    return clips / spent[0], clips / spent[1]
