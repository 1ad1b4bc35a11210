"""Windowed features of a list of videos: one `.npy` a video, as ActionFormer reads them, or one parquet.

A folder of features holds, beside `[num_windows, D]` of each video, `features.json` (what they were made
with, and what ActionFormer's configuration has to say about them) and `videos.jsonl` (a line a finished
video: file, frames, rate, length). A file appears whole or not at all; a run goes on where it was killed, and
one with other settings is refused.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vmae.core.errors import InputError, VideoError, VmaeError
from vmae.core.files import read_record, remove_leftovers, replacing, write_json
from vmae.core.measure.windowed import window_features
from vmae.core.model.encoder import VideoModel
from vmae.core.progress import Progress
from vmae.core.video.annotations import AnnotationFormat
from vmae.core.video.isolate import Outcome, run_isolated
from vmae.core.video.listing import list_videos, video_ids
from vmae.core.video.probe_store import cached_info
from vmae.core.video.windows import WindowConfig
from vmae.core.weights.checkpoint import load_model
from vmae.experiments.cluster.video_map import place, shared_checkpoint, weights_file
from vmae.experiments.run import default_device
from vmae.experiments.tracking import Store
from vmae.experiments.weights import config_of_model, load_model_at, model_source

SETTINGS = "features.json"
JOURNAL = "videos.jsonl"
DTYPES = {"fp32": np.float32, "fp16": np.float16}
_LONGEST_S = 24 * 3600.0


@dataclass(frozen=True, kw_only=True)
class WindowedWork:
    """What every video goes through; sent to workers, which read and write under the same paths."""

    checkpoint: str
    windows: WindowConfig
    out: str
    dtype: str = "fp32"
    batch: int = 8
    """Windows at a time."""
    precision: str = "auto"
    timeout_s: float = 30.0


@dataclass(frozen=True, kw_only=True)
class WindowedResult:
    """What `windowed_run` leaves: how many videos and windows, of what width; what failed, as (path, why)."""

    videos: int
    windows: int
    dim: int
    before: int
    """Videos that an earlier run had done."""
    failed: list[tuple[str, str]]


def windowed_run(
    store: Store,
    source: str,
    listed: str | Path,
    out: Path,
    *,
    windows: dict[str, int],
    fps: float | None = None,
    annotation_format: AnnotationFormat = "auto",
    data_root: str | Path | None = None,
    prefix: str = "",
    dtype: str = "fp32",
    batch: int = 8,
    precision: str = "auto",
    workers: int = 1,
    address: str | None = None,
    gpus: float = 0.0,
    progress: Callable[[int], Progress] | None = None,
) -> WindowedResult:
    """Write the windowed features of every video of `listed` (see `vmae features --window`).

    `windows` are `window`, `stride` and `views` of WindowConfig; the rest of it is the model's, and so is
    `fps` where it is None (0: frames of the video itself). `out` is a
    folder, or a `.parquet` file, which is made of the folder beside it. Raises InputError for an empty list,
    names that collide, or a folder of features made otherwise, VmaeError where no video can be read.
    """
    ids = video_ids(list_videos(listed, data_root, annotation_format), prefix)
    model, checkpoint, weights, rate = load_for_windows(store, source)
    c = model.config
    config = WindowConfig(
        frames=c.frames, size=(c.height, c.width), fps=rate if fps is None else fps, **windows
    )
    folder = out.with_suffix("") if out.suffix == ".parquet" else out
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    work = WindowedWork(
        checkpoint=checkpoint,
        windows=config,
        out=str(folder.resolve()),
        dtype=dtype,
        batch=batch,
        precision=precision,
    )
    _agree(folder, _settings(work, source, weights, c.embed_dim))
    done = _finished(folder, ids, work, c.embed_dim)
    waiting = [(name, os.path.abspath(path)) for name, path in ids.items() if name not in done]
    _end_line(folder / JOURNAL)
    failed: list[tuple[str, str]] = []
    first = [waiting[0][1]] if waiting else []
    with place(address, [*first, work.out, str(weights_file(checkpoint))], gpus) as where:
        shown = progress(len(ids)) if progress is not None else None
        with shown or contextlib.nullcontext():
            if shown is not None and done:
                shown.update(len(done))
                shown.note(f"{len(done)} of {len(ids)} videos were done before")
            for outcome in _outcomes(work, waiting, where.runner, workers):
                name, path = waiting[outcome.index]
                if outcome.failure:
                    failed.append((path, outcome.detail or outcome.failure))
                else:
                    with open(folder / JOURNAL, "a", encoding="utf-8") as journal:
                        journal.write(json.dumps(outcome.value) + "\n")
                    done[name] = outcome.value
                if shown is not None:
                    shown.update(1)
    if not done:
        raise VmaeError(f"expected a readable video, got none of {len(ids)}: {failed[0][0]}: {failed[0][1]}")
    rows = [done[name] for name in ids if name in done]
    if out.suffix == ".parquet":
        write_parquet(folder, rows, out)
    return WindowedResult(
        videos=len(rows),
        windows=sum(r["windows"] for r in rows),
        dim=c.embed_dim,
        before=len(ids) - len(waiting),
        failed=failed,
    )


def load_for_windows(store: Store, source: str) -> tuple[Any, str, str, float]:
    """The model at `source`, the folder in which other processes find it, the digest of its weights, and
    the rate at which its clips were cut (`data.fps`).

    Raises InputError for a model that has no feature of a whole clip (a detector).
    """
    model, meta, _ = load_model_at(store, source)
    if not model.describes_clips:
        raise InputError(f"expected a pre-trained model or a classifier, got {model.title} at {source}")
    checkpoint = shared_checkpoint(model_source(store, source), model, meta, store.layout)
    with open(weights_file(checkpoint), "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return model, checkpoint, digest, config_of_model(model, meta).data.fps


def do_video(work: WindowedWork, item: tuple[str, str]) -> dict[str, Any]:
    """The features of one video `(name, path)`, in a file; returns its line of the journal."""
    name, path = item
    info = cached_info(path, timeout_s=work.timeout_s)
    model = _model(work.checkpoint, weights_file(work.checkpoint).stat().st_mtime_ns)
    found = window_features(
        model,
        path,
        work.windows,
        batch=work.batch,
        device=default_device(),
        precision=work.precision,
        info=info,
        timeout_s=work.timeout_s,
    )
    kept = found.astype(DTYPES[work.dtype])
    if not np.isfinite(kept).all():
        raise InputError(f"{path}: expected features within fp16's range, got {np.abs(found).max():g}")
    write_array(Path(work.out) / f"{name}.npy", kept)
    frames, rate = work.windows.timeline(info.num_frames, info.fps)
    return {
        "name": name,
        "path": path,
        "frames": frames,
        "fps": round(rate, 6),
        "duration_s": round(info.duration_s, 6),
        "windows": len(kept),
    }


def _end_line(file: Path) -> None:
    """End the line that a killed process was writing, so that the next one is whole."""
    if file.is_file() and not (b"\n" + file.read_bytes()).endswith(b"\n"):
        with open(file, "a", encoding="utf-8") as out:
            out.write("\n")


def write_array(file: Path, array: np.ndarray) -> None:
    """Write a `.npy` that is whole or absent."""
    with replacing(file, durable=True) as temporary, open(temporary, "wb") as f:
        np.save(f, array)


def read_features(file: Path, dim: int | None = None) -> np.ndarray:
    """`[num_windows, D]` of one video, float32. Raises InputError where the file is cut short or other."""
    try:
        found = np.load(file, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{file}: expected features, found no such file") from None
    except (OSError, ValueError, EOFError) as e:
        raise InputError(f"{file}: expected features, not a whole .npy file ({e})") from None
    if found.ndim != 2 or found.dtype.kind != "f" or (dim is not None and found.shape[1] != dim):
        wanted = f"[num_windows, {dim or 'D'}]"
        raise InputError(f"{file}: expected features {wanted}, got {found.dtype} {list(found.shape)}")
    return found.astype(np.float32)


def read_folder(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The settings and the journal (the last line of each video) of a folder of windowed features."""
    settings = read_record(folder / SETTINGS)
    if settings is None:
        raise InputError(f"{folder}: expected windowed features ({SETTINGS}; `vmae features --window`)")
    return settings, list(_journal(folder).values())


