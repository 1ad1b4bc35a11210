"""Pre-training on lists as people have them: no labels, no held-out list, several lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmae.cli.main import run
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.request import held_out_beside

SMALL = (
    "model.frames=4", "model.height=32", "model.width=32", "model.tubelet_size=2", "model.depth=1",
    "model.embed_dim=32", "data.frames=4", "data.size=32,32", "data.short_side=32", "data.sampling_rate=1",
    "data.workers=0", "train.batch_size=8", "train.picture_every=0", "evaluation_ratio=0.75",
)  # fmt: skip


def vmae(*argv: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        run([str(a) for a in argv])
    return int(stopped.value.code or 0)


def pretrain(runs: Path, name: str, *data: object) -> int:
    given = ["--recipe", "demo_pretrain", "--epochs", 1, "--threads", 1, "--run-name", name, "--set", *SMALL]
    return vmae("pretrain", "--runs-dir", runs, *data, *given)


def test_paths_alone_and_no_held_out_list_are_enough(
    tiny_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [line.rsplit(" ", 1)[0] for line in (tiny_videos / "train.csv").read_text().splitlines()]
    bare = tmp_path / "all.csv"
    bare.write_text("".join(f"{tiny_videos / p}\n" for p in paths))
    assert pretrain(tmp_path / "runs", "bare", "--data", bare) == 0
    out = capsys.readouterr().out
    assert "bare: loss" in out and "on held-out videos" not in out
    assert "vmae probe --run bare --data LABELLED_LIST" in out
    assert vmae("finetune", "--runs-dir", tmp_path / "runs", "--data", bare, "--val", bare) == 2
    assert "two classes or more" in capsys.readouterr().err


def test_several_lists_and_their_weights(
    tiny_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, val = tiny_videos / "train.csv", tiny_videos / "val.csv"
    assert pretrain(tmp_path / "runs", "both", "--data", f"{train}:2", "--data", val, "--val", val) == 0
    shown = capsys.readouterr()
    videos = 2 * len(train.read_text().splitlines()) + len(val.read_text().splitlines())
    assert f"{videos // 8} batches an epoch" in shown.err
    assert "error during training on val.csv: " in shown.out and "after epoch 1" in shown.out
    assert "(1.0 is predicting each patch's mean)" in shown.out
    assert f"vmae probe --run both --runs-dir {tmp_path / 'runs'}\n" in shown.out
    config = ExperimentConfig.load(tmp_path / "runs" / "both" / "config.yaml")
    assert config.data.train_weight == 2 and config.data.more_lists == (str(val),)
    two = ["--data", train, "--data", val, "--val", val]
    assert vmae("finetune", "--runs-dir", tmp_path / "runs", "--recipe", "demo_finetune", *two) == 2
    assert "expected one list where labels are learnt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("train", "found"),
    [
        ("train.csv", "val.csv"),
        ("train.clean.csv", "val.clean.csv"),
        ("mine.clean.csv", "val.clean.csv"),
        ("train_small.csv", "val_small.csv"),
        ("other.csv", "val.csv"),
    ],
)
def test_the_held_out_list_beside(train: str, found: str, tmp_path: Path) -> None:
    for name in ("val.csv", "val.clean.csv", "val_small.csv"):
        (tmp_path / name).write_text("a.mp4 0\n")
    assert held_out_beside(tmp_path / train, None) == tmp_path / found


def test_pretraining_on_other_channels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    for number in range(8):
        video = np.random.default_rng(number).integers(0, 256, (6, 32, 32, 2)).astype(np.uint8)
        np.save(tmp_path / f"{number}.npy", video)
    listed = tmp_path / "flow.csv"
    listed.write_text("".join(f"{number}.npy\n" for number in range(8)))
    two = ["--set", "model.channels=2", "data.channels=2", "model.mean=none", "model.std=none"]
    assert pretrain(tmp_path / "runs", "flow", "--data", listed, *two, "data.augment=multi_scale_crop") == 0
    assert "flow: loss" in capsys.readouterr().out
    assert pretrain(tmp_path / "runs", "one", "--data", listed, two[0], two[1], *two[3:]) == 2
    assert "expected data.channels = model.channels, got 3 and 2" in capsys.readouterr().err
