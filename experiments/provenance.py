"""Which data a run saw: a digest of its lists and of the files they name."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vmae.core.files import read_record, write_json
from vmae.core.video.annotations import read_annotations
from vmae.core.video.config import DataConfig, weighted
from vmae.core.video.samples import Sample
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.layout import SweepDir, Tracked
from vmae.experiments.tracking import tags
from vmae.experiments.tracking.origin import environment_tags
from vmae.experiments.tracking.spool import Spool

_log = logging.getLogger("vmae")
_CODE = {tags.COMMIT: "commit", tags.VERSION: "vmae", tags.TORCH: "torch"}
_THREADS = 16  # a stat waits for the disk or the network, not for the processor


def config_tags(config: ExperimentConfig, digest: str | None = None) -> dict[str, str]:
    """The tags that every run of a configuration carries: its recipe and the digest of its data.

    Without `digest` it is computed; InputError as `data_digest`.
    """
    return {tags.RECIPE: config.recipe, tags.DATA_DIGEST: digest or data_digest(config.data)}


def shared_tags(config: ExperimentConfig, base: ExperimentConfig, sweep: SweepDir) -> dict[str, str]:
    """`config_tags` of a trial: the sweep's own digest, kept in its folder, serves all on the same lists."""
    same = all(
        getattr(config.data, name) == getattr(base.data, name)
        for name in ("train_csv", "more_lists", "val_csv", "test_csv", "data_root", "annotation_format")
    )
    kept = read_record(sweep.data, "digest") if same else None
    return config_tags(config, kept["digest"] if kept else None)


def keep_digest(base: ExperimentConfig, sweep: SweepDir) -> dict[str, str]:
    """The tags of a sweep, its digest kept in its folder for the trials that start now."""
    found = config_tags(base)
    write_json(sweep.data, {"digest": found[tags.DATA_DIGEST]})
    own, changed = with_first_digest(found, sweep)
    code, other = first_code(sweep)
    for text in filter(None, (changed, other)):
        _log.warning(text)
    return {**own, **code}


def with_first_digest(found: dict[str, str], home: Tracked) -> tuple[dict[str, str], str]:
    """`config_tags` of a run or sweep, and a line to show where its data are not those that it began with.

    The digest stays that of the first attempt; another one has a tag of its own.
    """
    start = Spool(home).start()
    first, now = (start["tags"].get(tags.DATA_DIGEST) if start else None), found[tags.DATA_DIGEST]
    if first is None or first == now:
        return found, ""
    text = (
        f"the data changed since '{home.path.name}' began (digest {first}, now {now}): a list, a label or a "
        "video's size or time is another; it goes on with what is there now, and its numbers are of both"
    )
    return {**found, tags.DATA_DIGEST: first, tags.DATA_CHANGED: now}, text


def first_code(home: Tracked) -> tuple[dict[str, str], str]:
    """Where a run or sweep goes on with other code than it began with: the tags that say both, and a line.

    What it began with stays; what differs is in a tag of its own. Commit, version and torch are looked at.
    """
    start, now = Spool(home).start(), environment_tags()
    first = {t: start["tags"][t] for t in _CODE if t in start["tags"]} if start else {}
    other = {t: now[t] for t in first if now.get(t, first[t]) != first[t]}
    if not other:
        return {}, ""
    changed = ", ".join(f"{_CODE[t]} {value}" for t, value in other.items())
    began = ", ".join(f"{_CODE[t]} {first[t]}" for t in other)
    text = (
        f"the code changed since '{home.path.name}' began ({began}; now {changed}): its numbers are of both, "
        "and need not be those of an unbroken run"
    )
    return {**{t: first[t] for t in other}, tags.CODE_CHANGED: changed}, text


def environment() -> str:
    """What a run ran on, a line each: system, processors, GPUs, every installed package with its version."""
    import platform
    import sys
    from importlib.metadata import distributions

    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    lines = [
        f"python {sys.version.split()[0]}",
        f"system {platform.platform()}",
        f"processors {os.cpu_count()} {platform.machine()}",
        *(f"gpu {i} {name}" for i, name in enumerate(gpus)),
    ]
    packages = {f"{d.metadata['Name']}=={d.version}" for d in distributions()}
    return "\n".join([*lines, *sorted(packages, key=str.lower)]) + "\n"


def data_digest(data: DataConfig) -> str:
    """Twelve hex digits that change when a list of `data` changes, or a file it names.

    Of each line: the path as the list has it (from the data root on, so that another machine's mount point
    gives the same digest), the label, the stretch of frames, and the file's size and time of change in
    nanoseconds. The files are not read, so the cost is one stat each. An absent file counts as absent.

    Raises:
        InputError: a list that is missing or has a bad line.
    """
    digest = hashlib.sha256()
    for csv in (data.train_csv, data.val_csv, data.test_csv, *(weighted(m)[0] for m in data.more_lists)):
        if not csv:
            digest.update(b"none\n")
            continue
        samples = read_annotations(csv, data.data_root or None, format=data.annotation_format)
        root = data.data_root or os.path.dirname(os.path.abspath(csv))
        for sample, stamp in zip(samples, _stamps(samples), strict=True):
            path = os.path.relpath(sample.path, root) if os.path.isabs(sample.path) else sample.path
            line = f"{path} {sample.label} {sample.start} {sample.num_frames} {stamp}\n"
            if sample.time_s is not None:
                line += f"{sample.time_s} {sample.boxes}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:12]


def _stamps(samples: list[Sample]) -> Iterable[str]:
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(_stamp, [s.path for s in samples], chunksize=256)


def _stamp(path: str) -> str:
    try:
        found = Path(path).stat()
    except OSError:
        return "absent"
    return f"{found.st_size} {found.st_mtime_ns}"
