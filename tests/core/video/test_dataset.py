"""Batches: what is in them, in which order, the same again on resume, and what bad files do to them."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vmae.core.errors import InputError, VideoError
from vmae.core.video.annotations import Sample
from vmae.core.video.cache import DecodedCache
from vmae.core.video.dataset import ClipDataset, DataConfig, build_cache, build_loader, read_ahead
from vmae.core.video.reader import cached_info

CONFIG = DataConfig(frames=4, sampling_rate=2, size=(32, 32), short_side=48, flip=True, workers=0)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> list[Sample]:
    folder = tmp_path_factory.mktemp("set")
    return [
        Sample(
            path=str(make_video(folder / f"{i}.mp4", frames=20 + i, size=(48, 64 + 2 * (i % 2)))), label=i % 3
        )
        for i in range(11)
    ]


def with_changes(config: DataConfig, **changes: Any) -> DataConfig:
    import dataclasses

    return dataclasses.replace(config, **changes)


def contents(batches: Any) -> list[tuple[list[int], int]]:
    return [(b["index"].tolist(), int(b["clip"].long().sum())) for b in batches]


def test_an_item(samples: list[Sample]) -> None:
    item = ClipDataset(samples, CONFIG)[3]
    assert item["clip"].dtype == torch.uint8
    assert item["clip"].shape == (4, 32, 32, 3)
    assert (item["label"], item["index"], item["path"]) == (0, 3, samples[3].path)
    repeated = ClipDataset(samples, with_changes(CONFIG, repeats=3))[3]["clip"]
    assert repeated.shape == (3, 4, 32, 32, 3)
    assert not torch.equal(repeated[0], repeated[1])


def test_batches(samples: list[Sample]) -> None:
    loader = build_loader(ClipDataset(samples, with_changes(CONFIG, repeats=2)), 4)
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
        return contents(build_loader(ClipDataset(samples, CONFIG, seed=seed), 3, epoch=epoch))

    assert run(0, 0) == run(0, 0)
    assert run(0, 0) != run(1, 0)
    assert run(0, 0) != run(0, 1)
    loader = build_loader(ClipDataset(samples, CONFIG), 3)
    first = contents(loader)
    assert contents(loader) == first
    loader.set_epoch(1)
    assert contents(loader) == run(0, 1)


def test_resume_in_mid_epoch_is_exact(samples: list[Sample]) -> None:
    whole = contents(build_loader(ClipDataset(samples, CONFIG), 2, epoch=4))
    for skip in range(len(whole) + 1):
        rest = build_loader(ClipDataset(samples, CONFIG), 2, epoch=4, skip_batches=skip)
        assert contents(rest) == whole[skip:]


@pytest.mark.parametrize("reader", ["pyav", "decord"])
@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_change_nothing(samples: list[Sample], method: str, reader: Any) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    pytest.importorskip(reader.replace("pyav", "av"))
    config = with_changes(CONFIG, reader=reader)
    alone = build_loader(ClipDataset(samples, config), 3)
    # Readers have been opened in this process before the fork.
    expected = contents(alone)
    if reader == "decord":
        tried = [cached_info(s.path).decord_ok for s in samples]
        assert tried.count(True) >= 9 and False not in tried  # one incomplete batch was left out
    loader = build_loader(ClipDataset(samples, config), 3, workers=2, start_method=method)
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
                    ClipDataset(samples, with_changes(CONFIG, segments=1, crops=1), mode),
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


@pytest.mark.parametrize("sampling", ["dense", "uniform"])
def test_one_view_is_the_clip_of_validation(samples: list[Sample], sampling: str) -> None:
    config = with_changes(CONFIG, segments=1, crops=1, sampling=sampling, size=(24, 40))
    val, test = (ClipDataset(samples, config, mode) for mode in ("val", "test"))
    for index in range(3):
        assert torch.equal(val[index]["clip"], test[index]["clip"])


def test_views(samples: list[Sample]) -> None:
    config = with_changes(CONFIG, segments=2, crops=3, size=(48, 48))
    batch = next(iter(build_loader(ClipDataset(samples, config, "test"), 2)))
    assert batch["clip"].shape == (12, 4, 48, 48, 3)
    assert batch["view"].tolist() == list(range(6)) * 2
    assert batch["index"].tolist() == [0] * 6 + [1] * 6
    # Video 0 is 48x64: its crops start at columns 0, 8 and 16 of one and the same frame.
    left, middle, right = batch["clip"][:3]
    assert torch.equal(left[:, :, 8:], middle[:, :, :-8])
    assert torch.equal(middle[:, :, 8:], right[:, :, :-8])


def test_validation_takes_the_centre(samples: list[Sample], truth: Callable[[str], list[np.ndarray]]) -> None:
    config = with_changes(CONFIG, size=(48, 48))
    clip = ClipDataset(samples, config, "val")[0]["clip"]
    frames = np.stack(truth(samples[0].path))[[6, 8, 10, 12]]
    assert np.array_equal(clip.numpy(), frames[:, :, 8:56])


def test_flip_only_on_request(samples: list[Sample]) -> None:
    plain = with_changes(CONFIG, augment="none", flip=False, sampling_rate=5)
    clips = [ClipDataset(samples, plain)[0]["clip"]]
    flipping = ClipDataset(samples, with_changes(plain, flip=True))
    for epoch in range(12):
        flipping.set_epoch(epoch)
        clips.append(flipping[0]["clip"])
    kinds = {clip.numpy().tobytes() for clip in clips}
    assert clips[0].flip(2).numpy().tobytes() in kinds
    assert len(kinds) == 2


def test_stretches(samples: list[Sample]) -> None:
    stretch = Sample(path=samples[0].path, label=0, start=8, num_frames=4)
    config = with_changes(CONFIG, sampling_rate=1)
    whole = ClipDataset(samples, with_changes(config, frames=20, augment="none", flip=False))
    indices = whole._frame_indices(samples[0], 20, None)
    assert indices.tolist() == [*range(19), 18]
    assert ClipDataset([stretch], config)._frame_indices(stretch, 20, None).tolist() == [8, 9, 10, 10]
    with pytest.raises(VideoError, match="truncated: expected 28 frames, the file has 20"):
        ClipDataset([Sample(path=samples[0].path, label=0, start=8, num_frames=20)], config)[0]


def test_repeats_show_the_same_frames_or_start_at_times_of_their_own(
    samples: list[Sample], truth: Callable[[str], list[np.ndarray]]
) -> None:
    """V1's and V2's `num_sample` against MAE-ST's `repeat_aug`."""
    frames = np.stack(truth(samples[0].path))
    config = with_changes(CONFIG, repeats=6, augment="none", flip=False, size=(48, 48))

    def starts(config: DataConfig) -> set[int]:
        found = set()
        for clip in ClipDataset(samples, config)[0]["clip"].numpy():
            (start,) = [s for s in range(14) if np.array_equal(clip, frames[s : s + 7 : 2, :, 8:56])]
            found.add(start)
        return found

    assert len(starts(config)) == 1
    assert len(starts(with_changes(config, repeat_time="own"))) > 2
    batch = ClipDataset(samples, with_changes(config, repeat_time="own")).load_batch([(0, 0), (0, 1)])
    assert batch["view"].tolist() == [*range(6), *range(6)]