def write_parquet(folder: Path, rows: Sequence[dict[str, Any]], out: Path) -> None:
    """One table of all windows: `video`, `start_frame`, `start_s`, `end_s`, `feature`; a group a video."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    settings, _ = read_folder(folder)
    kind = pa.float16() if settings["dtype"] == "fp16" else pa.float32()
    schema = pa.schema(
        [
            ("video", pa.string()),
            ("start_frame", pa.int64()),
            ("start_s", pa.float64()),
            ("end_s", pa.float64()),
            ("feature", pa.list_(kind, settings["dim"])),
        ]
    )
    with replacing(out) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for row in rows:
            x = np.load(folder / f"{row['name']}.npy")
            start = np.arange(len(x)) * settings["stride"]
            fps = row["fps"] or np.nan  # a folder of images has no rate
            columns = [
                pa.array([row["name"]] * len(x)),
                pa.array(start),
                pa.array(start / fps),
                pa.array(np.minimum(start + settings["window"], row["frames"]) / fps),
                pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1), kind), settings["dim"]),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def _outcomes(
    work: WindowedWork, items: list[tuple[str, str]], runner: Any, workers: int
) -> Iterator[Outcome]:
    function = functools.partial(do_video, work)
    if runner is not None:
        yield from runner(function, items, workers=0, limit_s=_LONGEST_S)
    elif workers > 1:
        yield from run_isolated(function, items, workers=workers, limit_s=_LONGEST_S)
    else:
        for index, item in enumerate(items):
            try:
                yield Outcome(index=index, value=function(item))
            except VideoError as e:
                yield Outcome(index=index, failure="error", detail=f"{e.reason}: {e.detail}")


def _settings(work: WindowedWork, source: str, weights: str, dim: int) -> dict[str, Any]:
    """What decides the numbers, and what ActionFormer's `dataset` section says of them."""
    return {
        "format": "vmae-windows-1",
        "model": source,
        "weights": weights,
        **asdict(work.windows),
        "size": list(work.windows.size),
        "dtype": work.dtype,
        "dim": dim,
        "actionformer": {
            "feat_stride": work.windows.stride,
            "num_frames": work.windows.window,
            "input_dim": dim,
            "file_ext": ".npy",
            "downsample_rate": 1,
        },
    }


