"""One form of paths, and identity of files by what is in them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vmae.core.video.annotations import read_annotations
from vmae.core.video.cache import DecodedCache
from vmae.core.video.identity import canonical, fingerprint, fingerprints, shared_videos
from vmae.core.video.probe import probe_video
from vmae.core.video.probe_store import Probes, probes_path, save_probes
from vmae.core.video.samples import Sample


def test_one_form_of_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "store/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "store/deep")
    (tmp_path / "store/a.mp4").write_bytes(b"")
    monkeypatch.chdir(tmp_path / "lists")
    place = str(tmp_path / "store/a.mp4")
    for name in ("../store/a.mp4", ".././store//a.mp4", place, f"{tmp_path}/lists/../store/a.mp4"):
        assert canonical(name) == place
    # As the file system goes: above a link is above what it points to.
    assert os.path.samefile("../link/../a.mp4", place)
    assert canonical("../link/../a.mp4") == place
    assert canonical("../link/b.mp4") == str(tmp_path / "link/b.mp4")  # else a link keeps its name
    assert canonical("b..mp4") == str(tmp_path / "lists/b..mp4")


def test_lists_name_files_in_one_way_from_wherever_they_are_read(
    make_video: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("v", "lists"):
        (tmp_path / folder).mkdir()
    make_video(tmp_path / "v/1.mp4", frames=6, size=(48, 64))
    (tmp_path / "v/val.csv").write_text("1.mp4 0\n")
    (tmp_path / "lists/val.csv").write_text("../v/1.mp4 0\n")
    (tmp_path / "lists/rooted.csv").write_text("v/1.mp4 0\n")
    monkeypatch.chdir(tmp_path)
    found = [
        read_annotations("v/val.csv"),
        read_annotations(tmp_path / "v/val.csv"),
        read_annotations("lists/val.csv"),
        read_annotations("lists/../v/val.csv"),
        read_annotations("lists/rooted.csv", "."),
        read_annotations("lists/rooted.csv", f"{tmp_path}/lists/.."),
    ]
    assert {s.path for samples in found for s in samples} == {str(tmp_path / "v/1.mp4")}
    folders = {DecodedCache.build(samples, "cache", 48).folder for samples in found}
    assert len(folders) == 1
    cache = DecodedCache.build([Sample(path="v/1.mp4", label=0)], "cache", 48)
    assert cache.folder in folders
    monkeypatch.chdir(tmp_path / "lists")
    for path in ("../v/1.mp4", str(tmp_path / "v/1.mp4")):
        cache = DecodedCache(tmp_path / cache.folder)
        assert path in cache
        assert len(cache.frames(path)) == 6


@pytest.mark.parametrize("name", ["plain", "a#b", "a?b", "a%41b", "a b", "é", "a'b", "file:x"])
def test_what_a_check_remembers_is_found_beside_lists_of_any_name(
    name: str, video_kind: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    shutil.copy(video_kind("h264_bframes"), folder / "1.mp4")
    info = probe_video(folder / "1.mp4")
    save_probes(probes_path(folder / "train.csv"), [info])
    found = Probes(probes_path(folder / "train.csv")).get(str(folder / "1.mp4"))
    assert found == info


def test_a_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    a, b = tmp_path / "a.mp4", tmp_path / "b.mp4"
    for size in (1, 5000, 2**20, 2**20 + 1, 5 * 2**20):
        data = bytearray(np.random.default_rng(size).bytes(size))
        a.write_bytes(data)
        b.write_bytes(data)
        os.utime(b, ns=(1, 1))
        assert fingerprint(str(a)) == fingerprint(str(b))
        for at in (0, size - 1, *range(0, size, max(1, 2**18))):
            before = b.stat()
            data[at] ^= 1
            if at in (0, size - 1) or size <= 2**20:
                b.write_bytes(data)
                os.utime(b, ns=(before.st_atime_ns, before.st_mtime_ns))
                assert fingerprint(str(a)) != fingerprint(str(b))
            data[at] ^= 1
    # Another video of the same size and time.
    a.write_bytes(np.random.default_rng(1).bytes(3 * 2**20))
    b.write_bytes(np.random.default_rng(2).bytes(3 * 2**20))
    assert fingerprint(str(a)) != fingerprint(str(b))
    assert fingerprint(str(tmp_path / "absent")) == "absent"
    os.mkfifo(tmp_path / "pipe")
    assert fingerprints([str(tmp_path / "pipe"), str(a)]) == {
        str(tmp_path / "pipe"): "absent",
        str(a): fingerprint(str(a)),
    }


def test_a_folder_is_its_images(tmp_path: Path) -> None:
    folder = tmp_path / "v"
    folder.mkdir()
    for i in range(30):
        (folder / f"{i}.jpg").write_bytes(bytes([i]) * 100)
    first = fingerprint(str(folder))
    assert fingerprint(str(folder)) == first
    (folder / "7.jpg").write_bytes(b"x" * 100)
    changed = fingerprint(str(folder))
    assert changed != first
    (folder / "8.jpg").unlink()
    assert fingerprint(str(folder)) not in (first, changed)


def test_videos_that_two_lists_share(tmp_path: Path) -> None:
    for name, content in (
        ("a", b"one"),
        ("b", b"two"),
        ("copy", b"one"),
        ("e", b""),
        ("f", b""),
        ("c", b"six"),
    ):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "link").symlink_to(tmp_path / "b")

    def samples(*names: str) -> list[Sample]:
        return [Sample(path=str(tmp_path / n), label=0) for n in names]

    def names(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
        return sorted((Path(x).name, Path(y).name) for x, y in pairs)

    train = samples("a", "b", "e", "gone")
    assert names(shared_videos(train, samples("a", "b"))) == [("a", "a"), ("b", "b")]
    assert names(shared_videos(train, samples("link", "copy", "f", "c", "away"))) == [
        ("a", "copy"),
        ("b", "link"),
    ]
    # Other stretches of one film show something else.
    film = [Sample(path=str(tmp_path / "a"), label=0, start=k, num_frames=5) for k in (0, 5, 10)]
    assert shared_videos(film[:2], film[2:]) == []
    assert len(shared_videos(film[:2], film[1:])) == 1
