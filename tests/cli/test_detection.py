"""Detection from the command line on the miniature AVA: train, test, go on, sweep; bad lists in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from vmae.cli.main import run
from vmae.core.video.demo_boxes import ACTIONS, DemoBoxesConfig, make_demo_boxes
from vmae.core.weights.checkpoint import load_model
from vmae.experiments.answers import answers_of
from vmae.experiments.layout import RunDir
from vmae.experiments.recipes import demo
from vmae.experiments.runs import find, list_runs
from vmae.experiments.tracking import store_at

SHAPE = (
    "model.frames=4", "model.height=32", "model.width=32", "model.depth=1", "model.embed_dim=32",
    "data.frames=4", "data.size=32,32", "data.short_side=32", "train.batch_size=8",
)  # fmt: skip


def vmae(*argv: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        run([str(a) for a in argv])
    return int(stopped.value.code or 0)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = DemoBoxesConfig(train_films=4, val_films=2, scenes=4, size=32, fps=8)
    return make_demo_boxes(tmp_path_factory.mktemp("boxes"), config)


def lists(films: Path) -> list[object]:
    """The options that name the lists and what belongs to them."""
    return [
        "--data", films / "train.csv", "--data-root", films / "films",
        "--set", f"detect.label_map={films / 'labels.pbtxt'}", "detect.num_classes=8",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def runs(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a pre-training `pt` on the films and a detector `det` from it."""
    folder = tmp_path_factory.mktemp("runs")
    own = ["--data", films / "train.csv", "--data-root", films / "films", "--runs-dir", folder, "--epochs", 1]
    pretrain = ["--recipe", "demo_pretrain", "--set", *SHAPE, "data.cache=false", "mask.ratio=0.5"]
    assert vmae("pretrain", *own, *pretrain, "train.picture_every=0", "--run-name", "pt") == 0
    detection = [*lists(films), "train.batch_size=8", "detect.eval_every=1"]
    assert vmae("finetune", "--task", "detection", "--init", "pt", "--runs-dir", folder, "--epochs", 2,
                "--run-name", "det", *detection) == 0  # fmt: skip
    return folder


def test_a_detector_is_trained_from_a_pre_training_and_tracked(runs: Path, films: Path) -> None:
    found = find(store_at(runs), "det")
    assert found.tags["vmae.kind"] == "detection" and found.tags["vmae.init"] == str(runs / "pt" / "model")
    named = {f"test/ap/{name}" for name in ACTIONS}
    assert named & set(found.metrics) and 0 <= found.metrics["test/frame_map"] <= 1
    assert found.metrics["detection/val_frame_map"] == pytest.approx(found.metrics["test/frame_map"])
    folder = runs / "det" / "evaluation"
    rows = (folder / "predictions.csv").read_text().splitlines()
    boxes = {tuple(r.split(",")[:6]) for r in (films / "val.csv").read_text().splitlines()}
    assert len(rows) == 8 * len(boxes) and all(len(r.split(",")) == 8 for r in rows)
    assert answers_of(RunDir(runs / "det")) is None  # they name no class of a video
    facts = json.loads((folder / "metrics.json").read_text())
    assert facts["frame_map"] == found.metrics["test/frame_map"] and not facts["chose"]
    assert {c["name"] for c in facts["classes"]} <= set(ACTIONS) and facts["people"] == len(boxes)


def test_the_built_in_films_are_made_where_they_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the first command of a new folder; smaller films than a user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "FILMS", DemoBoxesConfig(train_films=2, val_films=1, scenes=4, size=32, fps=8))
    shape = [*SHAPE, "train.batch_size=4", "detect.eval_every=0"]
    assert vmae("finetune", "--task", "detection", "--epochs", 1, "--run-name", "d", "--set", *shape) == 0
    assert "built-in films: 3 written to data/demo_boxes" in capsys.readouterr().err


