"""A model over every video of a list, in parts: on this machine or as Ray tasks on a cluster's nodes.

Each finished part is kept in a folder named after the work (weights, list, way of cutting clips), so that the
same command goes on where it was killed. A part that crashes its process, or raises, is done again video by
video: one video's failure is its own.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from vmae.core.config import to_dict
from vmae.core.errors import InputError, VideoError, VmaeError
from vmae.core.files import replacing
from vmae.core.measure.evaluate import evaluate
from vmae.core.measure.probe import Pooling, extract_features
from vmae.core.model.classifier import VideoClassifier
from vmae.core.model.encoder import PretrainedModel, VideoModel
from vmae.core.progress import Progress
from vmae.core.video.cache import DecodedCache
from vmae.core.video.clips import ClipDataset
from vmae.core.video.config import DataConfig
from vmae.core.video.identity import fingerprints
from vmae.core.video.isolate import Outcome, Runner
from vmae.core.video.samples import Sample
from vmae.core.weights.checkpoint import CONFIG_NAME, WEIGHTS_NAME, load_model, save_model
from vmae.core.weights.models import expect_model
from vmae.experiments.cluster import files_to_see
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.data import read_list
from vmae.experiments.layout import RunsDir
from vmae.experiments.run import default_device
from vmae.experiments.tracking import Store
from vmae.experiments.weights import load_model_at, model_source

HERE = 256
"""Videos of a part on this machine; on a cluster parts are small, so that the last ones end together."""
MOST = 16
_MODEL_START_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every video goes through; sent to the nodes, which read `checkpoint` under the same path."""

    kind: Literal["classify", "features"]
    checkpoint: str
    data: DataConfig
    seed: int = 0
    batch_size: int = 8
    """Videos at a time."""
    precision: str = "auto"
    pooling: Pooling = "mean"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One video: class probabilities or features (float32, None where it could not be read), views, why."""

    index: int
    values: np.ndarray | None
    views: int = 0
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where parts are run: `runner` is None for this process, else a function like `ray_map`."""

    runner: Runner | None = None
    slots: int = 1


@contextlib.contextmanager
def place(address: str | None, paths: Sequence[str] = (), gpus: float = 0.0) -> Iterator[Place]:
    """This process, or the cluster at `address` when every node of it reads `paths` (else ClusterUnfit)."""
    if address is None:
        yield Place()
        return
    import ray

    from vmae.experiments.cluster import connected, require_fit
    from vmae.experiments.cluster.ray_map import ray_map

    with connected(address):
        require_fit(paths=paths, gpus_wanted=gpus)
        slots = int(ray.cluster_resources().get("CPU", 1))
        yield Place(runner=functools.partial(ray_map, gpus=gpus), slots=slots)


