"""`vmae probe` on a held-out list and over folds: numbers with their intervals, and who was right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from vmae.cli.main import main
from vmae.core.model.videomae import VideoMAE, VideoMAEConfig
from vmae.core.weights.checkpoint import save_model
from vmae.experiments.answers import read_answers
from vmae.experiments.layout import RunsDir
from vmae.experiments.runs import find
from vmae.experiments.tracking import store_at

GROUPS, EACH = 6, 4


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes by brightness, six groups of which every one has them all; a model of random weights."""
    folder, rng = tmp_path_factory.mktemp("probe"), np.random.default_rng(0)
    lines, table = [], ["path,group"]
    for i in range(GROUPS * EACH):
        label = i % 3
        np.save(folder / f"{i}.npy", rng.integers(60 * label, 60 * label + 90, (8, 32, 32, 3), np.uint8))
        lines.append(f"{i}.npy {label}\n")
        table.append(f"{i}.npy,g{i // EACH}")
    (folder / "train.csv").write_text("".join(lines))
    (folder / "val.csv").write_text("".join(lines[:6]))
    (folder / "groups.csv").write_text("\n".join(table) + "\n")
    config = VideoMAEConfig.from_size("tiny", frames=4, height=32, width=32, depth=1, embed_dim=32)
    save_model(folder / "model", VideoMAE(config), {"job": "random weights"})
    return folder


def probe(lists: Path, runs: Path, *more: object) -> str:
    given = ["--checkpoint", lists / "model", "--data", lists / "train.csv", "--runs-dir", runs, *more]
    result = CliRunner().invoke(main, ["probe", *map(str, given)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout if "--json" in more else result.output


def test_a_held_out_number_has_its_interval(lists: Path, tmp_path: Path) -> None:
    found = json.loads(probe(lists, tmp_path, "--json"))
    assert found["videos"] == 6 and found["top1_low"] <= found["top1"] <= found["top1_high"]
    said = probe(lists, tmp_path)
    assert "on 6 held-out videos" in said and f"top-1 {found['top1']:.1%} [" in said


def test_every_video_is_held_out_once_a_seed_and_groups_stay_whole(lists: Path, tmp_path: Path) -> None:
    said = probe(lists, tmp_path, "--folds", 3, "--seeds", 2)
    assert "sampling: uniform" in said  # nobody says how clips were cut for the bare model
    assert "folds of whole groups of" in said and "24 held-out videos, 3 folds and 2 seeds" in said
    name = "pretrain-linear-probe-folds-1"
    answers = read_answers(RunsDir(tmp_path).run(name).answers)
    assert len(answers.paths) == GROUPS * EACH and answers.seeds == [0, 1]
    fold_of: dict[int, set[int]] = {}
    for row in answers.rows:
        fold_of.setdefault(int(Path(row.path).stem) // EACH, set()).add(row.fold)
    assert all(len(folds) == 1 for folds in fold_of.values())
    run = find(store_at(tmp_path), name)
    assert run.metrics["test/top1"] == pytest.approx(answers.interval().mean)
    assert run.metrics["test/top1"] > 0.8  # brightness is in random features too


def test_seeds_go_with_folds(lists: Path, tmp_path: Path) -> None:
    given = ["--checkpoint", lists / "model", "--data", lists / "train.csv", "--runs-dir", tmp_path]
    result = CliRunner().invoke(main, ["probe", *map(str, given), "--seeds", "2"])
    assert "--seeds: expected --folds or --shares to go with it" in str(result.exception)
