"""A detector on the miniature AVA: it learns, boxes follow, measuring is exact, bad lists are said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vmae.core.errors import InputError, VideoError
from vmae.core.measure.detect import (
    Detections,
    detect,
    proposed_people,
    score_detections,
    true_people,
    write_detections,
)
from vmae.core.measure.detection import frame_map
from vmae.core.measure.precision import Instances
from vmae.core.model.detector import VideoDetector, VideoDetectorConfig
from vmae.core.model.end_to_end import EndToEndConfig, EndToEndDetector
from vmae.core.train.config import TrainConfig
from vmae.core.train.detect import DetectConfig, train_detector
from vmae.core.train.optim import OptimConfig
from vmae.core.train.task import TrainResult
from vmae.core.video.annotations import read_annotations
from vmae.core.video.boxes import extend_boxes, to_pixels
from vmae.core.video.clips import ClipDataset
from vmae.core.video.coco import read_proposals
from vmae.core.video.config import DataConfig
from vmae.core.video.demo_boxes import DemoBoxesConfig, make_demo_boxes
from vmae.core.video.samples import PersonBox, Sample
from vmae.core.video.whole import WholeFrames
from vmae.core.weights.checkpoint import load_model

DATA = DataConfig(frames=4, sampling_rate=4, size=(32, 32), short_side=32, augment="none", workers=0)
CONFIG = DetectConfig(num_classes=8, drop_path=0.0)
OPTIM = OptimConfig(base_lr=0.05, warmup_epochs=1, betas=(0.9, 0.999), layer_decay=1.0)
TRAIN = TrainConfig(epochs=2, batch_size=8, log_every=1)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = DemoBoxesConfig(train_films=4, val_films=2, scenes=4, size=32, fps=8)
    return make_demo_boxes(tmp_path_factory.mktemp("boxes"), config)


def detector() -> VideoDetector:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = VideoDetectorConfig(
            frames=4, height=32, width=32, patch_size=8, embed_dim=32, depth=2, num_heads=2
        )
        return VideoDetector(config, 8)


def finder() -> EndToEndDetector:
    """One that finds its people, and drops tokens in its encoder."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = EndToEndConfig.from_encoder(
            detector().config, keep_rate=0.7, queries=6, context_depth=1, depth=3
        )
        return EndToEndDetector(config, 8)


def lists(films: Path, data: DataConfig = DATA) -> tuple[ClipDataset, WholeFrames]:
    train = ClipDataset(read_annotations(films / "train.csv", films / "films"), data, "train", 0)
    return train, WholeFrames(read_annotations(films / "val.csv", films / "films"), data, multiple=8)


def run(films: Path, run_dir: Path, **kwargs: Any) -> tuple[Any, TrainResult, list[dict[str, Any]]]:
    model = kwargs.pop("model", None) or detector()
    epochs: list[dict[str, Any]] = []
    train, val = lists(films, kwargs.pop("data", DATA))
    result = train_detector(
        model=model,
        dataset=train,
        val=val,
        run_dir=run_dir,
        classes=range(1, 9),
        report=lambda event, values: epochs.append(values) if event == "epoch" else None,
        **{"config": CONFIG, "optim": OPTIM, "train": TRAIN, **kwargs},
    )
    return model, result, epochs


def test_a_run_learns_measures_and_keeps_its_best(films: Path, tmp_path: Path) -> None:
    _, result, epochs = run(films, tmp_path / "run", train=replace(TRAIN, epochs=10), labels=list("abcdefgh"))
    losses = [e["loss"] for e in epochs]
    assert losses[-1] < 0.8 * losses[0]
    assert all(0 <= e["val/frame_map"] <= 1 for e in epochs)
    assert result.best_model_path is not None
    best, meta = load_model(result.best_model_path)
    assert isinstance(best, VideoDetector) and meta["labels"] == list("abcdefgh")
    score = max(e["val/frame_map"] for e in epochs)
    found = score_detections(detect(best, lists(films)[1]), range(1, 9))
    assert found.mean_ap == pytest.approx(score, abs=1e-6)


