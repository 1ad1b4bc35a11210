"""Multi-view evaluation equals a slow, plain re-computation; nothing is dropped, merged or replaced."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vmae.core.errors import InputError, VideoError
from vmae.core.measure.evaluate import (
    VideoPrediction,
    confusion_picture,
    evaluate,
    summarise,
    write_predictions,
)
from vmae.core.model.classifier import VideoClassifier, VideoClassifierConfig
from vmae.core.video.annotations import read_annotations
from vmae.core.video.clips import ClipDataset
from vmae.core.video.config import DataConfig
from vmae.core.video.demo_data import make_demo_data
from vmae.core.video.reader import read_clip
from vmae.core.video.samples import Sample

FRAMES, RATE, SEGMENTS, CROPS = 4, 3, 3, 3
HEIGHT, WIDTH = 112, 64
DATA = DataConfig(
    frames=FRAMES,
    sampling_rate=RATE,
    size=(HEIGHT, WIDTH),
    short_side=0,
    segments=SEGMENTS,
    crops=CROPS,
    workers=0,
)


@pytest.fixture(scope="module")
def built_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "data"
    make_demo_data(folder, clips_per_class=2, seconds=1.0, workers=1, progress="silent")
    return folder


@pytest.fixture(scope="module")
def model() -> VideoClassifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = VideoClassifierConfig(
            frames=FRAMES, height=HEIGHT, width=WIDTH, patch_size=16,
            embed_dim=32, depth=1, num_heads=2, init_scale=5.0,
        )  # fmt: skip
        return VideoClassifier(config, 12).eval()


@torch.no_grad()
def plain_probs(model: VideoClassifier, path: str, num_frames: int) -> np.ndarray:
    """One view at a time, from the definition: thin, cut evenly spread clips, cut left, middle and right."""
    video = read_clip(path, np.arange(num_frames))  # [frames, 112, 112, 3]
    thinned = video[::RATE]
    probs = []
    for segment in range(SEGMENTS):
        start = int(segment * (len(thinned) - FRAMES) / (SEGMENTS - 1))
        for crop in range(CROPS):
            left = int(crop * (video.shape[2] - WIDTH) / (CROPS - 1))
            clip = torch.from_numpy(thinned[start : start + FRAMES, :, left : left + WIDTH].copy())
            logits = model(clip.permute(3, 0, 1, 2)[None].float() / 255)
            probs.append(torch.softmax(logits[0], 0).numpy())
    return np.mean(probs, 0)


def test_multi_view_evaluation_equals_the_plain_computation(built_in: Path, model: VideoClassifier) -> None:
    samples = read_annotations(built_in / "val.csv") + read_annotations(built_in / "train.csv")[:6]
    result = evaluate(model, ClipDataset(samples, DATA, "test"), num_classes=12, batch_size=5)
    assert [p.path for p in result.predictions] == [s.path for s in samples]
    right = []
    for sample, got in zip(samples, result.predictions, strict=True):
        want = plain_probs(model, sample.path, 16)
        assert got.views == SEGMENTS * CROPS and got.probs is not None
        np.testing.assert_allclose(got.probs, want, atol=2e-6)
        right.append(int(want.argmax()) == sample.label)
    assert result.top1 == pytest.approx(np.mean(right))


def test_the_batch_size_does_not_matter(built_in: Path, model: VideoClassifier) -> None:
    samples = read_annotations(built_in / "val.csv")
    one, many = (
        evaluate(model, ClipDataset(samples, DATA, "test"), num_classes=12, batch_size=b) for b in (1, 7)
    )
    for a, b in zip(one.predictions, many.predictions, strict=True):
        np.testing.assert_allclose(a.probs, b.probs, atol=1e-6)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_videos_of_one_name_in_two_folders_stay_two(
    built_in: Path, model: VideoClassifier, tmp_path: Path
) -> None:
    first, second = read_annotations(built_in / "val.csv")[:2]
    paths = []
    for folder, sample in (("a", first), ("b", second)):
        (tmp_path / folder).mkdir()
        paths.append(shutil.copy(sample.path, tmp_path / folder / "clip.mp4"))
    samples = [Sample(path=str(p), label=i) for i, p in enumerate(paths)]
    result = evaluate(model, ClipDataset(samples, DATA, "test"), num_classes=12)
    assert len(result.predictions) == 2
    assert not np.allclose(result.predictions[0].probs, result.predictions[1].probs)  # type: ignore[arg-type]
    write_predictions(tmp_path / "out.csv", result)
    rows = rows_of(tmp_path / "out.csv")
    assert [r["path"] for r in rows] == [str(p) for p in paths]
    assert rows[1]["label"] == "1" and rows[1]["views"] == "9"
    assert float(rows[0]["prob1"]) == pytest.approx(float(result.predictions[0].probs.max()), abs=1e-6)  # type: ignore[union-attr]


def test_an_unreadable_video_stops_it_or_counts_as_wrong(
    built_in: Path, model: VideoClassifier, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    good = read_annotations(built_in / "val.csv")[0]
    samples = [good, Sample(path=str(bad), label=1)]
    with pytest.raises(VideoError, match=r"bad\.mp4"):
        evaluate(model, ClipDataset(samples, DATA, "test"), num_classes=12)
    counted = replace(DATA, bad_eval="count")
    result = evaluate(model, ClipDataset(samples, counted, "test"), num_classes=12)
    assert result.unreadable == 1 and result.predictions[1].probs is None
    assert result.top1 in (0.0, 0.5) and result.confusion.sum() == 1
    write_predictions(tmp_path / "out.csv", result)
    row = rows_of(tmp_path / "out.csv")[1]
    assert (row["correct"], row["views"]) == ("0", "0") and row["error"]


def prediction(label: int, probs: list[float] | None, index: int = 0) -> VideoPrediction:
    array = None if probs is None else np.array(probs, np.float32)
    return VideoPrediction(index=index, path=f"{index}.mp4", label=label, probs=array, views=1)


def test_accuracies_by_hand() -> None:
    """7 classes. Class 0: two videos, one right. Class 1: one, right within the top 5. Class 2: unread."""
    result = summarise(
        [
            prediction(0, [0.4, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1], 0),
            prediction(0, [0.0, 0.1, 0.2, 0.3, 0.15, 0.14, 0.11], 1),
            prediction(1, [0.2, 0.12, 0.15, 0.18, 0.05, 0.3, 0.0], 2),
            prediction(2, None, 3),
        ],
        7,
    )
    assert result.top1 == pytest.approx(1 / 4)
    assert result.top5 == pytest.approx(2 / 4)
    assert result.mean_class == pytest.approx((1 / 2 + 0 + 0) / 3)
    assert result.confusion[0, 0] == 1 and result.confusion[0, 3] == 1 and result.confusion[1, 5] == 1
    assert result.confusion.sum() == 3
    assert result.loss == pytest.approx(-np.mean([np.log(0.4), np.log(1e-12), np.log(0.12)]), rel=1e-5)


def test_labels_without_a_class_are_refused() -> None:
    with pytest.raises(InputError, match=r"labels 0 to 1 \(the checkpoint has 2 classes\); got 2 to 2"):
        summarise([prediction(2, [0.5, 0.5])], 2)
    with pytest.raises(InputError, match="at least one video"):
        summarise([], 2)


def test_the_confusion_picture_shows_the_diagonal() -> None:
    diagonal, off = np.eye(5, dtype=np.int64) * 3, np.roll(np.eye(5, dtype=np.int64) * 3, 1, 1)
    a, b = confusion_picture(diagonal, list("abcde")), confusion_picture(off, list("abcde"))
    assert a.dtype == np.uint8 and a.ndim == 3 and a.shape[2] == 3 and min(a.shape[:2]) > 300
    assert (a != b).any()
