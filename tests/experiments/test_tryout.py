"""Two backgrounds tried inside a training list: on whole groups, remembered, and the first where in doubt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vmae.experiments import folds, tryout
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.layout import FoldsDir
from vmae.experiments.recipes.small_clips import small_clips_finetune


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes by where a dot, light or dark, moves before a picture that each of nine groups has."""
    folder, rng = tmp_path_factory.mktemp("tried"), np.random.default_rng(0)
    lines, table = [], ["path,group"]
    for i in range(36):
        group, label = i // 4, i % 2
        if i % 4 == 0:
            picture = rng.integers(80, 176, (24, 24, 3))
        clip, change = np.tile(picture, (8, 1, 1, 1)), 75 * rng.choice((-1, 1))
        for t in range(8):
            x = 2 * t + 2 if label else 18 - 2 * t
            clip[t, 8:14, x : x + 5] += change
        np.save(folder / f"{i}.npy", clip.astype(np.uint8))
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


def test_what_moves_tells_more_before_scenes_that_do_not(
    listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = replace(config(listed), data=replace(config(listed).data, val_csv="/nowhere/val.csv"))
    seen: list[tuple[int, int]] = []
    found = tryout.try_backgrounds(given, tmp_path, lambda *at: seen.append(at))
    assert found is not None and found.value == "subtract"
    assert "tried on 36 videos of the training list" in found.reason
    assert "3 parts of whole groups held out in turn: keep " in found.reason
    assert seen[-1] == (36, 36)
    # The answer is read where nothing has changed.
    monkeypatch.setattr(tryout, "told", None)
    assert tryout.try_backgrounds(given, tmp_path) == found
    np.save(listed.with_name("0.npy"), np.zeros((8, 24, 24, 3), np.uint8))
    with pytest.raises(TypeError):  # another list: it would be tried again
        tryout.try_backgrounds(given, tmp_path)


def test_nothing_is_tried_where_no_groups_are_known(listed: Path, tmp_path: Path) -> None:
    alone = tmp_path / "train.csv"
    alone.write_text("".join(f"{listed.parent}/{i}.npy {i % 2}\n" for i in range(36)))
    assert tryout.try_backgrounds(config(alone), tmp_path) is None


@pytest.mark.parametrize(
    ("right", "value", "end"),
    [
        ((30, 70), "subtract", "what moves tells more"),
        ((50, 54), "keep", "not told apart: keep stays"),
        ((70, 30), "keep", "the scene tells more"),
        ((5, 22), "keep", "neither is shown to beat chance (20.0%): keep stays"),
    ],
)
def test_the_scene_stays_unless_taking_it_away_is_shown_to_help(
    right: tuple[int, int], value: str, end: str
) -> None:
    found = tryout.told(np.stack([np.arange(100) < share for share in right]).astype(float), 5)
    assert found.value == value and found.reason.endswith(end)
    assert f"keep {right[0]}.0% [" in found.reason and f"subtract {right[1]}.0% [" in found.reason


def test_folds_without_groups_take_those_beside_the_list_so_that_each_fold_can_try(
    listed: Path, tmp_path: Path
) -> None:
    given = config(listed)
    names = [line.split()[0] for line in listed.read_text().splitlines()]
    spec = tmp_path / "parts.csv"
    rows = [f"{listed.parent / name},{i // 4 % 3}" for i, name in enumerate(names)]
    spec.write_text("\n".join(["path,fold", *rows]) + "\n")
    found = folds.find_folds(str(spec), given)
    assert found.said == f"folds of {spec}, groups of {listed.with_name('groups.csv')}"
    assert len(set(found.groups)) == 9
    # Cut across the groups, it says so.
    spec.write_text(
        spec.read_text().replace(f"{listed.parent / names[0]},0", f"{listed.parent / names[0]},1")
    )
    assert "1 of 9 groups are in several folds ('g0')" in folds.find_folds(str(spec), given).said
    home = FoldsDir(tmp_path / "home")
    folds.keep_lists(found, home, listed)
    inside = replace(given, data=replace(given.data, train_csv=str(home.train(0))))
    tried = tryout.try_backgrounds(inside, tmp_path)
    assert tried is not None and "tried on 24 videos" in tried.reason