def map_videos(
    work: Work,
    samples: Sequence[Sample],
    folder: Path,
    where: Place,
    *,
    cache: DecodedCache | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """A row for every video, in the list's order.

    Args:
        folder: parts are kept in `folder/<digest of the work>` until the whole is done (see `forget`).
        cache: decoded frames to read (in this process only).
        progress: counts videos.

    Raises:
        VideoError: an unreadable video, unless `work.data.bad_eval` is `count`; what is done stays.
        VmaeError: no video could be done at all.
    """
    # A node's tasks do not start in this process's folder.
    samples = [replace(s, path=os.path.abspath(s.path)) for s in samples]
    parts = folder / digest(work, samples)
    found = {row.index: row for path in sorted(parts.glob("*.npz")) for row in _read_part(path)}
    if found and progress is not None:
        progress.update(len(found))
        progress.note(f"{len(found)} of {len(samples)} videos were done before")
    waiting = [i for i in range(len(samples)) if i not in found]
    size = HERE if where.runner is None else max(1, min(MOST, len(waiting) // (4 * where.slots) or 1))
    chunks = [waiting[k : k + size] for k in range(0, len(waiting), size)]
    again: list[int] = []

    def keep(rows: list[Row]) -> None:
        _write_part(parts, rows)
        found.update({row.index: row for row in rows})
        for row in rows:
            if row.values is None and work.data.bad_eval == "error":
                raise VideoError(samples[row.index].path, row.reason, row.detail)

    if where.runner is None:
        for chunk in chunks:
            keep(do_part(work, [(i, samples[i]) for i in chunk], cache, progress))
    else:
        limit = _MODEL_START_S + work.data.timeout_s
        for attempt in (chunks, again):
            # The second time around: the videos of parts that failed, each alone.
            items = [[(i, samples[i]) for i in ([c] if isinstance(c, int) else c)] for c in attempt]
            for outcome in where.runner(
                functools.partial(do_part, work),
                items,
                workers=0,
                limit_s=limit + size * work.data.timeout_s,
            ):
                members = [i for i, _ in items[outcome.index]]
                if outcome.failure and attempt is chunks:
                    again += members
                    continue
                keep([_lost(i, outcome) for i in members] if outcome.failure else outcome.value)
                if progress is not None:
                    progress.update(len(members))
    rows = [found[i] for i in range(len(samples))]
    if rows and all(row.values is None for row in rows):
        raise VmaeError(
            f"expected a readable video, got none of {len(rows)}: {samples[0].path}: {rows[0].reason}: "
            f"{rows[0].detail}"
        )
    return rows


def forget(work: Work, samples: Sequence[Sample], folder: Path) -> None:
    """Delete the parts of a finished work."""
    samples = [replace(s, path=os.path.abspath(s.path)) for s in samples]
    shutil.rmtree(folder / digest(work, samples), ignore_errors=True)


def digest(work: Work, samples: Sequence[Sample]) -> str:
    """A name for the work: it changes with the weights, the list, its files and the way clips are cut."""
    with open(weights_file(work.checkpoint), "rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    # What decides where and when files are read does not change what is in them.
    data = to_dict(replace(work.data, workers=0, cache=False, bad_eval="error"))
    files = fingerprints(s.path for s in samples)
    facts = [to_dict(work) | {"data": data, "checkpoint": weights}, [to_dict(s) for s in samples], files]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def do_part(
    work: Work,
    part: Sequence[tuple[int, Sample]],
    cache: DecodedCache | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """The rows of a part of the list: in this process, or in a Ray task (then without cache and progress)."""
    model = _model(work.checkpoint, weights_file(work.checkpoint).stat().st_mtime_ns)
    index = [i for i, _ in part]
    data = replace(work.data, bad_eval="count", cache=False)
    if cache is None and progress is None:
        data = replace(data, workers=0)
    mode: Literal["test", "val"] = "test" if work.kind == "classify" else "val"
    dataset = ClipDataset([s for _, s in part], data, mode, work.seed, cache=cache)
    how: dict[str, Any] = {
        "batch_size": work.batch_size,
        "device": default_device(),
        "precision": work.precision,
        "progress": progress,
    }
    if work.kind == "classify":
        model = expect_model(model, VideoClassifier, work.checkpoint)
        found = evaluate(model, dataset, num_classes=model.num_classes, **how)
        return [
            Row(index=index[p.index], values=p.probs, views=p.views, reason=p.error, detail=p.detail)
            for p in found.predictions
        ]
    failed: list[dict[str, Any]] = []
    rows = []
    try:
        x = extract_features(model, dataset, pooling=work.pooling, failed=failed, **how).x
    except InputError:
        if len(failed) < len(part):
            raise
        x = torch.empty(0)
    if progress is not None and failed:
        progress.update(len(failed))
    bad = {b["index"]: b for b in failed}
    good = [k for k in range(len(part)) if k not in bad]
    for k, values in zip(good, x.float().numpy(), strict=True):
        rows.append(Row(index=index[k], values=values, views=1))
    rows += [Row(index=index[k], values=None, reason=b["reason"], detail=b["detail"]) for k, b in bad.items()]
    return rows


@functools.lru_cache(maxsize=1)
def _model(checkpoint: str, modified: int) -> VideoModel:
    """Loaded once in each process."""
    model, _ = load_model(checkpoint)
    return model.to(default_device())


def weights_file(checkpoint: str) -> Path:
    """The file of a checkpoint that holds its weights."""
    path = Path(checkpoint)
    return path / WEIGHTS_NAME if path.is_dir() else path


def shared_checkpoint(source: str, model: VideoModel, meta: dict[str, Any], runs: RunsDir) -> str:
    """Where the nodes find `model`: `source` if it is a folder of ours, else a copy in the runs directory."""
    if (Path(source) / WEIGHTS_NAME).is_file() and (Path(source) / CONFIG_NAME).is_file():
        return str(Path(source).resolve())
    copy = runs.model_copy(source)
    save_model(copy, model, meta)
    return str(copy)


def _lost(index: int, outcome: Outcome) -> Row:
    reason = "unreadable" if outcome.failure == "error" else outcome.failure
    return Row(index=index, values=None, reason=reason, detail=outcome.detail)


def _write_part(folder: Path, rows: Sequence[Row]) -> None:
    """Keep a part, in a folder made anew where the same command in another shell ended and removed it."""
    for _ in range(3):
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            _save_part(folder, rows)
            return


def _save_part(folder: Path, rows: Sequence[Row]) -> None:
    shape = next((r.values.shape for r in rows if r.values is not None), (0,))
    empty = np.full(shape, np.nan, np.float32)
    name = f"{min(r.index for r in rows):08d}-{len(rows)}"
    with replacing(folder / f"{name}.npz") as temporary, open(temporary, "wb") as file:
        np.savez(
            file,
            index=np.array([r.index for r in rows]),
            values=np.stack([empty if r.values is None else r.values for r in rows]).astype(np.float32),
            views=np.array([r.views for r in rows]),
            good=np.array([r.values is not None for r in rows]),
            words=np.array([[r.reason, r.detail] for r in rows]),
        )


def _read_part(path: Path) -> list[Row]:
    """What is kept of a part; nothing where another command that did the same has ended and removed it."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    with np.load(io.BytesIO(data)) as kept:
        # Videos that failed are tried again: a disk that was away comes back.
        return [
            Row(index=int(i), values=v, views=int(n))
            for i, v, n, good in zip(kept["index"], kept["values"], kept["views"], kept["good"], strict=True)
            if good
        ]


def features_run(
    config: ExperimentConfig,
    store: Store,
    source: str,
    out: Path,
    *,
    pooling: Pooling = "mean",
    address: str | None = None,
    gpus: float = 0.0,
    progress: Callable[[int], Progress] | None = None,
) -> tuple[tuple[int, ...], list[tuple[str, str]]]:
    """Write the features of the videos of `config.data.test_csv` to `out` (see `vmae features`).

    Returns the shape of `x` and the videos left out, as (path, why). Raises InputError where the model at
    `source` is a classifier, VmaeError where no video can be read.
    """
    model, meta, _ = load_model_at(store, source)
    model = expect_model(model, PretrainedModel, source)
    data = replace(config.data, bad_eval="count")
    samples = read_list(data, data.test_csv)
    checkpoint = shared_checkpoint(model_source(store, source), model, meta, store.layout)
    work = Work(
        kind="features",
        checkpoint=checkpoint,
        data=data,
        seed=config.train.seed,
        batch_size=32,
        precision=config.train.precision,
        pooling=pooling,
    )
    parts = store.layout.parts
    paths = [*files_to_see(data, data.test_csv), str(weights_file(checkpoint))]
    with place(address, paths, gpus) as where:
        shown = progress(len(samples)) if progress is not None else None
        with shown or contextlib.nullcontext():
            rows = map_videos(work, samples, parts, where, progress=shown)
    kept = [r for r in rows if r.values is not None]
    x = np.stack([r.values for r in kept if r.values is not None])
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary, open(temporary, "wb") as file:
        np.savez(
            file,
            x=x,
            labels=np.array([samples[r.index].label for r in kept]),
            paths=np.array([samples[r.index].path for r in kept]),
            index=np.array([r.index for r in kept]),
        )
    forget(work, samples, parts)
    why = [(samples[r.index].path, f"{r.reason}: {r.detail}") for r in rows if r.values is None]
    return x.shape, why