def test_stretches_of_image_folders_begin_at_the_number_in_the_name(tmp_path: Path) -> None:
    import cv2

    for i in range(1, 13):
        cv2.imwrite(str(tmp_path / f"img_{i:05}.png"), np.full((8, 8, 3), 10 * i, np.uint8))
    config = DataConfig(frames=2, sampling_rate=1, size=(8, 8), augment="none")

    def first(start: int, total: int | None) -> list[int]:
        sample = Sample(path=str(tmp_path), label=-1, start=start, num_frames=total)
        return (ClipDataset([sample], config, "val")[0]["clip"][:, 0, 0, 0] // 10).tolist()

    assert first(1, 12) == first(0, 12) == [6, 7]
    assert first(11, 2) == [11, 11]  # the official rule stops a frame short of the end
    with pytest.raises(VideoError, match="truncated: expected 13 frames, the file has 12"):
        first(2, 12)
    with pytest.raises(VideoError, match="asks for image number 13, the folder has none"):
        first(13, None)


@pytest.fixture
def some_bad(samples: list[Sample], tmp_path: Path) -> list[Sample]:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(Path(samples[0].path).read_bytes()[:900])
    return [*samples[:6], Sample(path=str(bad), label=1), *samples[6:]]


@pytest.mark.parametrize("workers", [0, 1])
def test_training_skips_counts_and_names_a_bad_file_once(
    some_bad: list[Sample], workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = ClipDataset(some_bad, with_changes(CONFIG, max_bad_share=0.2))
    loader = build_loader(dataset, 4, workers=workers)
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


@pytest.fixture
def a_hang(samples: list[Sample], tmp_path: Path) -> Iterator[list[Sample]]:
    """Seven videos and a folder of frames of which one is a pipe that nobody writes to: opening it waits in
    the system call for ever."""
    os.mkfifo(tmp_path / "img_1.png")
    yield [*samples[:3], Sample(path=str(tmp_path), label=0), *samples[3:7]]
    with contextlib.suppress(OSError):  # lets a reader of this process go
        os.close(os.open(tmp_path / "img_1.png", os.O_WRONLY | os.O_NONBLOCK))


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
    config = with_changes(CONFIG, max_bad_share=0.2, timeout_s=1.0)
    before = {p.pid for p in multiprocessing.active_children()}
    dataset = kind(a_hang, config)
    loader = build_loader(dataset, 2, workers=workers)
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
        again = build_loader(ClipDataset(a_hang, config), 2, workers=1, epoch=2)
        again.dataset.given_up.add(a_hang[3].path)
        assert contents(again) == contents(batches)  # the clips are those of a run that knew


@pytest.mark.slow
def test_a_hanging_file_does_not_hang_the_cache(a_hang: list[Sample], tmp_path: Path) -> None:
    cache = DecodedCache.build(a_hang, tmp_path / "cache", 48, timeout_s=1.0)
    assert len(cache) == 7
    with pytest.raises(VideoError, match="timeout: more than 3 s inside one call"):
        cache.frames(a_hang[3].path)


def test_training_stops_over_the_share(some_bad: list[Sample]) -> None:
    loader = build_loader(ClipDataset(some_bad, CONFIG), 4)
    with pytest.raises(VideoError, match=r"too_many_bad_files: 1 of 12 videos .*bad.mp4 \(truncated\)"):
        list(loader)


def test_validation_never_leaves_a_bad_file_out(some_bad: list[Sample]) -> None:
    with pytest.raises(VideoError, match=r"bad.mp4: truncated"):
        list(build_loader(ClipDataset(some_bad, CONFIG, "val"), 4))
    counted = ClipDataset(some_bad, with_changes(CONFIG, bad_eval="count"), "val")
    batches = list(build_loader(counted, 4))
    assert sum(len(b["label"]) for b in batches) + sum(len(b["failed"]) for b in batches) == len(some_bad)
    (failed,) = [f for b in batches for f in b["failed"]]
    assert (failed["index"], failed["label"], failed["reason"]) == (6, 1, "truncated")


def test_a_batch_of_bad_files_alone(some_bad: list[Sample]) -> None:
    dataset = ClipDataset([some_bad[6], *some_bad[:3]], with_changes(CONFIG, max_bad_share=1.0))
    loader = build_loader(dataset, 1)
    assert len(list(loader)) == 3
    with pytest.raises(VideoError, match="too_many_bad_files"):
        list(build_loader(ClipDataset([some_bad[6]] * 2, CONFIG), 1))


def test_cache_gives_the_same_frames_and_is_built_once(
    samples: list[Sample], some_bad: list[Sample], tmp_path: Path
) -> None:
    config = with_changes(CONFIG, cache=True, cache_dir=str(tmp_path / "cache"), max_bad_share=0.5)
    seen: list[tuple[int, int]] = []
    cache = build_cache(some_bad, config, progress=lambda done, total: seen.append((done, total)))
    assert isinstance(cache, DecodedCache)
    assert seen[-1] == (12, 12)
    assert len(cache) == 11
    plain = contents(build_loader(ClipDataset(samples, CONFIG), 4))
    assert contents(build_loader(ClipDataset(samples, CONFIG, cache=cache), 4)) == plain
    assert contents(build_loader(ClipDataset(samples, CONFIG, cache=cache), 4, workers=1)) == plain
    with pytest.raises(VideoError, match="truncated"):
        cache.frames(some_bad[6].path)
    built = (cache.folder / "frames.bin").stat().st_mtime_ns
    again = build_cache(some_bad, config)
    assert again is not None
    assert (again.folder / "frames.bin").stat().st_mtime_ns == built
    # An unfinished build is not taken for a whole one, and a changed file is decoded again.
    (cache.folder / "index.json").unlink()
    assert len(DecodedCache.build(some_bad, config.cache_dir, 48)) == 11
    Path(some_bad[6].path).write_bytes(Path(samples[0].path).read_bytes())
    assert len(DecodedCache.build(some_bad, config.cache_dir, 48)) == 12
    assert build_cache(samples, CONFIG) is None


def test_cache_scales_down_and_never_up(samples: list[Sample], tmp_path: Path) -> None:
    assert DecodedCache.build(samples[:1], tmp_path, 24).frames(samples[0].path).shape == (20, 24, 32, 3)
    assert DecodedCache.build(samples[:1], tmp_path, 96).frames(samples[0].path).shape == (20, 48, 64, 3)


def test_refused_values(samples: list[Sample]) -> None:
    with pytest.raises(InputError, match=r"data\.frames: expected at least 1, got 0"):
        DataConfig(frames=0)
    with pytest.raises(InputError, match=r"data\.max_bad_share"):
        DataConfig(max_bad_share=1.5)
    with pytest.raises(InputError, match="mode: expected train, val or test, got 'tset'"):
        ClipDataset(samples, CONFIG, "tset")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected at least one video"):
        ClipDataset([], CONFIG)
    with pytest.raises(InputError, match=r"batch_size: expected at most 11 .* got 12"):
        build_loader(ClipDataset(samples, CONFIG), 12)
    with pytest.raises(InputError, match="rank: expected 0 <= rank < world_size, got 2 of 2"):
        build_loader(ClipDataset(samples, CONFIG), 1, rank=2, world_size=2)
    with pytest.raises(InputError, match=r"data\.reader: expected pyav or decord, got 'opencv'"):
        DataConfig(reader="opencv")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"data\.repeat_time: expected shared or own, got 'all'"):
        DataConfig(repeat_time="all")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="rand_augment: expected"):
        DataConfig(rand_augment="rnd-m7")
    with pytest.raises(InputError, match=r"data\.random_erasing: expected a probability, got 2"):
        DataConfig(random_erasing=2)


