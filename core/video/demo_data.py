"""The built-in data set on disk: short H.264 clips of `demo_scene` and their lists, written or completed."""

from __future__ import annotations

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from vmae.core.errors import InputError
from vmae.core.files import TEMPORARY, replacing, write_text
from vmae.core.progress import progress
from vmae.core.video.container import file_url
from vmae.core.video.demo_scene import CLASSES, FORMAT, SPLITS, clip_frames
from vmae.core.video.isolate import shielded_from_ctrl_c

VAL_SHARE = 0.2
MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class DemoDataConfig:
    """What the data set holds.

    `clips_per_class` counts train and val together (a fifth, at least one clip, is val); `size` is the height
    and width in pixels (even, at least 32); a clip has `round(seconds * fps)` frames.
    """

    clips_per_class: int = 150
    size: int = 112
    seconds: float = 2.0
    fps: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.clips_per_class < 2:
            raise InputError(
                f"clips_per_class: expected at least 2 (one train, one val), got {self.clips_per_class}"
            )
        if self.size < 32 or self.size % 2:
            raise InputError(f"size: expected an even number of pixels from 32, got {self.size}")
        if self.fps < 1 or self.frames < 2:
            raise InputError(
                f"expected at least 2 frames a clip, got {self.seconds} s at {self.fps} frames a second"
            )
        if self.seed < 0:
            raise InputError(f"seed: expected 0 or more, got {self.seed}")

    @property
    def frames(self) -> int:
        return round(self.seconds * self.fps)

    def clips(self, split: str) -> int:
        """How many clips a class has in `split`."""
        val = max(1, round(self.clips_per_class * VAL_SHARE))
        return val if split == "val" else self.clips_per_class - val


@dataclass(frozen=True, kw_only=True)
class DemoDataSummary:
    """What `make_demo_data` found and did. `made` counts the clips rendered by this call."""

    out_dir: str
    train_csv: str
    val_csv: str
    classes: tuple[str, ...]
    train: int
    val: int
    made: int
    bytes: int


def make_demo_data(
    out_dir: str | os.PathLike[str],
    *,
    clips_per_class: int = DemoDataConfig.clips_per_class,
    size: int = DemoDataConfig.size,
    seconds: float = DemoDataConfig.seconds,
    fps: int = DemoDataConfig.fps,
    seed: int = DemoDataConfig.seed,
    workers: int | None = None,
    overwrite: bool = False,
    progress: str = "auto",
) -> DemoDataSummary:
    """Write the data set under `out_dir`, or complete it: only clips that are missing or cut short are made.

    Layout: `train/*.mp4`, `val/*.mp4` (H.264, yuv420p, a key frame every 8 frames), `train.csv` and `val.csv`
    (`path label`, paths relative to the csv), `classes.txt` (one name a line, in the order of the labels) and
    `manifest.json` (the configuration and every file's size in bytes). Each file appears whole or not at all;
    the csv files and the sizes are written last. The same seed gives the same pixels before encoding; libx264
    chose other bits for them in about one of 300 tiny clips, so files are not compared byte by byte.

    `workers`: processes, all usable cores when None. `progress` is a kind of `vmae.core.progress.progress`
    (auto, bar, lines, silent); nothing is shown when nothing is missing.

    Raises InputError when a value is out of range, or when `out_dir` holds another data set (or anything
    else) and `overwrite` is not set; with it, clips of another configuration are replaced.
    """
    config = DemoDataConfig(clips_per_class=clips_per_class, size=size, seconds=seconds, fps=fps, seed=seed)
    if workers is not None and workers < 1:
        raise InputError(f"workers: expected at least 1, got {workers}")
    out = Path(out_dir)
    sizes = _known_sizes(out, config, overwrite)
    jobs = [
        (f"{split}/{name}_{index:04d}.mp4", split, label, index)
        for split in SPLITS
        for label, name in enumerate(CLASSES)
        for index in range(config.clips(split))
    ]
    present = _file_sizes(out)
    missing = [job for job in jobs if present.get(job[0], -1) != sizes.get(job[0], present.get(job[0]))]
    lists = {
        "train.csv": _csv(jobs, "train"),
        "val.csv": _csv(jobs, "val"),
        "classes.txt": "".join(f"{name}\n" for name in CLASSES),
    }
    complete = len(sizes) == len(jobs) and all(
        (out / name).is_file() and (out / name).read_text() == text for name, text in lists.items()
    )
    if missing or not complete:
        for split in SPLITS:
            (out / split).mkdir(parents=True, exist_ok=True)
        for stray in out.glob(f"**/.*{TEMPORARY}"):  # of a run that was killed
            stray.unlink(missing_ok=True)
        if not (out / MANIFEST).is_file() or overwrite:
            write_text(out / MANIFEST, _manifest(config, {}))
        if missing:
            _make_all(out, config, missing, workers or _usable_cores(), progress)
        present = _file_sizes(out)
        sizes = {path: present[path] for path, *_ in jobs}
        for name, text in lists.items():
            write_text(out / name, text)
        write_text(out / MANIFEST, _manifest(config, sizes))
    return DemoDataSummary(
        out_dir=str(out),
        train_csv=str(out / "train.csv"),
        val_csv=str(out / "val.csv"),
        classes=CLASSES,
        train=config.clips("train") * len(CLASSES),
        val=config.clips("val") * len(CLASSES),
        made=len(missing),
        bytes=sum(sizes.values()),
    )


