"""Folders of images: which of them are frames, and what an odd one does."""

from __future__ import annotations

import os
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from vmae.core.errors import VideoError
from vmae.core.video.check import check_file
from vmae.core.video.clips import ClipDataset
from vmae.core.video.config import DataConfig
from vmae.core.video.probe import probe_video
from vmae.core.video.reader import read_clip
from vmae.core.video.samples import Sample
from vmae.core.video.stills import frame_files, read_image, refuse_pipes

# Names of a folder -> the frames among them, or None where that cannot be told.
FOLDERS: dict[str, tuple[str, str | None]] = {
    "in the order of their numbers": ("img_10.jpg img_2.jpg img_1.jpg", "img_1.jpg img_2.jpg img_10.jpg"),
    "flow of mmaction2": ("img_1.jpg img_2.jpg flow_x_1.jpg flow_y_1.jpg", "img_1.jpg img_2.jpg"),
    "flow as x and y": ("image_1.jpg image_2.jpg x_1.jpg x_2.jpg y_1.jpg y_2.jpg", "image_1.jpg image_2.jpg"),
    "more flow than frames": (
        "flow_x_1.jpg flow_x_2.jpg flow_x_3.jpg rgb_1.jpg rgb_2.jpg",
        "rgb_1.jpg rgb_2.jpg",
    ),
    "depth beside numbers": ("01.png 02.png depth_01.png depth_02.png", "01.png 02.png"),
    "masks beside a name": ("dog_1.jpg dog_2.jpg dog_mask_1.png dog_mask_2.png", "dog_1.jpg dog_2.jpg"),
    "flow alone": ("flow_x_1.jpg flow_x_2.jpg", "flow_x_1.jpg flow_x_2.jpg"),
    "two flows": ("flow_x_1.jpg flow_x_2.jpg flow_y_1.jpg flow_y_2.jpg", None),
    "two cameras": ("left_1.jpg left_2.jpg right_1.jpg right_2.jpg", None),
    "the same numbers twice": ("img_1.jpg img_2.jpg img_1.png img_2.png", None),
    "suffixes that share no number": ("img_1.jpg img_2.JPEG img_3.png", "img_1.jpg img_2.JPEG img_3.png"),
    "names without numbers": ("c.png a.png b.png", "a.png b.png c.png"),
    "hashes": ("a3f.png 09bc.png f00d1.png", "09bc.png a3f.png f00d1.png"),
    "several numbers": ("cam1_2024_2.jpg cam1_2024_1.jpg", "cam1_2024_1.jpg cam1_2024_2.jpg"),
    "hidden ones": ("1.jpg 2.jpg ._1.jpg .2.jpg", "1.jpg 2.jpg"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_which_images_are_frames(name: str, tmp_path: Path) -> None:
    names, frames = FOLDERS[name]
    for n in names.split():
        (tmp_path / n).write_bytes(b"")
    if frames is None:
        with pytest.raises(VideoError, match=r"corrupt: expected the images of one video, got several kinds"):
            frame_files(str(tmp_path))
    else:
        assert frame_files(str(tmp_path)) == frames.split()


def test_a_clip_is_of_the_frames_whatever_the_list_says(tmp_path: Path) -> None:
    for i in range(1, 9):
        cv2.imwrite(str(tmp_path / f"img_{i:05}.png"), np.full((8, 8, 3), 20 * i, np.uint8))
        cv2.imwrite(str(tmp_path / f"flow_x_{i:05}.png"), np.full((8, 8, 3), 3, np.uint8))
    assert probe_video(tmp_path).num_frames == 8
    config = DataConfig(frames=8, sampling_rate=1, size=(8, 8), short_side=0, sampling="uniform", workers=0)
    for listed in ({"num_frames": 8}, {"start": 1}):
        sample = Sample(path=str(tmp_path), label=0, **listed)
        clip = ClipDataset([sample], config, "val")[0]["clip"]
        assert clip[:, 0, 0, 0].tolist() == [20 * i for i in range(1, 9)]


def png(width: int, height: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a link to nothing": (lambda p: p.symlink_to("nowhere"), "missing"),
    "a link to itself": (lambda p: p.symlink_to(p.name), "unreadable"),
    "a folder": (lambda p: p.mkdir(), "corrupt"),
    "a link to a folder": (lambda p: p.symlink_to(".."), "corrupt"),
    "no bytes": (lambda p: p.write_bytes(b""), "corrupt"),
    "text": (lambda p: p.write_bytes(b"404: not found"), "corrupt"),
    "an endless device": (lambda p: p.symlink_to("/dev/zero"), "not_a_file"),
    "65535 squared": (lambda p: p.write_bytes(png(65535, 65535, bytes(1000))), "too_large"),
    "30000 squared": (lambda p: p.write_bytes(png(30000, 30000, bytes(90_001 * 30))), "too_large"),
    "another size": (lambda p: p.write_bytes(png(4, 6, bytes(13 * 6))), "corrupt"),
    "cut": (lambda p: p.write_bytes(png(8, 8, bytes(25 * 8))[:40]), "corrupt"),
}


@pytest.mark.parametrize("place", [0, 5, 11])
@pytest.mark.parametrize("name", ODD)
def test_one_odd_image_makes_a_bad_video_and_no_more(name: str, place: int, tmp_path: Path) -> None:
    for folder in ("good", "bad"):
        (tmp_path / folder).mkdir()
        for i in range(12):
            cv2.imwrite(str(tmp_path / folder / f"img_{i:05}.png"), np.full((8, 8, 3), 20 * i, np.uint8))
    odd = tmp_path / f"bad/img_{place:05}.png"
    odd.unlink()
    make, reason = ODD[name]
    make(odd)
    samples = [Sample(path=str(tmp_path / f), label=0) for f in ("good", "bad")]
    report = check_file(samples[1])
    assert (report.status, report.reason) == ("bad", reason)
    assert check_file(samples[0]).status == "ok"
    # Training leaves the video out where the clip needs the image, and says the same of it.
    config = DataConfig(frames=12, sampling_rate=1, sampling="uniform", size=(8, 8), short_side=0, workers=0)
    batch = ClipDataset(samples, config).load_batch([(0, 0), (0, 1)])
    assert batch["index"].tolist() == [0]
    assert [(f["index"], f["reason"]) for f in batch["failed"]] == [(1, reason)]


def test_a_list_may_name_a_clip_that_only_claims_its_size(tmp_path: Path) -> None:
    with open(tmp_path / "big.npy", "wb") as f:
        header = {"descr": "|u1", "fortran_order": False, "shape": (16, 60_000, 60_000, 3)}
        np.lib.format.write_array_header_1_0(f, header)
        f.truncate(f.tell() + 16 * 60_000 * 60_000 * 3)  # a hole: no bytes on the disk
    with pytest.raises(VideoError, match=r"too_large|unreadable: .*allocate"):
        probe_video(tmp_path / "big.npy")


def test_the_size_in_a_head_is_the_size_of_the_image(tmp_path: Path) -> None:
    picture = Image.fromarray(np.zeros((31, 47, 3), np.uint8))
    for name, options in (
        ("a.png", {}),
        ("a.bmp", {}),
        ("a.jpg", {}),
        ("b.jpg", {"progressive": True}),
        ("a.webp", {}),
        ("b.webp", {"lossless": True}),
    ):
        picture.save(tmp_path / name, **options)
        folder = tmp_path / f"f_{name}"
        folder.mkdir()
        os.rename(tmp_path / name, folder / name)
        info = probe_video(folder)
        assert (info.height, info.width) == (31, 47)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    turned = tmp_path / "turned"
    turned.mkdir()
    picture.save(turned / "1.jpg", exif=exif)
    assert read_clip(turned, [0]).shape == (1, 47, 31, 3)


def test_a_folder_that_changes_after_its_probe(tmp_path: Path) -> None:
    for i in range(4):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.zeros((8, 8, 3), np.uint8))
    info = probe_video(tmp_path)
    (tmp_path / "1.png").unlink()
    with pytest.raises(VideoError, match="truncated: expected 4 images, the folder has 3"):
        read_clip(tmp_path, [3], info=info)


def test_a_pipe_is_waited_for_and_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = cv2.imencode(".png", np.full((8, 6, 3), 200, np.uint8))[1].tobytes()
    os.mkfifo(tmp_path / "img_0.png")
    writer = threading.Timer(0.3, (tmp_path / "img_0.png").write_bytes, [image])
    writer.start()
    assert read_image(str(tmp_path), "img_0.png").shape == (8, 6, 3)
    writer.join()
    monkeypatch.setattr("vmae.core.video.stills.DEFAULT_TIMEOUT_S", 0.2)
    with pytest.raises(VideoError, match="a pipe to which nothing was written"):
        read_image(str(tmp_path), "img_0.png")
    with pytest.raises(VideoError, match="got a pipe"):
        refuse_pipes(str(tmp_path))
