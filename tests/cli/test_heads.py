"""Regression and multi-label heads: their numbers by hand, and both trained from the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vmae.cli.main import run
from vmae.core.errors import InputError
from vmae.core.measure.heads import measure_head
from vmae.core.model.videomae import VideoMAE, VideoMAEConfig
from vmae.core.video.annotations import read_annotations, write_annotations
from vmae.core.video.samples import Sample
from vmae.core.weights.checkpoint import save_model
from vmae.experiments.runs import find
from vmae.experiments.tracking import store_at

SHAPE = (
    "model.frames=4", "model.height=32", "model.width=32", "model.tubelet_size=2", "model.depth=1",
    "model.embed_dim=32", "data.frames=4", "data.size=32,32", "data.short_side=32", "train.batch_size=8",
)  # fmt: skip


def vmae(*argv: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        run([str(a) for a in argv])
    return int(stopped.value.code or 0)


def write_lists(kind: str, videos: Path, out: Path) -> list[Sample]:
    """The lists of `videos` with two numbers, or two labels, a line; returns the held-out samples."""
    for split in ("train", "val"):
        samples = read_annotations(videos / f"{split}.csv")
        column = [f"{s.label * 2.5};{-s.label}" if kind == "regression" else f"{s.label};5" for s in samples]
        rows = [f"{s.path} {c}\n" for s, c in zip(samples, column, strict=True)]
        (out / f"{split}.csv").write_text("".join(rows))
    return samples


def test_the_numbers_are_those_of_a_case_by_hand() -> None:
    truth = np.array([[0.0, 10.0], [2.0, 10.0], [4.0, 10.0]])
    found = truth + np.array([[1.0, 0.0], [0.0, 0.0], [-1.0, 3.0]])
    numbers = measure_head(found, truth, "regression")
    # The first value: errors 1, 0, 1 of a spread of 8. The second is constant: it has no R2.
    assert numbers["r2"] == pytest.approx(1 - 2 / 8) and numbers["mae"] == pytest.approx(5 / 6)
    assert measure_head(np.full((3, 1), 2.0), truth[:, :1], "regression")["r2"] == pytest.approx(0.0)
    labels = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    scores = np.array([[0.9, 0.5], [0.8, 0.5], [0.7, 0.5], [0.1, 0.5]])
    numbers = measure_head(scores, labels, "multilabel")
    # Hits at ranks 1 and 3: (1 + 2/3) / 2. The second label does not occur.
    assert numbers["mean_ap"] == pytest.approx(5 / 6) and numbers["chance"] == 0.5


def test_lists_of_numbers_and_of_labels_are_read_and_written(tmp_path: Path) -> None:
    (tmp_path / "n.csv").write_text("a b.mp4 1.5;-2\nc.mp4,3;4e1\n")
    values = read_annotations(tmp_path / "n.csv", format="numbers", rooted=False)
    assert [(s.path, s.values) for s in values] == [("a b.mp4", (1.5, -2.0)), ("c.mp4", (3.0, 40.0))]
    (tmp_path / "l.csv").write_text("a.mp4 3;1;3\nb.mp4 -\n")
    labels = read_annotations(tmp_path / "l.csv", format="labels", rooted=False)
    assert [s.labels for s in labels] == [(1, 3), ()]
    for form, samples in (("numbers", values), ("labels", labels)):
        write_annotations(tmp_path / "again.csv", samples)
        assert read_annotations(tmp_path / "again.csv", format=form, rooted=False) == samples  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("form", "text", "message"),
    [
        ("numbers", "a.mp4 1\nb.mp4 1;2\n", "expected as many values on every line, got [1, 2]"),
        ("numbers", "a.mp4 nan\n", "n.csv:1: expected finite numbers"),
        ("numbers", "a.mp4\n", "n.csv:1: expected 'path value[;value...]'"),
        ("labels", "a.mp4 1;-3\n", "n.csv:1: expected labels 0 to 999,999"),
    ],
)
def test_a_bad_line_is_named(form: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "n.csv").write_text(text)
    with pytest.raises(InputError) as error:
        read_annotations(tmp_path / "n.csv", format=form)  # type: ignore[arg-type]
    assert message in str(error.value)


@pytest.mark.parametrize("kind", ["regression", "multilabel"])
def test_frozen_features_are_probed_for_them(
    kind: str, tiny_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lists(kind, tiny_videos, tmp_path)
    torch.manual_seed(0)
    model = VideoMAE(VideoMAEConfig.from_size("tiny", frames=4, height=32, width=32, depth=1, embed_dim=32))
    save_model(tmp_path / "model", model)
    ask = ["probe", "--checkpoint", tmp_path / "model", "--data", tmp_path / "train.csv", "--task", kind]
    ask += ["--runs-dir", tmp_path / "runs", "--set", "data.short_side=32", "data.sampling_rate=1"]
    quick = ["probe.epochs=2", "probe.folds=2"]
    for read in ("linear", "attentive"):
        assert vmae(*ask, *quick, "probe.views=2", "--kind", read, "--json") == 0
        numbers = json.loads(capsys.readouterr().out)
        assert np.isfinite(numbers["r2" if kind == "regression" else "mean_ap"]) and numbers["kind"] == read
    assert vmae(*ask, *quick) == 0
    assert f"linear probe of {tmp_path / 'model'} for {kind}: " in capsys.readouterr().out
    for more, message in (
        (["--kind", "knn"], f"expected linear or attentive for {kind}, got knn"),
        (["--shares", "0.1,1"], "expected neither --folds nor --shares"),
    ):
        assert vmae(*ask, *quick, *more) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["regression", "multilabel"])
def test_a_head_is_trained_tested_and_refused_elsewhere(
    kind: str, tiny_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = write_lists(kind, tiny_videos, tmp_path)
    runs = tmp_path / "runs"
    ask = ["finetune", "--task", kind, "--data", tmp_path / "train.csv", "--epochs", 1, "--run-name", "head"]
    assert vmae(*ask, "--runs-dir", runs, "--set", *SHAPE) == 0
    said = capsys.readouterr().err
    assert (
        "a clip covers 100% of the median video (" in said
        and "s); 3 batches an epoch, 1 epochs; about" in said
    )
    assert "chance" not in said
    first = "r2" if kind == "regression" else "mean_ap"
    found = find(store_at(runs), "head")
    assert np.isfinite(found.metrics[f"test/{first}"]) and found.tags["vmae.kind"] == kind
    table = list(csv.DictReader((runs / "head" / "evaluation" / "predictions.csv").read_text().splitlines()))
    assert len(table) == 8 and len(table[0]) == (5 if kind == "regression" else 13)
    capsys.readouterr()
    assert vmae("evaluate", "--checkpoint", "head", "--runs-dir", runs, "--json") == 0
    assert json.loads(capsys.readouterr().out)[first] == pytest.approx(found.metrics[f"test/{first}"])
    assert vmae("predict", samples[0].path, "--checkpoint", "head", "--runs-dir", runs) == 2
    assert f"got a model of task {kind}" in capsys.readouterr().err
    assert vmae("evaluate", "--checkpoint", "head", "--data", tiny_videos / "val.csv", "--runs-dir", runs,
                "--set", "data.annotation_format=label") == 2  # fmt: skip
    assert "data.annotation_format: expected" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["finetune.mix.mixup", "finetune.distill.weight", "finetune.label_smoothing"])
def test_what_these_heads_do_not_use_is_refused(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert vmae("finetune", "--task", "regression", "--set", f"{key}=0.5") == 2
    assert f"{key}: vmae finetune --task regression does not use it" in capsys.readouterr().err
