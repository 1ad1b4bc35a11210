"""The lists of a run, ready to be read."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vmae.core.errors import InputError, VideoError
from vmae.core.video.annotations import read_annotations
from vmae.core.video.ava import read_excluded
from vmae.core.video.cache import build_cache
from vmae.core.video.classes import by_name, class_names, names_of
from vmae.core.video.clips import ClipDataset, Mode
from vmae.core.video.config import DataConfig, weighted
from vmae.core.video.samples import Sample, num_classes, repeat, require_labels, subset

CacheProgress = Callable[[int, int], None]
"""Called as decoded clips are put into the cache: (done, total)."""


@dataclass(frozen=True)
class Data:
    """The two lists of a run, ready to be read: clips to train on and held-out clips."""

    train: ClipDataset
    train_plain: ClipDataset
    """All training clips as validation reads them (centre crop, fixed frames), for probes; a bad file is left
    out as in training."""
    val: ClipDataset | None
    num_classes: int


def open_data(config: DataConfig, seed: int, cache_dir: Path, progress: CacheProgress | None = None) -> Data:
    """Read the lists and, with `config.cache`, decode every video once into `cache_dir`.

    `seed` is the run's (`train.seed`).

    Raises:
        InputError: a list that is missing, empty or has a bad line, and a class of a held-out list that the
            training list does not have.
        VideoError: a held-out video that cannot be decoded into the cache.
    """
    train = read_list(config, config.train_csv)
    val = read_list(config, config.val_csv) if config.val_csv else []
    test = read_list(config, config.test_csv) if config.test_csv else []
    if config.cache and any(s.time_s is not None for s in (*train, *val, *test)):
        raise InputError("data.cache: expected false for key frames of films (AVA), got true")
    cache = build_cache(all_samples(config), config, cache_dir, progress=progress)
    if cache is not None:
        bad = [s.path for s in (*val, *test) if s.path in cache.errors]
        if bad and config.bad_eval == "error":
            # Known before anything is trained: a held-out video is never left out silently.
            raise VideoError(bad[0], *cache.errors[bad[0]])
    trained = weighted_samples(config, train, seed) if config.more_lists else train
    return Data(
        train=ClipDataset(subset(trained, config.train_share, seed), config, "train", seed, cache=cache),
        train_plain=ClipDataset(train, config, "val", seed, cache=cache, leave_out=True),
        val=ClipDataset(val, config, "val", seed, cache=cache) if val else None,
        num_classes=num_classes([*train, *val, *test]),
    )


def require_held_out(config: DataConfig, seed: int, progress: CacheProgress | None = None) -> None:
    """Read the clips of every held-out video once, where no cache has decoded them.

    A held-out video is never left out silently, and that it cannot be read is known before anything is
    trained: VideoError, unless `config.bad_eval` is `count`.
    """
    if config.cache or config.bad_eval != "error":
        return
    modes: tuple[tuple[str, Mode], ...] = ((config.val_csv, "val"), (config.test_csv, "test"))
    for csv, mode in modes:
        if csv:
            held_out = ClipDataset(read_list(config, csv), config, mode, seed)
            held_out.require_readable(os.cpu_count() or 1, progress)


def read_list(config: DataConfig, csv: str) -> list[Sample]:
    """A list of the data section, its paths rooted, its labels those of the training list's classes.

    A list with class names of its own (`classes.txt` beside it) is mapped by name onto the training list's;
    InputError for a class that it does not have.
    """
    if not csv:
        raise InputError("data.train_csv: expected a list of training videos (--data FILE), got none")
    samples = _read(config, csv)
    if not config.train_csv or csv == config.train_csv:
        return samples
    names, onto = names_of(csv, samples), class_names(config.train_csv)
    if not names or not onto or names == onto:
        return samples
    trained = _read(config, config.train_csv)
    return by_name(samples, names, onto, csv) if len(onto) >= num_classes(trained) else samples


def _read(config: DataConfig, csv: str) -> list[Sample]:
    excluded = [key for listed in config.excluded for key in read_excluded(listed)]
    return read_annotations(csv, config.data_root or None, format=config.annotation_format, excluded=excluded)


def read_training(config: DataConfig, seed: int = 0) -> list[Sample]:
    """What is trained on in an epoch: the training list, or several with their weights."""
    train = read_list(config, config.train_csv)
    return weighted_samples(config, train, seed) if config.more_lists else train


def weighted_samples(config: DataConfig, train: list[Sample], seed: int) -> list[Sample]:
    """The samples of `train_csv` and of `more_lists`, each list as often as it weighs.

    Labels of different lists mean different classes: those of the others are taken off.
    """
    found = repeat(train, config.train_weight, seed)
    for text in config.more_lists:
        csv, weight = weighted(text)
        more = _read(config, csv)
        found += repeat([replace(s, label=-1, class_name="") for s in more], weight, seed)
    return found


def all_samples(config: DataConfig) -> list[Sample]:
    """The videos of all lists of the data section, as one cache holds them."""
    lists = (config.train_csv, config.val_csv, config.test_csv)
    found = [s for csv in lists if csv for s in read_list(config, csv)]
    for text in config.more_lists:
        found += _read(config, weighted(text)[0])
    return found


def open_test(
    config: DataConfig, seed: int, cache_dir: Path, *, alone: bool = False, names: Sequence[str] | None = None
) -> ClipDataset:
    """The test list (the held-out list where there is none), with segments x crops views a video.

    A training has decoded its lists together; `alone`: decode this one by itself. Labels are those that the
    list's classes have in `names` (the model's), else in the training list; InputError for other classes and
    lines without a label.
    """
    csv = config.test_csv or config.val_csv
    samples = read_list(replace(config, train_csv="") if names else config, csv)
    if names:
        samples = by_name(samples, names_of(csv, samples), names, csv)
    require_labels(samples, csv)
    cache = build_cache(samples if alone else all_samples(config), config, cache_dir)
    return ClipDataset(samples, config, "test", seed, cache=cache)
