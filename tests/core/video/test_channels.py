"""Clips of other channels than 3, from .npy files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vmae.core.errors import InputError, VideoError
from vmae.core.video.cache import DecodedCache
from vmae.core.video.check import check_samples
from vmae.core.video.clips import ClipDataset
from vmae.core.video.config import DataConfig
from vmae.core.video.loader import build_loader
from vmae.core.video.reader import read_clip
from vmae.core.video.samples import Sample

CONFIG = DataConfig(
    frames=4, sampling_rate=1, size=(16, 16), short_side=16, flip=True, workers=0, channels=5, augment="none"
)


@pytest.fixture
def files(tmp_path: Path) -> list[Sample]:
    """Clips of 5 channels of which the last is the first, 24 x 40 pixels."""
    found = []
    for number in range(4):
        video = np.random.default_rng(number).integers(0, 256, (8, 24, 40, 5)).astype(np.uint8)
        video[..., 4] = video[..., 0]
        np.save(tmp_path / f"{number}.npy", video)
        found.append(Sample(path=str(tmp_path / f"{number}.npy"), label=0))
    return found


@pytest.mark.parametrize("mode", ["train", "val", "test"])
def test_clips_have_them_scaled_and_cut_alike(mode: str, files: list[Sample], tmp_path: Path) -> None:
    config = replace(CONFIG, segments=2, crops=1)
    dataset = ClipDataset(files, config, mode)  # type: ignore[arg-type]
    cache = DecodedCache.build(files, tmp_path / "cache", 16, channels=5)
    batch = next(iter(build_loader(dataset, 2)))["clip"]
    assert batch.shape[1:] == (4, 16, 16, 5) and torch.equal(batch[..., 0], batch[..., 4])
    assert not torch.equal(batch[..., 0], batch[..., 1])
    kept = ClipDataset(files, config, mode, cache=cache)  # type: ignore[arg-type]
    assert torch.equal(kept[1]["clip"], dataset[1]["clip"])
    assert cache.frames(files[0].path).shape == (8, 16, 27, 5)


def test_another_number_is_refused(files: list[Sample], tiny_videos: Path) -> None:
    with pytest.raises(VideoError, match=r"expected uint8 \[T, H, W, 3\], got uint8 \[8, 24, 40, 5\]"):
        ClipDataset(files, replace(CONFIG, channels=3))[0]
    with pytest.raises(VideoError, match=r"expected uint8 \[T, H, W, 3\]"):
        read_clip(files[0].path, [0])
    with pytest.raises(VideoError, match=r"channels: expected 5 channels .* got a video's 3"):
        ClipDataset([str(next(tiny_videos.glob("*.mp4")))], CONFIG)[0]
    with pytest.raises(InputError, match=r"data\.color_jitter: expected data\.channels=3"):
        replace(CONFIG, color_jitter=0.4)


def test_a_check_finds_them_whole(files: list[Sample]) -> None:
    result = check_samples(files, workers=1)
    assert [r.status for r in result.reports] == ["ok"] * 4
