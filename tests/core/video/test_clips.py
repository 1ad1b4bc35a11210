"""Clips of a list by index: which frames they show, how they are cut, what each option changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vmae.core.errors import InputError, VideoError
from vmae.core.video.clips import ClipDataset
from vmae.core.video.config import DataConfig
from vmae.core.video.loader import build_loader
from vmae.core.video.samples import Sample

CONFIG = DataConfig(frames=4, sampling_rate=2, size=(32, 32), short_side=48, flip=True, workers=0)


def test_an_item(samples: list[Sample]) -> None:
    item = ClipDataset(samples, CONFIG)[3]
    assert item["clip"].dtype == torch.uint8
    assert item["clip"].shape == (4, 32, 32, 3)
    assert (item["label"], item["index"], item["path"]) == (0, 3, samples[3].path)
    repeated = ClipDataset(samples, replace(CONFIG, repeats=3))[3]["clip"]
    assert repeated.shape == (3, 4, 32, 32, 3)
    assert not torch.equal(repeated[0], repeated[1])


def test_validation_takes_the_centre(samples: list[Sample], truth: Callable[[str], list[np.ndarray]]) -> None:
    config = replace(CONFIG, size=(48, 48))
    clip = ClipDataset(samples, config, "val")[0]["clip"]
    frames = np.stack(truth(samples[0].path))[[6, 8, 10, 12]]
    assert np.array_equal(clip.numpy(), frames[:, :, 8:56])


@pytest.mark.parametrize("sampling", ["dense", "uniform"])
def test_one_view_is_the_clip_of_validation(samples: list[Sample], sampling: str) -> None:
    config = replace(CONFIG, segments=1, crops=1, sampling=sampling, size=(24, 40))
    val, test = (ClipDataset(samples, config, mode) for mode in ("val", "test"))
    for index in range(3):
        assert torch.equal(val[index]["clip"], test[index]["clip"])


def test_views(samples: list[Sample]) -> None:
    config = replace(CONFIG, segments=2, crops=3, size=(48, 48))
    batch = next(iter(build_loader(ClipDataset(samples, config, "test"), 2)))
    assert batch["clip"].shape == (12, 4, 48, 48, 3)
    assert batch["view"].tolist() == list(range(6)) * 2
    assert batch["index"].tolist() == [0] * 6 + [1] * 6
    # Video 0 is 48x64: its crops start at columns 0, 8 and 16 of one and the same frame.
    left, middle, right = batch["clip"][:3]
    assert torch.equal(left[:, :, 8:], middle[:, :, :-8])
    assert torch.equal(middle[:, :, 8:], right[:, :, :-8])


def test_flip_only_on_request(samples: list[Sample]) -> None:
    plain = replace(CONFIG, augment="none", flip=False, sampling_rate=5)
    clips = [ClipDataset(samples, plain)[0]["clip"]]
    flipping = ClipDataset(samples, replace(plain, flip=True))
    for epoch in range(12):
        flipping.set_epoch(epoch)
        clips.append(flipping[0]["clip"])
    kinds = {clip.numpy().tobytes() for clip in clips}
    assert clips[0].flip(2).numpy().tobytes() in kinds
    assert len(kinds) == 2


def test_stretches(samples: list[Sample]) -> None:
    stretch = Sample(path=samples[0].path, label=0, start=8, num_frames=4)
    config = replace(CONFIG, sampling_rate=1)
    whole = ClipDataset(samples, replace(config, frames=20, augment="none", flip=False))
    indices = whole._frame_indices(samples[0], 20, 1, None)
    assert indices.tolist() == [*range(19), 18]
    assert ClipDataset([stretch], config)._frame_indices(stretch, 20, 1, None).tolist() == [8, 9, 10, 10]
    with pytest.raises(VideoError, match="truncated: expected 28 frames, the file has 20"):
        ClipDataset([Sample(path=samples[0].path, label=0, start=8, num_frames=20)], config)[0]


def test_repeats_show_the_same_frames_or_start_at_times_of_their_own(
    samples: list[Sample], truth: Callable[[str], list[np.ndarray]]
) -> None:
    """V1's and V2's `num_sample` against MAE-ST's `repeat_aug`."""
    frames = np.stack(truth(samples[0].path))
    config = replace(CONFIG, repeats=6, augment="none", flip=False, size=(48, 48))

    def starts(config: DataConfig) -> set[int]:
        found = set()
        for clip in ClipDataset(samples, config)[0]["clip"].numpy():
            (start,) = [s for s in range(14) if np.array_equal(clip, frames[s : s + 7 : 2, :, 8:56])]
            found.add(start)
        return found

    assert len(starts(config)) == 1
    assert len(starts(replace(config, repeat_time="own"))) > 2
    batch = ClipDataset(samples, replace(config, repeat_time="own")).load_batch([(0, 0), (0, 1)])
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
    plain = replace(CONFIG, flip=False, augment="none", sampling_rate=2)
    changed = replace(plain, **changes)

    def clips(config: DataConfig, mode: Any) -> bytes:
        dataset = ClipDataset(samples, config, mode)
        return b"".join(dataset[i]["clip"].numpy().tobytes() for i in range(3))

    assert clips(plain, "train") != clips(changed, "train")
    validation_too = bool({"sampling", "sampling_rate"} & set(changes))
    assert (clips(plain, "val") != clips(changed, "val")) == validation_too


