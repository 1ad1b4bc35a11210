"""The decoded cache shows what the files show, is built once, and scales as asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vmae.core.errors import VideoError
from vmae.core.video.cache import DecodedCache, build_cache
from vmae.core.video.clips import ClipDataset
from vmae.core.video.config import DataConfig
from vmae.core.video.loader import build_loader
from vmae.core.video.samples import Sample

CONFIG = DataConfig(frames=4, sampling_rate=2, size=(32, 32), short_side=48, flip=True, workers=0)


def contents(batches: Any) -> list[tuple[list[int], int]]:
    return [(b["index"].tolist(), int(b["clip"].long().sum())) for b in batches]


def test_cache_gives_the_same_frames_and_is_built_once(
    samples: list[Sample], some_bad: list[Sample], tmp_path: Path
) -> None:
    config = replace(CONFIG, cache=True, max_bad_share=0.5)
    seen: list[tuple[int, int]] = []
    folder = tmp_path / "cache"
    cache = build_cache(some_bad, config, folder, progress=lambda done, total: seen.append((done, total)))
    assert isinstance(cache, DecodedCache)
    assert seen[-1] == (12, 12)
    assert len(cache) == 11
    plain = contents(build_loader(ClipDataset(samples, CONFIG), 4))
    assert contents(build_loader(ClipDataset(samples, CONFIG, cache=cache), 4)) == plain
    assert contents(build_loader(ClipDataset(samples, replace(CONFIG, workers=1), cache=cache), 4)) == plain
    with pytest.raises(VideoError, match="truncated"):
        cache.frames(some_bad[6].path)
    built = (cache.folder / "frames.bin").stat().st_mtime_ns
    again = build_cache(some_bad, config, folder)
    assert again is not None
    assert (again.folder / "frames.bin").stat().st_mtime_ns == built
    # An unfinished build is not taken for a whole one, and a changed file is decoded again.
    (cache.folder / "index.json").unlink()
    assert len(DecodedCache.build(some_bad, folder, 48)) == 11
    Path(some_bad[6].path).write_bytes(Path(samples[0].path).read_bytes())
    assert len(DecodedCache.build(some_bad, folder, 48)) == 12
    assert build_cache(samples, CONFIG, folder) is None


def test_cache_scales_down_and_never_up(samples: list[Sample], tmp_path: Path) -> None:
    assert DecodedCache.build(samples[:1], tmp_path, 24).frames(samples[0].path).shape == (20, 24, 32, 3)
    assert DecodedCache.build(samples[:1], tmp_path, 96).frames(samples[0].path).shape == (20, 48, 64, 3)


@pytest.mark.slow
def test_a_hanging_file_does_not_hang_the_cache(a_hang: list[Sample], tmp_path: Path) -> None:
    cache = DecodedCache.build(a_hang, tmp_path / "cache", 48, timeout_s=1.0)
    assert len(cache) == 7
    with pytest.raises(VideoError, match="timeout: more than 3 s inside one call"):
        cache.frames(a_hang[3].path)
