"""The line before a training and its warnings."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vmae.core.config import override
from vmae.core.errors import InputError
from vmae.core.video.facts import ListFacts
from vmae.core.video.samples import Sample
from vmae.experiments import recipes
from vmae.experiments.outlook import outlook, shared_videos
from vmae.experiments.timing import time_steps

FACTS = ListFacts(
    videos=144, class_counts=(14,) * 9 + (18,), classes=10, frames=75, fps=30, height=128, width=170
)


def config(**changes):
    return override(recipes.get("demo_finetune"), {"data.segments": 1, **changes})


def test_the_line():
    found = outlook(config(), FACTS, seconds=75)
    assert found.line == (
        "a clip covers 39% of the median video (2.5 s); chance 10.0%; 9 batches an epoch, 10 epochs; "
        "about 1m 15s"
    )
    pretraining = outlook(recipes.get("demo_pretrain"), replace(FACTS, class_counts=(), classes=0))
    assert "chance" not in pretraining.line
    assert "about" not in pretraining.line


def test_key_frames_and_heads_without_classes():
    frames = replace(FACTS, class_counts=(), classes=0, key_frames=True, frames=27_000)
    found = outlook(recipes.get("ava_base"), frames, seconds=75)
    assert found.line == (
        "a clip spans 2.0 s around each of 144 key frames; 1 batches an epoch, 30 epochs; about 1m 15s"
    )
    assert not found.warnings
    numbers = override(recipes.get("small_regression"), {"data.sampling": "dense", "data.segments": 1})
    found = outlook(numbers, replace(FACTS, class_counts=(), classes=0))
    assert found.line.startswith("a clip covers ") and "chance" not in found.line
    assert any("data.sampling=uniform" in w for w in found.warnings)


def test_an_uneven_list_says_what_its_largest_class_gives():
    found = outlook(config(), replace(FACTS, class_counts=(90, 30, 24), classes=3))
    assert "chance 33.3%, the largest class alone 62.5%" in found.line


@pytest.mark.parametrize(
    ("changes", "facts", "warned"),
    [
        ({}, {}, True),
        ({"data.sampling": "uniform"}, {}, False),
        ({"data.segments": "2"}, {}, False),
        ({"data.sampling_rate": "6"}, {}, False),
        ({}, {"frames": 900}, False),  # half a minute: not one action
    ],
)
def test_a_clip_that_sees_little_of_a_short_video(changes, facts, warned):
    found = outlook(config(**changes), replace(FACTS, **facts))
    assert any("covers" in w and "data.sampling=uniform" in w for w in found.warnings) is warned


def test_more_epochs_than_the_budget_can_end():
    (warning,) = outlook(config(**{"data.sampling": "uniform"}), FACTS, seconds=600, budget_s=150).warnings
    assert warning == (
        "10 epochs take about 10m 00s, more than the budget of 2m 30s: about 2 would end in it (--epochs 2)"
    )
    assert not outlook(config(**{"data.sampling": "uniform"}), FACTS, seconds=100, budget_s=150).warnings


def test_val_inside_train(tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "link.mp4").symlink_to(tmp_path / "a.mp4")
    train = [Sample(path=str(tmp_path / "a.mp4"), label=0), Sample(path="/b.mp4", label=1)]
    val = [Sample(path=str(tmp_path / "link.mp4"), label=0), Sample(path="/c.mp4", label=1)]
    assert shared_videos(train, val) == 1
    found = outlook(config(**{"data.sampling": "uniform"}), FACTS, shared=1)
    assert found.warnings == (
        "1 videos of the held-out list are also in the training list: its numbers measure memory",
    )


@pytest.mark.parametrize(("counts", "got"), [((144,), "label 3 on all 144 videos"), ((), "no label")])
def test_one_class_is_refused(counts, got):
    with pytest.raises(InputError, match=f"expected labels of two classes or more .* got {got}"):
        outlook(config(), replace(FACTS, class_counts=counts, classes=4 if counts else 0))


def test_a_step_with_a_mask_that_looks_at_the_video_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As before every run that chooses its own threads."""
    (tmp_path / "moving.py").write_text(
        "def still(config, grid, draws, video):\n"
        "    change = video.float().flatten(1).std(1)  # every clip has one\n"
        "    assert len(change) == draws.batch\n"
        "    return draws.choice(grid.num_tokens, int(config.ratio * grid.num_tokens))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = override(recipes.get("demo_pretrain"), {"mask.type": "moving:still", "model.depth": 1})
    assert time_steps(config, 0, device=torch.device("cpu")).step_s > 0
