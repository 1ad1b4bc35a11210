"""Clips around key frames: how they were cut, whole frames of any shape, films as folders of seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vmae.core.errors import InputError, VideoError
from vmae.core.video import augment
from vmae.core.video.boxes import crop_boxes, has_area, to_pixels
from vmae.core.video.clips import ClipDataset
from vmae.core.video.config import DataConfig
from vmae.core.video.samples import PersonBox, Sample
from vmae.core.video.seconds import is_second_folder, read_second_clips
from vmae.core.video.whole import WholeFrames

BOX = (0.25, 0.5, 0.5, 0.75)
DATA = DataConfig(frames=4, sampling_rate=1, size=(32, 32), short_side=40, workers=0, flip=True)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten grey frames of 80x120 with a white box at `BOX`."""
    path = tmp_path_factory.mktemp("film") / "a.npy"
    frames = np.full((10, 80, 120, 3), 60, np.uint8)
    frames[:, 40:60, 30:60] = 255
    np.save(path, frames)
    return path


def sample(path: Path, time_s: float = 0.0) -> Sample:
    box = PersonBox(box=BOX, actions=(1,), person=0)
    return Sample(path=str(path), label=-1, time_s=time_s, boxes=(box,))


@pytest.mark.parametrize("crop", ["multi_scale_crop", "random_resized_crop", "random_crop", "none"])
def test_a_batch_says_how_its_clips_were_cut(film: Path, crop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmae.core.video.probe.VideoInfo.frame_at", lambda self, second: 5)
    data = replace(DATA, augment=crop)  # type: ignore[arg-type]
    dataset = ClipDataset([sample(film)], data, "train", 0)
    flips = set()
    for epoch in range(12):
        batch = dataset.load_batch([(epoch, 0)])
        (cut,) = batch["cut"]
        assert (cut.height, cut.width) == (40, 60)
        flips.add(cut.flip)
        (box,) = crop_boxes(to_pixels(np.array([BOX]), 40, 60), cut.region, (32, 32), flip=cut.flip)
        white = batch["clip"][0, 2, :, :, 0].numpy() > 157
        if not has_area(box[None])[0]:
            assert not white.any()
            continue
        expected = np.zeros((32, 32), bool)
        x1, y1, x2, y2 = np.round(box).astype(int)
        expected[y1:y2, x1:x2] = True
        # All but the pixels along the edges, which are blends.
        assert (white != expected).sum() <= 2 * ((y2 - y1) + (x2 - x1)) + 4
    assert flips == {True, False}


def test_random_crops_are_the_published_size() -> None:
    rng = np.random.default_rng(0)
    boxes = [augment.random_box(256, 454, (224, 224), 256, rng) for _ in range(300)]
    assert {(b.height, b.width) for b in boxes} == {(224, 224)}
    assert {b.top for b in boxes} == set(range(33)) and max(b.left for b in boxes) > 220
    half = augment.random_box(128, 128, (224, 224), 256, rng)
    assert (half.height, half.width) == (112, 112)
    assert augment.random_box(90, 50, (32, 32), 0, rng)[2:] == (50, 50)


def test_whole_frames_keep_their_shape(film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmae.core.video.probe.VideoInfo.frame_at", lambda self, second: 5)
    tall = tmp_path / "tall.npy"
    np.save(tall, np.zeros((6, 50, 20, 3), np.uint8))
    missing = tmp_path / "none.mp4"
    data = replace(DATA, short_side=32, bad_eval="count")
    dataset = WholeFrames([sample(film), sample(missing), sample(tall)], data, multiple=8)
    batch = dataset.load_batch([(0, 0), (0, 1), (0, 2)])
    assert [tuple(c.shape) for c in batch["clip"]] == [(4, 32, 48, 3), (4, 80, 32, 3)]
    assert batch["index"].tolist() == [0, 2] and [f["index"] for f in batch["failed"]] == [1]
    (x1, y1, x2, y2) = (48 * BOX[0], 32 * BOX[1], 48 * BOX[2], 32 * BOX[3])
    clip = batch["clip"][0].numpy()
    assert (clip[:, int(y1) + 1 : int(y2) - 1, int(x1) + 1 : int(x2) - 1] > 200).all()
    assert dataset.size_of(360, 640) == (32, 56) and dataset.size_of(100, 101) == (32, 32)


@pytest.fixture(scope="module")
def seconds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seconds 901 (4 frames), 902 (4) and 903 (3), frame k of all of grey 20 k."""
    folder = tmp_path_factory.mktemp("seconds") / "movie"
    folder.mkdir()
    values = iter(range(11))
    for second, count in ((901, 4), (902, 4), (903, 3)):
        frames = [np.full((16, 24, 3), 20 * next(values), np.uint8) for _ in range(count)]
        np.save(folder / f"{second}.npy", np.stack(frames))
    (folder / "notes.txt").write_text("no video")
    return folder


def test_films_as_folders_of_seconds(seconds: Path) -> None:
    def grey(time_s: float, frames: int, rate: int) -> list[int]:
        return (read_second_clips(str(seconds), time_s, frames, rate)[:, 0, 0, 0] // 20).tolist()

    # The key frame is the first of its second: number 4 of all at second 902.
    assert grey(902, 4, 1) == [2, 3, 4, 5]
    assert grey(902, 4, 3) == [0, 1, 4, 7]  # -2 is before the first frame
    assert grey(903, 4, 2) == [4, 6, 8, 10]
    assert grey(903, 8, 1) == [4, 5, 6, 7, 8, 9, 10, 10]
    assert is_second_folder(str(seconds)) and not is_second_folder(str(seconds.parent))
    with pytest.raises(VideoError, match="a clip of second 904"):
        grey(904, 4, 1)


def test_a_dataset_reads_them(seconds: Path) -> None:
    data = replace(DATA, size=(16, 16), short_side=16, frames=4)
    clips = {mode: ClipDataset([sample(seconds, 902.0)], data, mode)[0]["clip"] for mode in ("train", "val")}  # type: ignore[arg-type]
    assert clips["train"].shape == (4, 16, 16, 3)
    assert (clips["val"][:, 8, 8, 0] // 20).tolist() == [2, 3, 4, 5]
    with pytest.raises(InputError):
        WholeFrames([], data, multiple=8)