def _manifest(config: DemoDataConfig, sizes: dict[str, int]) -> str:
    return json.dumps({"format": FORMAT, "config": asdict(config), "bytes": sizes}, indent=1)


def _known_sizes(out: Path, config: DemoDataConfig, overwrite: bool) -> dict[str, int]:
    """The sizes a finished earlier run noted, empty for a new or unfinished folder."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: expected a folder, found a file")
    path = out / MANIFEST
    if not path.is_file():
        if out.is_dir() and any(out.iterdir()) and not overwrite:
            raise InputError(
                f"{out}: expected an empty folder or one made by `vmae data demo`, found other files"
            )
        return {}
    try:
        found = json.loads(path.read_text())
        sizes = {str(k): int(v) for k, v in found["bytes"].items()}
        same = found["format"] == FORMAT and found["config"] == asdict(config)
    except (ValueError, KeyError, TypeError, AttributeError):
        found, sizes, same = None, {}, False
    if same:
        return sizes
    if not overwrite:
        was = f"format {found['format']}, {found['config']}" if found else "an unreadable manifest"
        raise InputError(
            f"{out}: expected a data set of format {FORMAT}, {asdict(config)}, found {was} "
            "(choose another folder, or --overwrite)"
        )
    for split in SPLITS:
        for clip in (out / split).glob("*.mp4"):
            clip.unlink()
    return {}


def _file_sizes(out: Path) -> dict[str, int]:
    return {
        f"{split}/{entry.name}": entry.stat().st_size
        for split in SPLITS
        if (out / split).is_dir()
        for entry in os.scandir(out / split)
    }


def _csv(jobs: list[tuple[str, str, int, int]], split: str) -> str:
    return "".join(f"{path} {label}\n" for path, of, label, _ in jobs if of == split)


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _make_all(
    out: Path,
    config: DemoDataConfig,
    jobs: list[tuple[str, str, int, int]],
    workers: int,
    show: str,
) -> None:
    # Spawned, not forked: the caller may hold threads (torch, Ray). Eight clips a task: cheap to hand over,
    # and the bar still moves several times a second.
    tasks = [jobs[i : i + 8] for i in range(0, len(jobs), 8)]
    workers = min(workers, len(tasks))
    with progress("demo data", len(jobs), unit="clips", kind=show) as shown:
        if workers == 1:
            for job in jobs:
                shown.update(_make_clips(out, config, [job]))
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
            with shielded_from_ctrl_c():  # a worker finishes the clip in hand
                futures = [pool.submit(_make_clips, out, config, task) for task in tasks]
            try:
                for future in as_completed(futures):
                    shown.update(future.result())
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise


def _start_worker() -> None:
    import cv2

    cv2.setNumThreads(1)


def _make_clips(out: Path, config: DemoDataConfig, jobs: list[tuple[str, str, int, int]]) -> int:
    for path, split, label, index in jobs:
        clip = clip_frames(config.seed, split, label, index, size=config.size, frames=config.frames)
        with replacing(out / path) as part:
            encode_clip(part, clip, config.fps)
    return len(jobs)


def encode_clip(path: Path, clip: np.ndarray, fps: int) -> None:
    """Write uint8 RGB `[T, H, W, 3]` as H.264 in mp4."""
    import av
    import cv2

    options = {"crf": "18", "preset": "veryfast", "g": "8", "bf": "0", "threads": "1"}
    with av.open(file_url(str(path)), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for pixels in clip:
            # BT.601 in limited range, which players assume of small untagged video.
            planes = cv2.cvtColor(pixels, cv2.COLOR_RGB2YUV_I420)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        container.mux(stream.encode())
