"""Near duplicates between lists are found, and only they."""

import av
import cv2
import numpy as np
import pytest

from vmae.core.video.leaks import frame_hashes, hash_videos, near_pairs

pytest.importorskip("imagehash", reason="needs the package ImageHash")


def scene(path, seed, *, size=(96, 128), shift=0, crf="18"):
    """A still scene of smooth blobs in which a small square moves."""
    rng = np.random.default_rng(seed)
    wide = cv2.resize(rng.integers(0, 255, (9, 12, 3), np.uint8), (192, 144), interpolation=cv2.INTER_CUBIC)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": crf})
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for i in range(20):
            image = wide.copy()
            image[100:116, 4 * i + shift : 4 * i + shift + 12] = 255
            image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return str(path)


def test_the_same_scene_is_found_in_another_size_quality_and_moment(tmp_path):
    a = scene(tmp_path / "a.mp4", 1)
    smaller = scene(tmp_path / "smaller.mp4", 1, size=(64, 86), crf="35")
    later = scene(tmp_path / "later.mp4", 1, shift=60)
    other = [scene(tmp_path / f"other{i}.mp4", 10 + i) for i in range(4)]
    hashes = {p: frame_hashes(p) for p in (a, smaller, later, *other)}
    found = near_pairs([a, other[0]], [smaller, later, *other[1:]], hashes)
    assert {(p.first, p.second) for p in found} == {(a, smaller), (a, later)}
    assert found == sorted(found, key=lambda p: p.bits)
    assert near_pairs([other[0]], other[1:], hashes) == []


def test_a_video_in_both_lists_is_found_even_where_it_cannot_be_read(tmp_path):
    (found,) = near_pairs(["/x/gone.mp4", "/x/b.mp4"], ["/x/gone.mp4"], {})
    assert (found.first, found.second, found.bits) == ("/x/gone.mp4", "/x/gone.mp4", 0)


def test_black_videos_are_not_each_other(tmp_path):
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", np.zeros((8, 64, 64, 3), np.uint8))
    paths = [str(tmp_path / "a.npy"), str(tmp_path / "b.npy")]
    hashes = {p: frame_hashes(p) for p in paths}
    assert hashes == {p: [] for p in paths}
    assert near_pairs(paths[:1], paths[1:], hashes) == []


def test_hashing_in_processes_leaves_bad_files_without_hashes(tmp_path):
    good, bad = scene(tmp_path / "good.mp4", 3), tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    counts = []
    found = hash_videos([good, str(bad), good], workers=1, progress=lambda d, n: counts.append((d, n)))
    assert found == {good: frame_hashes(good), str(bad): []}
    assert counts == [(1, 2), (2, 2)]
