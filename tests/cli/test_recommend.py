"""`vmae recommend` on a list of small clips: what it prints and the file it writes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from vmae.cli.main import main
from vmae.experiments.config import ExperimentConfig


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, count in (("train", 12), ("val", 3)):
        lines = []
        for i in range(count):
            np.save(tmp_path / f"{name}{i}.npy", rng.integers(0, 255, (20, 40, 60, 3), np.uint8))
            lines.append(f"{name}{i}.npy {i % 3}\n")
        (tmp_path / f"{name}.csv").write_text("".join(lines))
    (tmp_path / "classes.txt").write_text("left\nright\nup\n")
    return tmp_path


def test_choices_reasons_and_a_file_that_runs_as_it_is(lists: Path) -> None:
    out = lists / "own.yaml"
    result = CliRunner().invoke(
        main, ["recommend", str(lists / "train.csv"), "--budget", "20s", "--out", str(out)]
    )
    assert result.exit_code == 0, result.output
    for text in (
        "list: 12 videos of 3 classes, median 0.8 s at 25 frames/s, 60x40; 3 held out",
        "budget 20s",
        "a mirror may turn left, right into another class",
        "steps an epoch",
        "predicted: ",
        f"vmae finetune --config {out}",
    ):
        assert text in result.output
    config = ExperimentConfig.load(out)
    assert (config.job, config.recipe) == ("finetune", "small_clips_finetune")
    assert (config.data.train_csv, config.data.val_csv) == (str(lists / "train.csv"), str(lists / "val.csv"))
    assert config.data.sampling == "uniform"


def test_pretraining_needs_no_labels_and_fine_tuning_two(lists: Path) -> None:
    (lists / "one.csv").write_text("".join(f"train{i}.npy 2\n" for i in range(8)))
    arguments = ["recommend", str(lists / "one.csv"), "--budget", "15s", "--out", str(lists / "x.yaml")]
    result = CliRunner().invoke(main, arguments)
    assert "expected labels of two classes or more in the training list, got label 2 on all 8" in str(
        result.exception
    )
    assert not (lists / "x.yaml").exists()
    result = CliRunner().invoke(main, [*arguments, "--for", "pretrain"])
    assert result.exit_code == 0, result.output
    assert ExperimentConfig.load(lists / "x.yaml").job == "pretrain"


def test_a_held_out_video_that_is_trained_on_is_told(lists: Path) -> None:
    (lists / "val.csv").write_text("train0.npy 0\nval1.npy 1\n")
    result = CliRunner().invoke(
        main, ["recommend", str(lists / "train.csv"), "--budget", "15s", "--out", str(lists / "x.yaml")]
    )
    assert "warning: 1 videos of the held-out list are also in the training list" in result.output
    result = CliRunner().invoke(main, ["recommend", str(lists / "train.csv"), "--budget", "soon"])
    assert "--budget: expected a time such as 4h, 90m or 1h30m, got 'soon'" in str(result.exception)


def test_the_epochs_that_are_asked_for_decide_the_warm_up(lists: Path) -> None:
    """How fast this machine is must not be in the numbers of a run whose length is given."""
    asked = ["--epochs", "20", "--data", str(lists / "train.csv"), "--runs-dir", str(lists / "runs")]
    small = ("model.depth=1", "model.embed_dim=32", "model.num_heads=2", "train.batch_size=4")
    size = [text for pair in small for text in ("--set", pair)]
    result = CliRunner().invoke(main, ["finetune", "--run-name", "own", *asked, *size])
    assert result.exit_code == 0, result.output
    config = ExperimentConfig.load(lists / "runs" / "own" / "config.yaml")
    assert (config.train.epochs, config.optim.warmup_epochs, config.finetune.eval_every) == (20, 2.0, 2)


@pytest.mark.slow
def test_a_trial_of_pretraining_goes_on_after_ctrl_c_and_what_it_offers_can_be_run(
    tiny_videos: Path, tmp_path: Path
) -> None:
    runs, out = tmp_path / "runs", tmp_path / "finetune.yaml"
    command = [sys.executable, "-m", "vmae.cli.main", "recommend", str(tiny_videos / "train.csv")]
    command += ["--try-pretraining", "45s", "--budget", "30s", "--out", str(out), "--runs-dir", str(runs)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ
    ) as first:
        assert first.stdout is not None
        for line in first.stdout:
            if "part 1 of 3, pre-training (training 2 of 9)" in line:
                break
        first.send_signal(signal.SIGINT)
        said = first.stdout.read()
        assert first.wait(60) == 130, said
    assert "The same command goes on; a training that has ended is not repeated" in said
    assert "Traceback" not in said and not out.exists()
    result = CliRunner().invoke(main, command[3:])
    assert result.exit_code == 0, result.output
    assert "training 1 of 9" not in result.output and "training 9 of 9" in result.output
    assert "folds by video: no groups are known" in result.output
    assert "3 parts by video (no groups are known) held out in turn, at equal time" in result.output
    # The verdict of so short a trial is chance: what follows is asked of one that says yes.
    (kept,) = (runs / "cache" / "tried").glob("*.json")
    kept.write_text(kept.read_text().replace('"offered": false', '"offered": true'))
    plain = CliRunner().invoke(main, [*command[3:5], *command[7:]])
    assert "vmae recommend LIST --try-pretraining writes both configurations" in plain.output
    assert ExperimentConfig.load(out).init == "" and not out.with_name("pretrain.yaml").exists()
    result = CliRunner().invoke(main, command[3:])
    assert result.exit_code == 0, result.output
    pretraining, finetuning = out.with_name("pretrain.yaml"), ExperimentConfig.load(out)
    assert f"vmae pretrain --config {pretraining} --run-name own --runs-dir {runs}" in result.output
    assert (finetuning.job, finetuning.init) == ("finetune", "own")
    made = ExperimentConfig.load(pretraining)
    assert (made.job, made.model, made.data) == ("pretrain", finetuning.model, finetuning.data)
    for verb, file, more in (("pretrain", pretraining, ["--run-name", "own"]), ("finetune", out, [])):
        asked = [verb, "--config", str(file), "--epochs", "1", "--runs-dir", str(runs), *more]
        result = CliRunner().invoke(main, asked)
        assert result.exit_code == 0, result.output
    # Fine-tuning says what was found, and trains as before.
    asked = ["finetune", "--data", str(tiny_videos / "train.csv"), "--epochs", "1", "--runs-dir", str(runs)]
    result = CliRunner().invoke(main, [*asked, "--budget", "30s"])
    assert "tried on 24 videos of the training list" in result.output
    assert "--try-pretraining writes both configurations" in result.output


def test_what_cannot_be_tried_is_refused_at_once(lists: Path) -> None:
    asked = ["recommend", str(lists / "train.csv"), "--out", str(lists / "x.yaml"), "--try-pretraining"]
    for more, text in (
        (["5s"], "--try-pretraining: expected time for an epoch of each of 9 trainings, about "),
        (["soon"], "--try-pretraining: expected a time such as 4h, 90m or 1h30m, got 'soon'"),
        (["1m", "--for", "pretrain"], "--try-pretraining: expected --for finetune, got pretrain"),
    ):
        result = CliRunner().invoke(main, [*asked, *more, "--runs-dir", str(lists / "runs")])
        assert result.exit_code == 1 and text in str(result.exception)
    assert not (lists / "x.yaml").exists()