def test_refused_values(samples: list[Sample]) -> None:
    with pytest.raises(InputError, match=r"data\.frames: expected at least 1, got 0"):
        DataConfig(frames=0)
    with pytest.raises(InputError, match=r"data\.max_bad_share"):
        DataConfig(max_bad_share=1.5)
    with pytest.raises(InputError, match="mode: expected train, val or test, got 'tset'"):
        ClipDataset(samples, CONFIG, "tset")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected at least one video"):
        ClipDataset([], CONFIG)
    with pytest.raises(InputError, match=r"data\.reader: expected pyav or decord, got 'opencv'"):
        DataConfig(reader="opencv")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"data\.repeat_time: expected shared or own, got 'all'"):
        DataConfig(repeat_time="all")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="rand_augment: expected"):
        DataConfig(rand_augment="rnd-m7")
    with pytest.raises(InputError, match=r"data\.random_erasing: expected a probability, got 2"):
        DataConfig(random_erasing=2)


def test_every_clip_can_be_read_before_anything_is_trained(
    samples: list[Sample], some_bad: list[Sample]
) -> None:
    seen: list[tuple[int, int]] = []
    ClipDataset(samples, CONFIG, "val").require_readable(2, lambda done, total: seen.append((done, total)))
    assert seen == [(i, 11) for i in range(1, 12)]
    for mode in ("val", "test"):
        with pytest.raises(VideoError, match=r"bad\.mp4: truncated"):
            ClipDataset(some_bad, CONFIG, mode).require_readable(2)  # type: ignore[arg-type]


def test_frames_a_second_are_the_same_time_in_every_video(samples: list[Sample], tmp_path: Path) -> None:
    from vmae.core.video.cache import DecodedCache
    from vmae.core.video.probe_store import cached_info

    rate = cached_info(samples[0].path).fps
    by_time, by_stride = replace(CONFIG, fps=rate / 2), replace(CONFIG, sampling_rate=2)
    cache = DecodedCache.build(samples, tmp_path, 48)
    assert cache.rate(samples[0].path) == rate
    for mode in ("train", "val", "test"):
        wanted = ClipDataset(samples, by_stride, mode)[0]["clip"]
        assert torch.equal(ClipDataset(samples, by_time, mode)[0]["clip"], wanted)
        kept = [ClipDataset(samples, c, mode, cache=cache)[0]["clip"] for c in (by_time, by_stride)]
        assert torch.equal(*kept)
    slower = ClipDataset(samples, replace(CONFIG, fps=rate), "val")[0]["clip"]
    assert not torch.equal(slower, ClipDataset(samples, by_time, "val")[0]["clip"])
    np.save(tmp_path / "a.npy", np.zeros((40, 48, 48, 3), np.uint8))
    with pytest.raises(VideoError, match=r"no_rate: data\.fps: expected a video with a frame rate"):
        ClipDataset([str(tmp_path / "a.npy")], by_time, "val")[0]
    with pytest.raises(InputError, match=r"data\.fps: expected data\.sampling=dense"):
        replace(CONFIG, fps=5.0, sampling="uniform")