def test_a_killed_run_ends_with_the_same_bits(films: Path, tmp_path: Path) -> None:
    whole, _, _ = run(films, tmp_path / "whole")
    stops = iter([False, False, True])
    train = replace(TRAIN, checkpoint_every_steps=1)
    run(films, tmp_path / "halves", train=train, should_stop=lambda: next(stops))
    again, _, _ = run(films, tmp_path / "halves", train=train)
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_one_that_finds_its_people_learns_where_they_are(films: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, end_to_end=True, keep_rate=0.7)
    own = {"config": config, "train": replace(TRAIN, epochs=10)}
    _, result, epochs = run(films, tmp_path / "run", model=finder(), **own)
    losses = [e["loss"] for e in epochs]
    assert losses[-1] < 0.8 * losses[0] and result.best_model_path is not None
    best, _ = load_model(result.best_model_path)
    assert isinstance(best, EndToEndDetector) and best.config.keep_rate == 0.7
    found = detect(best, lists(films)[1])
    assert len(found.frame) == 6 * len(found.samples) and (found.box >= 0).all() and (found.box <= 1).all()
    score = max(e["val/frame_map"] for e in epochs)
    assert score_detections(found, range(1, 9)).mean_ap == pytest.approx(score, abs=1e-6)
    # Boxes as found, each score the action's times the person's, the likeliest person first.
    best.eval()
    clip = lists(films)[1].load_batch([(0, 0)])["clip"][0].permute(3, 0, 1, 2)[None]
    with torch.no_grad():
        guesses = best(clip)
    order = guesses.person[0].argsort(descending=True)
    said = guesses.person[0].sigmoid()[:, None] * guesses.actions[0].sigmoid()
    np.testing.assert_allclose(found.scores[found.frame == 0], said[order].numpy(), atol=1e-6)
    np.testing.assert_allclose(found.box[found.frame == 0], guesses.box[0][order].numpy(), atol=1e-6)


def test_a_killed_run_that_finds_its_people_ends_with_the_same_bits(films: Path, tmp_path: Path) -> None:
    own: dict[str, Any] = {"config": replace(CONFIG, end_to_end=True)}
    whole, _, _ = run(films, tmp_path / "whole", model=finder(), **own)
    stops, own["train"] = iter([False, False, True]), replace(TRAIN, checkpoint_every_steps=1)
    run(films, tmp_path / "halves", model=finder(), should_stop=lambda: next(stops), **own)
    again, _, _ = run(films, tmp_path / "halves", model=finder(), **own)
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_options_change_the_run(films: Path, tmp_path: Path) -> None:
    base = run(films, tmp_path / "a")[2][-1]["loss"]
    for k, change in enumerate(
        (replace(CONFIG, jitter=(0.4, 0.4, 0.4, 0.4)), replace(CONFIG, jitter=(0, 0, 0, 0)))
    ):
        assert run(films, tmp_path / f"b{k}", config=change)[2][-1]["loss"] != base
    flipped = run(films, tmp_path / "c", data=replace(DATA, augment="random_crop", flip=True))
    assert flipped[2][-1]["loss"] != base


@torch.no_grad()
def test_detections_are_those_of_each_clip_and_box(films: Path) -> None:
    model, (_, val) = detector().eval(), lists(films)
    found = detect(model, val, batch_size=3)
    assert len(found.frame) == sum(len(s.boxes) for s in val.samples)
    for k in (0, len(val.samples) - 1):
        sample = val.samples[k]
        clip = val.load_batch([(0, k)])["clip"][0].permute(3, 0, 1, 2)[None]
        boxes = np.array([b.box for b in sample.boxes])
        pixels = torch.from_numpy(extend_boxes(to_pixels(boxes, 32, 32), 32, 32)).float()
        expected = model(clip, pixels, torch.zeros(len(boxes), dtype=torch.int64)).sigmoid()
        rows = found.frame == k
        np.testing.assert_allclose(found.scores[rows], expected.numpy(), atol=1e-6)
        np.testing.assert_array_equal(found.box[rows], boxes)


def test_proposals_weigh_scores_and_missing_ones_are_misses(films: Path, tmp_path: Path) -> None:
    model, (_, val) = detector().eval(), lists(films)
    lines = (films / "people_val.csv").read_text().splitlines()
    first = lines[0].rsplit(",", 7)[0]
    proposals = read_proposals(films / "people_val.csv")
    found = detect(model, val, proposed_people(proposals))
    own = np.concatenate([proposals.of(s) for s in val.samples])  # type: ignore[arg-type]
    assert len(found.frame) == len(own) < len(lines)  # those below 0.8 are out
    plain = detect(model, val, proposed_people(read_proposals(films / "people_val.csv")))
    assert (found.scores <= own[:, 4:].astype(np.float32)).all()
    np.testing.assert_array_equal(plain.scores, found.scores)
    (tmp_path / "fewer.csv").write_text("".join(f"{x}\n" for x in lines if not x.startswith(f"{first},")))
    fewer = read_proposals(tmp_path / "fewer.csv")
    gone = fewer.without(val.samples)
    assert gone and score_detections(detect(model, val, proposed_people(fewer)), range(1, 9)).mean_ap >= 0
    empty = detect(model, val, lambda sample: np.empty((0, 5)))
    assert score_detections(empty, range(1, 9)).mean_ap == 0


