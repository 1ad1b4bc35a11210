"""Two backgrounds tried inside a training list: on whole groups, remembered, and the first where in doubt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vmae.experiments import tryout
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.recipes.small_clips import small_clips_finetune

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes by where a dot moves, before a picture that each of nine groups has for itself."""
    folder, rng = tmp_path_factory.mktemp("tried"), np.random.default_rng(0)
    lines, table = [], ["path,group"]
    for i in range(36):
        group, label = i // 4, i % 2
        if i % 4 == 0:
            picture = rng.integers(0, 255, (24, 24, 3), np.uint8)
        clip = np.tile(picture, (8, 1, 1, 1))
        for t in range(8):
            x = 2 * t + 2 if label else 18 - 2 * t
            clip[t, 8:14, x : x + 5] = 255
        np.save(folder / f"{i}.npy", clip)
        lines.append(f"{i}.npy {label}\n")
        table.append(f"{i}.npy,g{group}")
    (folder / "train.csv").write_text("".join(lines))
    (folder / "groups.csv").write_text("\n".join(table) + "\n")
    return folder / "train.csv"


def config(listed: Path) -> ExperimentConfig:
    made = small_clips_finetune()
    return replace(
        made,
        model=replace(made.model, height=24, width=24, depth=1, embed_dim=32, num_heads=2),
        data=replace(made.data, size=(24, 24), short_side=24, train_csv=str(listed), cache=False),
        train=replace(made.train, batch_size=4),
    )


def test_it_is_tried_on_whole_groups_of_the_training_list_and_remembered(
    listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tryout, "EPOCHS", 3)
    seen: list[tuple[int, int]] = []
    given = replace(config(listed), data=replace(config(listed).data, val_csv="/nowhere/val.csv"))
    found = tryout.try_backgrounds(given, tmp_path, device=CPU, progress=lambda *at: seen.append(at))
    assert found is not None and found.value in tryout.BACKGROUNDS
    assert "tried on 36 videos of the training list, 3 parts of whole groups held out in turn" in found.reason
    assert seen[-1] == (tryout.clips(36), tryout.clips(36))
    # The answer is read where nothing has changed, and nothing is trained for it.
    monkeypatch.setattr(tryout, "finetune", None)
    assert tryout.try_backgrounds(given, tmp_path, device=CPU) == found
    np.save(listed.with_name("0.npy"), np.zeros((8, 24, 24, 3), np.uint8))
    with pytest.raises(TypeError):  # another list: it would be tried again
        tryout.try_backgrounds(given, tmp_path, device=CPU)


def test_nothing_is_tried_where_no_groups_are_known(listed: Path, tmp_path: Path) -> None:
    alone = tmp_path / "train.csv"
    alone.write_text("".join(f"{listed.parent}/{i}.npy {i % 2}\n" for i in range(36)))
    assert tryout.try_backgrounds(config(alone), tmp_path, device=CPU) is None


@pytest.mark.parametrize(("right", "value"), [((30, 70), "subtract"), ((50, 54), "keep"), ((70, 30), "keep")])
def test_what_cannot_be_told_apart_keeps_the_scene(right: tuple[int, int], value: str, listed: Path) -> None:
    answers = np.stack([np.arange(100) < share for share in right]).astype(float)
    found = tryout.told(answers, config(listed))
    assert found.value == value
    assert ("not told apart: keep stays" in found.reason) == (right == (50, 54))
    assert f"keep {right[0]}.0% [" in found.reason and f"subtract {right[1]}.0% [" in found.reason