def test_evaluate_takes_the_task_from_the_run_and_proposals(
    runs: Path, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ["evaluate", "--checkpoint", "det", "--runs-dir", runs]
    assert vmae(*ask, "--json") == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["frame_map"] == find(store_at(runs), "det").metrics["test/frame_map"]
    first = (films / "people_val.csv").read_text().splitlines()[0].split(",")[:2]
    people = tmp_path / "people.csv"
    kept = [r for r in (films / "people_val.csv").read_text().splitlines() if r.split(",")[:2] != first]
    people.write_text("\n".join(kept) + "\n")
    assert vmae(*ask, "--set", f"detect.proposals={people}") == 0
    said = capsys.readouterr().out
    assert "1 key frames have no proposal: their" in said and "on proposals" in said
    assert "proposals below 0.8" in said
    people.write_text("\n".join([*kept, f"{','.join(first)},0.8,0.1,0.3,0.9,,0.95"]) + "\n")
    assert vmae(*ask, "--set", f"detect.proposals={people}") == 0
    assert "1 inverted or outside the frame" in capsys.readouterr().out
    for text, message in (
        ("another,1,0.1,0.1,0.9,0.9,,0.95\n", "got none of them (the first is another at 1 s)"),
        ("", "got none of them (the file has nobody at all)"),
        ("hello\n", "people.csv:1: expected 'video_id,timestamp,x1,y1,x2,y2[,action],score', got 'hello'"),
    ):
        people.write_text(text)
        assert vmae(*ask, "--set", f"detect.proposals={people}") == 2
        assert message in capsys.readouterr().err
    people.unlink()
    assert vmae(*ask, "--set", f"detect.proposals={people}") == 2
    assert "expected a list of proposals, found no such file" in capsys.readouterr().err


def test_a_detector_finds_its_own_people(
    films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--runs-dir", tmp_path / "runs"]
    assert vmae("finetune", "--task", "detection", "--recipe", "demo_end_to_end", "--epochs", 1,
                "--run-name", "e2e", *own, *lists(films), *SHAPE, "detect.keep_rate=0.6",
                "detect.key_weight=4") == 0  # fmt: skip
    config = load_model(RunDir(tmp_path / "runs" / "e2e").model)[0].config.to_dict()
    assert config["keep_rate"] == 0.6 and config["key_weight"] == 4
    said = capsys.readouterr().err
    rows = (films / "train.csv").read_text().splitlines()
    frames = len({tuple(r.split(",")[:2]) for r in rows})
    assert f"s around each of {frames} key frames; {frames // 8} batches an epoch, 1 epochs; about" in said
    assert vmae("evaluate", "--checkpoint", "e2e", *own) == 0
    assert "on people that it found itself" in capsys.readouterr().out
    people = f"detect.proposals={films / 'people_val.csv'}"
    assert vmae("evaluate", "--checkpoint", "e2e", *own, "--set", people) == 2
    assert "expected no detect.proposals with detect.end_to_end" in capsys.readouterr().err
    assert vmae("evaluate", "--checkpoint", "e2e", *own, "--set", "detect.end_to_end=false") == 2
    assert "expected" in capsys.readouterr().err


def test_a_cluster_is_refused_and_named(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert vmae("evaluate", "--checkpoint", "det", "--runs-dir", runs, "--address", "auto") == 2
    said = capsys.readouterr().err
    assert "--address: expected a model of task classification, got one of detection" in said


def test_a_finished_detector_is_resumed_without_the_task(runs: Path) -> None:
    assert vmae("finetune", "--resume", "det", "--runs-dir", runs) == 0


def test_a_classifier_is_refused(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert vmae("evaluate", "--task", "detection", "--checkpoint", "pt", "--runs-dir", runs) == 2
    assert "expected a detector, got a" in capsys.readouterr().err


BAD = {
    "outside": ("val_0000,1,0.1,0.1,1.2,0.9,1,0\n", "expected a box 0 <= x1 <= x2 <= 1"),
    "inverted": ("val_0000,1,0.8,0.1,0.2,0.9,1,0\n", "expected a box 0 <= x1 <= x2 <= 1"),
    "unknown": ("val_0000,1,0.1,0.1,0.2,0.9,9,0\n", "expected action ids 1 to 8 (detect.num_classes), got 9"),
    "late": ("val_0000,0900,0.1,0.1,0.2,0.9,1,0\n", "the list asks for second 900, the file has 8.00 s"),
    "empty": ("", "expected at least one line 'path label', the file is empty"),
    "no boxes": ("val_0000.mp4 1\n", "expected key frames with boxes (AVA), got"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_held_out_list_is_one_line_before_anything_is_trained(
    what: str, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, message = BAD[what]
    (tmp_path / "val.csv").write_text(text)
    code = vmae("finetune", "--task", "detection", "--recipe", "demo_detection", "--runs-dir",
                tmp_path / "runs", "--val", tmp_path / "val.csv", *lists(films), *SHAPE)  # fmt: skip
    said = capsys.readouterr().err
    assert code in (1, 2) and message in said and "Traceback" not in said
    assert not list((tmp_path / "runs").rglob("*.safetensors"))


def test_a_training_film_that_is_too_short_is_counted(films: Path, tmp_path: Path) -> None:
    listed = tmp_path / "train.csv"
    listed.write_text((films / "train.csv").read_text() + "train_0000,0900,0.1,0.1,0.5,0.5,1,0\n")
    shutil.copy(films / "val.csv", tmp_path / "val.csv")
    own = lists(films)
    own[1] = listed
    code = vmae("finetune", "--task", "detection", "--recipe", "demo_detection", "--runs-dir",
                tmp_path / "runs", "--run-name", "short", "--epochs", 1, *own, *SHAPE,
                "data.max_bad_share=0.2")  # fmt: skip
    assert code == 0
    assert find(store_at(tmp_path / "runs"), "short").metrics["data/skipped"] == 1


@pytest.mark.slow
def test_a_sweep_ends_in_detection(films: Path, tmp_path: Path) -> None:
    code = vmae("sweep", "--recipe", "demo_pretrain", "--param", "mask.ratio=0.5,0.75", "--then", "detection",
                "--epochs", 1, "--runs-dir", tmp_path, *lists(films), *SHAPE, "data.cache=false",
                "train.picture_every=0", "pipeline.finetune_train.epochs=1",
                "pipeline.finetune_train.batch_size=8")  # fmt: skip
    assert code == 0
    trials = [r for r in list_runs(store_at(tmp_path)) if r.tags["vmae.kind"] == "trial"]
    # The third is the one with random weights.
    assert len(trials) == 3 and all(0 <= r.metrics["detection/frame_map"] <= 1 for r in trials)