def test_scores_are_frame_map_and_the_results_file_is_avas(tmp_path: Path) -> None:
    def person(box: tuple[float, float, float, float], *actions: int) -> PersonBox:
        return PersonBox(box=box, actions=actions, person=0)

    a, b = (0.0, 0.0, 0.4, 0.4), (0.5, 0.5, 1.0, 1.0)
    samples = [
        Sample(path="/f/x.mp4", label=-1, time_s=902.0, boxes=(person(a, 1, 2), person(b, 2))),
        Sample(path="/f/y.mp4", label=-1, time_s=3.5, boxes=(person(b, 1),)),
    ]
    found = Detections(
        samples=samples,
        frame=np.array([0, 0, 1]),
        box=np.array([a, b, a]),
        scores=np.array([[0.9, 0.2, 0.1], [0.8, 0.7, 0.1], [0.7, 0.1, 0.1]], np.float32),
        failed=[],
    )
    result = score_detections(found, [1, 2, 3])
    # Class 1: hit, miss, miss of two; class 2: hit (0.7), hit (0.2), of two.
    assert result.ap == {1: 0.5, 2: 1.0} and result.without_truth == (3,)
    by_hand = frame_map(
        Instances(source=np.array([0, 1]), label=np.array([1, 1]), extent=np.array([a, b])),
        Instances(
            source=found.frame,
            label=np.ones(3, int),
            extent=found.box,
            score=found.scores[:, 0].astype(float),
        ),
        [1],
    )
    assert by_hand.mean_ap == 0.5
    write_detections(tmp_path / "out.csv", found, [1, 2])
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[0] == "x,902,0.0000,0.0000,0.4000,0.4000,1,0.900000" and len(lines) == 6
    assert lines[-1].startswith("y,3.5,0.0000")


def test_lists_that_cannot_be_trained_on_are_refused(films: Path, tmp_path: Path) -> None:
    train, val = lists(films)
    bad = [replace(train.samples[0], boxes=(PersonBox(box=(0, 0, 1, 1), actions=(81,), person=0),))]
    cases: list[tuple[Any, str]] = [
        ([replace(train.samples[0], time_s=None)] * 8, "expected key frames with boxes"),
        (
            bad * 8,
            r"the training list: expected action ids 1 to 8 \(detect.num_classes\), got 81 in .*\.mp4 at 1 s",
        ),
    ]
    for samples, message in cases:
        with pytest.raises(InputError, match=message):
            train_detector(
                model=detector(), config=CONFIG, dataset=ClipDataset(samples, DATA), val=val, optim=OPTIM,
                train=TRAIN, run_dir=tmp_path, classes=range(1, 9),
            )  # fmt: skip
    data = replace(DATA, rand_augment="rand-m7-n4-mstd0.5-inc1")
    with pytest.raises(InputError, match="moves pixels out of their boxes"):
        run(films, tmp_path / "r", data=data)
    for change, message in (
        ({"jitter": (0.1,)}, "jitter"),
        ({"num_classes": 0}, "num_classes"),
        ({"min_score": 2}, "min_score"),
        ({"keep_rate": 0.5}, "expected detect.end_to_end with a detect.keep_rate below 1"),
        ({"end_to_end": True, "keep_rate": 0}, "keep_rate"),
        ({"end_to_end": True, "key_weight": 4}, "expected a detect.keep_rate below 1 with a"),
        ({"end_to_end": True, "keep_rate": 0.6, "key_weight": -1}, "expected detect.key_weight of 0 or more"),
        ({"end_to_end": True, "proposals": "p.csv"}, "expected no detect.proposals with detect.end_to_end"),
        ({"queries": 0}, "queries"),
    ):
        with pytest.raises(InputError, match=message):
            DetectConfig(**change)  # type: ignore[arg-type]


def test_a_bad_film_is_an_error_or_missed(films: Path) -> None:
    _, val = lists(films)
    late = replace(val.samples[0], time_s=1e6)
    with pytest.raises(VideoError, match=r"second 1e\+06|second 1000000"):
        detect(detector(), WholeFrames([late], DATA, multiple=8))
    counted = WholeFrames([late, val.samples[1]], replace(DATA, bad_eval="count"), multiple=8)
    found = detect(detector(), counted)
    assert [f["index"] for f in found.failed] == [0] and set(found.frame) == {1}
    assert score_detections(found, range(1, 9)).true_boxes.keys() >= set(late.boxes[0].actions)
    assert true_people(late).shape == (len(late.boxes), 5)
