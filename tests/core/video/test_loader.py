"""Batches: what is in them, in which order, the same again on resume, and what bad files do to them."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from vmae.core.errors import InputError, VideoError, VmaeError
from vmae.core.video.clips import ClipDataset
from vmae.core.video.config import DataConfig
from vmae.core.video.loader import build_loader, read_ahead
from vmae.core.video.probe_store import cached_info
from vmae.core.video.samples import Sample

CONFIG = DataConfig(frames=4, sampling_rate=2, size=(32, 32), short_side=48, flip=True, workers=0)


def contents(batches: Any) -> list[tuple[list[int], int]]:
    return [(b["index"].tolist(), int(b["clip"].long().sum())) for b in batches]


def test_batches(samples: list[Sample]) -> None:
    loader = build_loader(ClipDataset(samples, replace(CONFIG, repeats=2)), 4)
    assert len(loader) == 2
    batches = list(loader)
    assert [b["clip"].shape[0] for b in batches] == [8, 8]
    for b in batches:
        assert b["clip"].dtype == torch.uint8
        assert b["label"].tolist() == [samples[i].label for i in b["index"]]
        assert b["path"] == [samples[i].path for i in b["index"]]
        assert b["view"].tolist() == [0, 1] * 4
        assert b["failed"] == []
    seen = [i for b in batches for i in b["index"].tolist()]
    assert sorted(set(seen)) == sorted(seen)[::2]


def test_order_and_draws_depend_on_seed_and_epoch_alone(samples: list[Sample]) -> None:
    def run(seed: int, epoch: int) -> list[tuple[list[int], int]]:
        np.random.seed(0)
        torch.manual_seed(epoch)  # global state must not matter
        loader = build_loader(ClipDataset(samples, CONFIG, seed=seed), 3)
        loader.set_epoch(epoch)
        return contents(loader)

    assert run(0, 0) == run(0, 0)
    assert run(0, 0) != run(1, 0)
    assert run(0, 0) != run(0, 1)
    loader = build_loader(ClipDataset(samples, CONFIG), 3)
    first = contents(loader)
    assert contents(loader) == first
    loader.set_epoch(1)
    assert contents(loader) == run(0, 1)


def test_resume_in_mid_epoch_is_exact(samples: list[Sample]) -> None:
    def run(skip: int) -> list[tuple[list[int], int]]:
        loader = build_loader(ClipDataset(samples, CONFIG), 2)
        loader.set_epoch(4, skip_batches=skip)
        return contents(loader)

    whole = run(0)
    for skip in range(len(whole) + 1):
        assert run(skip) == whole[skip:]


@pytest.fixture
def start_method(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {request.param} here")
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.parametrize("reader", ["pyav", "decord"])
@pytest.mark.parametrize(
    "start_method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)], indirect=True
)
@pytest.mark.usefixtures("start_method")
def test_workers_change_nothing(samples: list[Sample], reader: Any) -> None:
    pytest.importorskip(reader.replace("pyav", "av"))
    config = replace(CONFIG, reader=reader)
    alone = build_loader(ClipDataset(samples, config), 3)
    # Readers have been opened in this process before the fork.
    expected = contents(alone)
    if reader == "decord":
        tried = [cached_info(s.path).decord_ok for s in samples]
        assert tried.count(True) >= 9 and False not in tried  # one incomplete batch was left out
    loader = build_loader(ClipDataset(samples, replace(config, workers=2)), 3)
    assert contents(loader) == expected
    loader.set_epoch(1)
    alone.set_epoch(1)
    assert contents(loader) == contents(alone)  # the same workers go on
    loader.set_epoch(0, skip_batches=2)
    assert contents(loader) == expected[2:]
    assert loader.step_s >= loader.wait_s > 0
    assert 0 < loader.data_wait_share <= 1


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_shards(samples: list[Sample], world_size: int) -> None:
    def indices(mode: Any) -> list[list[int]]:
        return [
            [
                i
                for b in build_loader(
                    ClipDataset(samples, replace(CONFIG, segments=1, crops=1), mode),
                    2,
                    rank=r,
                    world_size=world_size,
                )
                for i in b["index"].tolist()
            ]
            for r in range(world_size)
        ]

    for mode in ("val", "test"):
        assert sorted(i for rank in indices(mode) for i in rank) == list(range(11))  # each once
    ranks = indices("train")
    assert len({len(r) for r in ranks}) == 1  # ranks in step
    assert len({i for r in ranks for i in r}) == sum(len(r) for r in ranks)


@pytest.mark.parametrize("workers", [0, 1])
def test_training_skips_counts_and_names_a_bad_file_once(
    some_bad: list[Sample], workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = ClipDataset(some_bad, replace(CONFIG, max_bad_share=0.2, workers=workers))
    loader = build_loader(dataset, 4)
    with caplog.at_level(logging.WARNING, "vmae"):
        batches = list(loader)
        loader.set_epoch(1)
        again = list(loader)
    for epoch in (batches, again):
        assert sorted(len(b["clip"]) for b in epoch) == [3, 4, 4]
        assert sum(len(b["failed"]) for b in epoch) == 1
        assert not any(6 in b["index"].tolist() for b in epoch)  # left out, nothing in its place
        assert sorted(i for b in epoch for i in b["index"].tolist()) == [*range(6), *range(7, 12)]
    assert loader.skipped == {some_bad[6].path: "truncated"}
    assert len(caplog.records) == 1
    assert some_bad[6].path in caplog.text


class _Asleep(ClipDataset):
    """Reading item 3 is ten minutes of C."""

    def _read(self, sample: Sample, rng: Any) -> np.ndarray:
        if sample is self.samples[3]:
            ctypes.CDLL(None).sleep(600)
        return super()._read(sample, rng)


@pytest.mark.parametrize(
    ("kind", "workers"),
    [
        (ClipDataset, 2),
        pytest.param(ClipDataset, 0, marks=pytest.mark.slow),
        pytest.param(_Asleep, 2, marks=pytest.mark.slow),
    ],
)
def test_a_hanging_file_does_not_hang_training(
    a_hang: list[Sample], kind: type[ClipDataset], workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(CONFIG, max_bad_share=0.2, timeout_s=1.0, workers=workers)
    before = {p.pid for p in multiprocessing.active_children()}
    dataset = kind(a_hang, config)
    loader = build_loader(dataset, 2)
    good = [i for i in range(8) if i != 3]
    start = time.monotonic()
    for epoch in range(3):
        loader.set_epoch(epoch)
        batches = list(loader)
        assert sorted(i for b in batches for i in b["index"].tolist()) == good  # each once, none lost
        assert [f["reason"] for b in batches for f in b["failed"]] == ["timeout"]
    assert time.monotonic() - start < 60
    assert loader.skipped == {a_hang[3].path: "timeout"}
    assert len(caplog.records) == 1
    # Without workers the thread stays, one for the file; with workers it ended with its process.
    lost = [t for t in threading.enumerate() if t.name == "vmae-read"]
    assert len(lost) == (1 if workers == 0 else 0)
    if workers:
        assert loader.dataset.given_up == {a_hang[3].path}
        alive = {p.pid for p in multiprocessing.active_children()} - before
        assert {w.pid for w in loader._torch_loader._iterator._workers} <= alive
        assert len(alive) == 2  # the stuck ones are gone
        again = build_loader(ClipDataset(a_hang, replace(config, workers=1)), 2)
        again.set_epoch(2)
        again.dataset.given_up.add(a_hang[3].path)
        assert contents(again) == contents(batches)  # the clips are those of a run that knew


def test_training_stops_over_the_share(some_bad: list[Sample]) -> None:
    loader = build_loader(ClipDataset(some_bad, CONFIG), 4)
    with pytest.raises(VideoError, match=r"too_many_bad_files: 1 of 12 videos .*bad.mp4 \(truncated\)"):
        list(loader)


def test_validation_never_leaves_a_bad_file_out(some_bad: list[Sample]) -> None:
    with pytest.raises(VideoError, match=r"bad.mp4: truncated"):
        list(build_loader(ClipDataset(some_bad, CONFIG, "val"), 4))
    counted = ClipDataset(some_bad, replace(CONFIG, bad_eval="count"), "val")
    batches = list(build_loader(counted, 4))
    assert sum(len(b["label"]) for b in batches) + sum(len(b["failed"]) for b in batches) == len(some_bad)
    (failed,) = [f for b in batches for f in b["failed"]]
    assert (failed["index"], failed["label"], failed["reason"]) == (6, 1, "truncated")


def test_a_batch_of_bad_files_alone(some_bad: list[Sample]) -> None:
    dataset = ClipDataset([some_bad[6], *some_bad[:3]], replace(CONFIG, max_bad_share=1.0))
    loader = build_loader(dataset, 1)
    assert sorted(len(b["clip"]) for b in loader) == [0, 1, 1, 1]  # its place is kept
    with pytest.raises(VideoError, match="too_many_bad_files"):
        list(build_loader(ClipDataset([some_bad[6]] * 2, CONFIG), 1))


def test_reading_ahead_keeps_order_passes_errors_and_ends() -> None:
    def source(fail_at: int) -> Iterator[int]:
        for i in range(5):
            if i == fail_at:
                raise ValueError("broken")
            yield i

    assert list(read_ahead(source(9), lambda x: x * 10)) == [0, 10, 20, 30, 40]
    got = []
    with pytest.raises(ValueError, match="broken"):
        for item in read_ahead(source(3), lambda x: x):
            got.append(item)
    assert got == [0, 1, 2]
    abandoned = read_ahead(source(9), lambda x: x)
    next(abandoned)
    abandoned.close()  # type: ignore[attr-defined]
    assert not any(t.name == "vmae-read-ahead" for t in threading.enumerate())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_uploaded_ahead(samples: list[Sample], workers: int) -> None:
    expected = contents(build_loader(ClipDataset(samples, CONFIG), 3))
    loader = build_loader(ClipDataset(samples, replace(CONFIG, workers=workers)), 3, device="cuda")
    batches = list(loader)
    assert all(b["clip"].is_cuda and b["label"].is_cuda for b in batches)
    assert contents(batches) == expected


def test_refused_values(samples: list[Sample]) -> None:
    with pytest.raises(InputError, match=r"batch_size: expected at most 11 .* got 12"):
        build_loader(ClipDataset(samples, CONFIG), 12)
    with pytest.raises(InputError, match="rank: expected 0 <= rank < world_size, got 2 of 2"):
        build_loader(ClipDataset(samples, CONFIG), 1, rank=2, world_size=2)


def killed_after_one_batch(samples: list[Sample], **changes: Any) -> list[tuple[list[int], int]]:
    loader = build_loader(ClipDataset(samples, replace(CONFIG, workers=2, **changes)), 2)
    batches = iter(loader)
    found = contents([next(batches)])
    os.kill(loader._torch_loader._iterator._workers[0].pid, signal.SIGKILL)
    return found + contents(batches)


def test_a_killed_worker_is_replaced_and_no_clip_changes(
    samples: list[Sample], caplog: pytest.LogCaptureFixture
) -> None:
    expected = contents(build_loader(ClipDataset(samples, CONFIG), 2))
    with caplog.at_level(logging.WARNING, "vmae"):
        assert killed_after_one_batch(samples, prefetch=1) == expected
    assert "a loader process died and is replaced: DataLoader worker" in caplog.text


def test_a_worker_killed_between_two_epochs_is_replaced(
    samples: list[Sample], caplog: pytest.LogCaptureFixture
) -> None:
    alone = build_loader(ClipDataset(samples, CONFIG), 2)
    loader = build_loader(ClipDataset(samples, replace(CONFIG, workers=2)), 2)
    for number in range(2):
        alone.epoch = loader.epoch = number
        assert contents(loader) == contents(alone)
        if not number:
            worker = loader._torch_loader._iterator._workers[1]
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()
    assert "a loader process died and is replaced: DataLoader worker" in caplog.text


def test_workers_that_die_again_and_again_end_the_epoch(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmae.core.video.loader.MOST_DEATHS", 0)
    with pytest.raises(
        VmaeError, match=r"got 1 deaths in one epoch, .* out of memory. use fewer with data.workers"
    ):
        killed_after_one_batch(samples, prefetch=1)


def test_shared_memory_that_is_too_small_is_told_at_once(samples: list[Sample]) -> None:
    config = replace(CONFIG, size=(20_000, 20_000), frames=64, workers=2)
    with pytest.raises(InputError, match=r"MiB of shared memory for 2 loader processes .* free in /dev/shm"):
        next(iter(build_loader(ClipDataset(samples, config), 4)))
