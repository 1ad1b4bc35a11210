"""The decoded cache shows what the files show, is built once, and scales as asked."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vmae.core.errors import VideoError
from vmae.core.video.cache import DecodedCache, build_cache, sweep_unfinished
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


def _damage(name: str) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        with open(folder / "frames.bin", "r+b") as f:
            f.truncate(50_000)

    def zeroed(folder: Path) -> None:
        st = (folder / "frames.bin").stat()
        with open(folder / "frames.bin", "r+b") as f:
            f.seek(20_000)
            f.write(bytes(60_000))
        os.utime(folder / "frames.bin", ns=(st.st_atime_ns, st.st_mtime_ns))  # as if nothing had been

    def longer(folder: Path) -> None:
        with open(folder / "frames.bin", "ab") as f:
            f.write(b"x")

    def swapped(folder: Path) -> None:
        data = (folder / "frames.bin").read_bytes()
        half = len(data) // 2
        (folder / "frames.bin").write_bytes(data[half:] + data[:half])

    def index(text: str) -> Callable[[Path], None]:
        return lambda folder: (folder / "index.json").write_text(text) and None

    def half(folder: Path) -> None:
        index((folder / "index.json").read_text()[:300])(folder)

    return {
        "cut": cut,
        "zeroed": zeroed,
        "longer": longer,
        "swapped": swapped,
        "no frames": lambda folder: (folder / "frames.bin").unlink(),
        "half an index": half,
        "an empty index": index(""),
        "another index": index("{}"),
        "a list for an index": index("[1, 2]"),
        "no index": lambda folder: (folder / "index.json").unlink(),
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        "cut",
        "zeroed",
        "longer",
        "swapped",
        "no frames",
        "half an index",
        "an empty index",
        "another index",
        "a list for an index",
        "no index",
    ],
)
def test_a_damaged_cache_is_built_again(name: str, samples: list[Sample], tmp_path: Path) -> None:
    cache = DecodedCache.build(samples[:3], tmp_path, 48)
    expected = [np.array(cache.frames(s.path)) for s in samples[:3]]
    _damage(name)(cache.folder)
    again = DecodedCache.build(samples[:3], tmp_path, 48)
    for s, frames in zip(samples, expected, strict=False):
        assert np.array_equal(again.frames(s.path), frames)


def test_a_copied_cache_is_as_good(samples: list[Sample], tmp_path: Path) -> None:
    first = DecodedCache.build(samples[:3], tmp_path / "a", 48)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    seen: list[tuple[int, int]] = []
    second = DecodedCache.build(
        samples[:3], tmp_path / "b", 48, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(3, 3)]  # nothing was decoded
    assert np.array_equal(first.frames(samples[2].path), second.frames(samples[2].path))


def test_a_video_replaced_by_one_of_its_size_and_time_is_decoded_anew(
    make_video: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_video(tmp_path / "a.avi", codec="rawvideo", frames=8, size=(64, 64))
    sample = Sample(path=str(path), label=0)
    before = DecodedCache.build([sample], tmp_path / "cache", 64)
    st, data = path.stat(), bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = bytes(x ^ 0xFF for x in data[middle : middle + 400])
    path.write_bytes(data)
    os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))
    after = DecodedCache.build([sample], tmp_path / "cache", 64)
    assert not np.array_equal(before.frames(str(path)), after.frames(str(path)))
    path.touch()  # another time alone is the same video
    assert DecodedCache.build([sample], tmp_path / "cache", 64).folder == after.folder


def test_what_a_killed_build_left_is_removed_and_a_living_one_s_is_not(
    samples: list[Sample], tmp_path: Path
) -> None:
    left, others = tmp_path / ".0123456789.77.tmp", tmp_path / ".abcdef0123.78.tmp"
    for folder in (left, others):
        folder.mkdir()
        (folder / "frames.bin").write_bytes(bytes(100))
    with open(tmp_path / "abcdef0123.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        DecodedCache.build(samples[:1], tmp_path, 24)
        assert not left.exists()
        assert others.exists()
    assert sweep_unfinished(tmp_path) == [others]


def test_a_disk_without_room_is_said_before_anything_is_decoded(
    samples: list[Sample], tmp_path: Path
) -> None:
    """A mapped file on a full disk ends the process with SIGBUS; here files may have 100 kB."""
    code = (
        "import resource, sys; from vmae.core.video.cache import DecodedCache;"
        "from vmae.core.video.samples import Sample; from vmae.core.errors import InputError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: DecodedCache.build([Sample(path=p, label=0) for p in sys.argv[2:]], sys.argv[1], 48)\n"
        "except InputError as e: print(e)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path, *(s.path for s in samples[:3])],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "of room for the decoded clips (data.cache), found " in done.stdout
    assert "data.cache=false" in done.stdout
    assert not list(tmp_path.glob(".*.tmp"))


def test_workers_go_on_when_the_cache_is_deleted(samples: list[Sample], tmp_path: Path) -> None:
    cache = DecodedCache.build(samples, tmp_path, 48)
    loader = build_loader(ClipDataset(samples, replace(CONFIG, workers=1), cache=cache), 4)
    first = contents(loader)
    shutil.rmtree(tmp_path)
    assert contents(loader) == first