@pytest.mark.parametrize(
    "changes",
    [
        {"rand_augment": "rand-m9-n2-p1"},
        {"color_jitter": 0.4},
        {"random_erasing": 1.0},
        {"augment": "random_resized_crop"},
        {"flip": True},
        {"repeats": 2},
        {"repeats": 2, "repeat_time": "own"},
        {"sampling": "uniform"},
        {"sampling_rate": 3},
        {"short_side": 40},
    ],
)
def test_every_option_changes_training_and_only_sampling_changes_validation(
    changes: dict[str, Any], samples: list[Sample]
) -> None:
    plain = with_changes(CONFIG, flip=False, augment="none", sampling_rate=2)
    changed = with_changes(plain, **changes)

    def clips(config: DataConfig, mode: Any) -> bytes:
        dataset = ClipDataset(samples, config, mode)
        return b"".join(dataset[i]["clip"].numpy().tobytes() for i in range(3))

    assert clips(plain, "train") != clips(changed, "train")
    validation_too = bool({"sampling", "sampling_rate"} & set(changes))
    assert (clips(plain, "val") != clips(changed, "val")) == validation_too


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
    loader = build_loader(ClipDataset(samples, CONFIG), 3, workers=workers, device="cuda")
    batches = list(loader)
    assert all(b["clip"].is_cuda and b["label"].is_cuda for b in batches)
    assert contents(batches) == expected
