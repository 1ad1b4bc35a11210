"""The localisation head: targets by hand, learning on made-up features, going on where it was killed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vmae.core.errors import InputError
from vmae.core.measure.localisation import temporal_map
from vmae.core.measure.precision import Instances
from vmae.core.model.localiser import Localiser, LocaliserConfig, localisation_loss, targets_of
from vmae.core.train.localise import (
    FeatureVideo,
    LocaliseConfig,
    localise,
    to_grid,
    to_seconds,
    train_localiser,
)
from vmae.core.video.demo_untrimmed import ACTIONS, DemoUntrimmedConfig, make_demo_untrimmed
from vmae.core.video.untrimmed import read_untrimmed

CONFIG = LocaliseConfig(epochs=10, batch_size=4, head=LocaliserConfig(dim=32, levels=4), lr=5e-3)
FPS = 16.0


def made_up(count: int, first_seed: int) -> list[FeatureVideo]:
    """Features that name the class inside an action, and noise."""
    videos = []
    for k in range(count):
        rng = np.random.default_rng(first_seed + k)
        x = rng.normal(0, 0.3, (120, 8)).astype(np.float32)
        at, segments, labels = 4, [], []
        while at < 95:
            length, label = int(rng.integers(6, 24)), int(rng.integers(3))
            x[at : at + length, label] += 1
            segments.append([at, at + length])
            labels.append(label)
            at += length + int(rng.integers(4, 15))
        videos.append(
            FeatureVideo(
                name=str(k), features=x, fps=FPS, duration_s=31.0,
                segments=to_seconds(np.array(segments, np.float64), FPS, CONFIG), labels=np.array(labels),
            )
        )  # fmt: skip
    return videos


def average_map(model: Localiser, videos: list[FeatureVideo], config: LocaliseConfig) -> float:
    rows = [localise(model, v, config) for v in videos]
    truth = Instances(
        source=np.repeat(np.arange(len(videos)), [len(v.labels) for v in videos]),
        label=np.concatenate([v.labels for v in videos]),
        extent=np.concatenate([v.segments for v in videos]),
    )
    found = Instances(
        source=np.repeat(np.arange(len(rows)), [len(r[1]) for r in rows]),
        label=np.concatenate([r[1] for r in rows]),
        extent=np.concatenate([r[0] for r in rows]),
        score=np.concatenate([r[2] for r in rows]),
    )
    return temporal_map(truth, found).average_map


def test_targets_are_those_of_a_case_by_hand() -> None:
    config = LocaliserConfig(levels=2, reach=4.0)
    segments, labels = torch.tensor([[2.0, 6.0], [0.0, 14.0]]), torch.tensor([1, 0])
    classes, ends = targets_of(config, 16, segments, labels, 3)
    # Level 0: the short action's middle is 4, its farther end at most 4 away; the long one reaches too far.
    assert classes[0].nonzero().tolist() == [[3, 1], [4, 1], [5, 1]]
    assert ends[0][3].tolist() == [1.0, 3.0] and ends[0][4].tolist() == [2.0, 2.0]
    # Level 1 has points 0, 2, ..., 14; the long one's middle is 7: 4, 6, 8 and 10 are within 3.
    assert classes[1].nonzero().tolist() == [[2, 0], [3, 0], [4, 0], [5, 0]]
    assert ends[1][3].tolist() == [6.0, 8.0]


def test_the_loss_is_0_where_all_is_right_and_falls_with_overlap() -> None:
    classes, ends = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[2.0, 2.0], [0.0, 0.0]])
    sure = torch.tensor([[30.0, -30.0], [-30.0, -30.0]])
    assert localisation_loss(sure, ends, classes, ends).item() == pytest.approx(0, abs=1e-5)
    # [-2, 2] against [-1, 1]: IoU a half, the same middle.
    half = torch.tensor([[1.0, 1.0], [9.0, 9.0]])
    assert localisation_loss(sure, half, classes, ends).item() == pytest.approx(0.5, abs=1e-5)
    assert torch.isfinite(localisation_loss(sure, half, torch.zeros(2, 2), ends))


def test_padding_says_nothing() -> None:
    torch.manual_seed(0)
    model = Localiser(LocaliserConfig(dim=16, levels=3), 8, 2).eval()
    x = torch.randn(1, 8, 21)
    alone = model(x, torch.ones(1, 21, dtype=torch.bool))
    mask = torch.zeros(1, 32, dtype=torch.bool)
    mask[:, :21] = True
    padded = model(torch.cat((x, torch.randn(1, 8, 11)), 2) * mask[:, None], mask)
    for a, b, m in zip(alone[0], padded[0], padded[2], strict=True):
        assert torch.allclose(a[0], b[0][m[0]], atol=1e-5)


def test_seconds_lie_on_the_grid_as_actionformer_has_it() -> None:
    config = LocaliseConfig(window=16, stride=4)
    seconds = np.array([0.0, 1.5, 10.0])
    grid = to_grid(seconds, 30.0, config)
    assert np.allclose(grid, (seconds * 30.0 - 0.5 * 16) / 4)
    assert np.allclose(to_seconds(grid, 30.0, config), seconds)


def test_it_learns_and_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    train, test = made_up(16, 0), made_up(4, 1000)
    whole = train_localiser(train, 3, CONFIG)
    assert average_map(whole, test, CONFIG) > 0.7
    assert average_map(Localiser(CONFIG.head, 8, 3).eval(), test, CONFIG) < 0.1

    class Killed(Exception):
        pass

    def die(epoch: int, loss: float) -> None:
        if epoch == 4:
            raise Killed

    with pytest.raises(Killed):
        train_localiser(train, 3, CONFIG, state=tmp_path / "s.pt", report=die)
    heard: list[int] = []
    resumed = train_localiser(
        train, 3, CONFIG, state=tmp_path / "s.pt", report=lambda epoch, loss: heard.append(epoch)
    )
    assert heard == list(range(5, 11))
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(InputError, match="a training by this configuration"):
        train_localiser(train, 3, replace(CONFIG, lr=1e-4), state=tmp_path / "s.pt")


def test_nothing_to_learn_is_said() -> None:
    empty = replace(made_up(1, 0)[0], segments=np.empty((0, 2)), labels=np.empty(0, np.int64))
    with pytest.raises(InputError, match="expected actions in the videos to train on"):
        train_localiser([empty], 3, CONFIG)


GOOD = {"label": "x", "segment": [1, 3]}
VIDEO = {"subset": "Validation", "duration": 10.0, "fps": 25, "annotations": []}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "expected a 'database' of videos"),
        ({"database": {"a": {**VIDEO}}}, "expected at least one action"),
        ({"database": {"a": {**VIDEO, "annotations": [{"label": "x"}]}}}, "expected label and segment"),
        ({"database": {"a": {**VIDEO, "annotations": [{"label": "x", "segment": [3, 1]}]}}}, "0 <= start"),
        ({"database": {"a": {**VIDEO, "fps": 0, "annotations": [GOOD]}}}, "fps: expected a number above 0"),
    ],
)
def test_bad_annotations_are_one_line(content: object, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(InputError) as error:
        read_untrimmed(tmp_path / "a.json")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_actions_past_the_end_are_counted(tmp_path: Path) -> None:
    rows = [{"label": "b", "segment": [1, 12]}, {"label": "a", "segment": [11, 12]}]
    content = {"database": {"v": {**VIDEO, "annotations": [*rows, {"label": "a", "segment": [2, 2]}]}}}
    (tmp_path / "a.json").write_text(json.dumps(content))
    found = read_untrimmed(tmp_path / "a.json")
    assert found.left_out == 2 and found.classes == ("a", "b")
    assert found.videos[0].segments.tolist() == [[1.0, 10.0]] and found.subsets() == ("validation", "test")
    with pytest.raises(
        InputError, match="expected videos of the subset 'test' in the annotations, got those of validation"
    ):
        found.subset("test")


def test_the_built_in_videos_are_what_their_annotations_say(tmp_path: Path) -> None:
    from vmae.core.video.probe import probe_video

    config = DemoUntrimmedConfig(train_videos=1, test_videos=1, trimmed_per_class=5, size=32, fps=8)
    folder = make_demo_untrimmed(tmp_path, config)
    found = read_untrimmed(folder / "annotations.json")
    assert set(found.classes) <= set(ACTIONS) and found.left_out == 0
    for video in found.videos:
        info = probe_video(str(folder / "videos" / f"{video.name}.mp4"))
        assert info.num_frames == round(video.duration_s * 8)  # type: ignore[operator]
        assert (video.segments[:, 1] - video.segments[:, 0] >= 1.4).all() and len(video.labels) >= 3
        assert (video.segments[1:, 0] > video.segments[:-1, 1]).all()
    assert len((folder / "trimmed/train.csv").read_text().splitlines()) == 24
    make_demo_untrimmed(tmp_path, config)
    with pytest.raises(InputError, match="a set of this configuration"):
        make_demo_untrimmed(tmp_path, replace(config, fps=16))