def _agree(folder: Path, settings: dict[str, Any]) -> None:
    """Write the settings, or raise InputError where the folder's features were made with others."""
    before = read_record(folder / SETTINGS)
    if before is None and (folder / SETTINGS).exists():
        raise InputError(f"{folder}: expected the settings of its features in {SETTINGS}, got a damaged file")
    if before is None:
        write_json(folder / SETTINGS, settings)
        return
    before = {"fps": 0.0, **before}  # folders made before there was another
    other = [k for k in settings if k != "model" and settings[k] != before.get(k)]
    if other:
        raise InputError(
            f"{folder}: expected a new folder, or the settings of its features; they have other "
            + ", ".join(f"{k} ({before.get(k)}, now {settings[k]})" for k in other if k != "actionformer")
        )


def _finished(folder: Path, ids: dict[str, str], work: WindowedWork, dim: int) -> dict[str, dict[str, Any]]:
    """The journal's videos of this list whose files are whole; any other is done again."""
    done = {}
    for name, row in _journal(folder).items():
        file = folder / f"{name}.npy"
        if name not in ids or not file.is_file():
            continue
        try:
            found = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            continue
        if found.shape == (row["windows"], dim) and found.dtype == DTYPES[work.dtype]:
            done[name] = row
    return done


def _journal(folder: Path) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    try:
        lines = (folder / JOURNAL).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return rows
    for line in lines:
        try:
            row = json.loads(line)
            rows[row["name"]] = row
        except (ValueError, TypeError, KeyError):
            continue  # the line that a killed run was writing
    return rows


@functools.lru_cache(maxsize=1)
def _model(checkpoint: str, modified: int) -> VideoModel:
    """Loaded once in each process."""
    return load_model(checkpoint)[0]
