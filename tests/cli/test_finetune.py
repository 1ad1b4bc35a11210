"""finetune, evaluate, predict, reconstruct and recipes from the command line, on real small videos."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import yaml

from vmae.cli.main import run
from vmae.core.weights.checkpoint import load_model
from vmae.experiments.runs import Filter, list_runs
from vmae.experiments.tracking import store_at, tags

CHANGES = (
    "model.frames=4", "model.height=32", "model.width=32", "model.tubelet_size=2", "model.depth=1",
    "model.embed_dim=32", "data.frames=4", "data.size=32,32", "data.short_side=32", "data.sampling_rate=1",
    "train.batch_size=8", "evaluation_ratio=0.75",
)  # fmt: skip
SHAPE = ["--set", *CHANGES]


def vmae(*argv: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        run([str(a) for a in argv])
    return int(stopped.value.code or 0)


@pytest.fixture(scope="module")
def store(tiny_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a pre-training `pt` and a fine-tuning `ft` from it."""
    runs = tmp_path_factory.mktemp("runs")
    data = ["--data", tiny_videos / "train.csv", "--runs-dir", runs, "--epochs", 1]
    assert vmae("pretrain", *data, "--run-name", "pt", *SHAPE) == 0
    assert vmae("finetune", "--init", "pt", "--runs-dir", runs, "--epochs", 2, "--run-name", "ft",
                "--set", "train.batch_size=8") == 0  # fmt: skip
    return runs


def test_another_patch_size_is_refused_unless_asked_for(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("pretrain", "finetune"):
        small = ["--runs-dir", store, "--init", "pt", "--set", "model.patch_size=16", "--epochs", 1]
        if verb == "pretrain":  # by itself it starts from the recipe's lists and clips
            saved = yaml.safe_load((store / "pt" / "config.yaml").read_text())["data"]
            small += [*SHAPE, "--data", saved["train_csv"], "--set", "train.picture_every=0"]
        assert vmae(verb, *small) == 2
        message = capsys.readouterr().err
        assert "changing patch_size 8 to 16 resamples its weights" in message
        assert "--set model.patch_size=8 --set model.tubelet_size=2" in message
        assert vmae(verb, *small, "--resize-patch-embed", "--run-name", f"resized_{verb}") == 0
        assert "patch weights resampled" in capsys.readouterr().err
        model, _ = load_model(store / f"resized_{verb}" / "model")
        assert model.config.patch_size == 16


def test_weights_of_no_run_need_a_recipe(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert vmae("finetune", "--runs-dir", store, "--init", store / "pt" / "model") == 2
    assert "expected a run of this store" in capsys.readouterr().err


def test_finetune_takes_clips_as_its_init_run_did(store: Path) -> None:
    from vmae.experiments.config import ExperimentConfig

    config = ExperimentConfig.load(store / "ft" / "config.yaml")
    assert config.job == "finetune" and config.data.size == (32, 32) and config.model.embed_dim == 32
    assert config.init == str(store / "pt" / "model")
    rows = list(csv.DictReader((store / "ft" / "evaluation" / "predictions.csv").read_text().splitlines()))
    assert len(rows) == 8 and all(Path(r["path"]).is_absolute() for r in rows)
    assert (store / "ft" / "evaluation" / "confusion.png").stat().st_size > 1000


def artifacts(runs: Path, name: str) -> dict[str, int]:
    """Every file among the artifacts of a run, with its size."""

    from vmae.experiments.runs import find
    from vmae.experiments.tracking.client import mlflow_client

    store = store_at(runs)
    client = mlflow_client(store.uri)
    run_id = find(store, name).run_id
    found: dict[str, int] = {}
    folders = [""]
    while folders:
        for item in client.list_artifacts(run_id, folders.pop()):
            if item.is_dir:
                folders.append(item.path)
            else:
                found[item.path] = item.file_size
    return found


def test_checkpoints_are_linked_uploaded_or_left_out(store: Path, tiny_videos: Path) -> None:
    assert {"config.yaml", "environment.txt"} <= artifacts(store, "pt").keys()
    import torch

    installed = (store / "pt" / "environment.txt").read_text().splitlines()
    assert f"torch=={torch.__version__.partition('+')[0]}" in [line.partition("+")[0] for line in installed]
    linked = {p for p in artifacts(store, "pt") if p.startswith("checkpoints")}
    assert linked == {"checkpoints/checkpoints.json"}
    facts = json.loads((store / "pt" / "checkpoints.json").read_text())
    assert facts["model"]["path"] == str(store / "pt" / "model") and not facts["uploaded"]
    assert facts["model"]["bytes"] == sum(f.stat().st_size for f in (store / "pt" / "model").iterdir())
    assert [Path(t["path"]).name for t in facts["training"]] == ["step-0000000003"]
    assert facts["best"]["epochs"] == 1 and facts["best"]["metrics"]["loss"] > 0
    data = ["--data", tiny_videos / "train.csv", "--runs-dir", store, "--epochs", 1, *SHAPE]
    assert vmae("pretrain", *data, "pipeline.measure_every=1", "--run-name", "up",
                "--checkpoint-artifacts", "upload") == 0  # fmt: skip
    # What is measured during pre-training says which epoch is best.
    assert "knn_top1" in json.loads((store / "up" / "checkpoints.json").read_text())["best"]["metrics"]
    sent = {p: n for p, n in artifacts(store, "up").items() if p.startswith("checkpoints/")}
    for name in ("model", "best"):
        file = store / "up" / name / "model.safetensors"
        assert sent[f"checkpoints/{name}/model.safetensors"] == file.stat().st_size
        assert f"checkpoints/{name}/config.json" in sent
    assert len(sent) == 5
    assert vmae("pretrain", *data, "--run-name", "no", "--set", "tracking.checkpoints=none",
                "train.best_by=none") == 0  # fmt: skip
    assert not [p for p in artifacts(store, "no") if p.startswith("checkpoints")]
    assert not (store / "no" / "best").exists()


def test_evaluate_prints_numbers_and_keeps_predictions(
    store: Path, tiny_videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = tiny_videos / "train.csv"
    arguments = ["--runs-dir", store, "--segments", 3, "--crops", 1, "--json"]
    assert vmae("evaluate", "--checkpoint", "ft", "--data", train, *arguments) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["videos"] == 24 and 0 <= found["top1"] <= found["top5"] == 1.0
    rows = list(csv.DictReader((Path(found["folder"]) / "predictions.csv").read_text().splitlines()))
    assert {r["views"] for r in rows} == {"3"}
    (evaluated,) = list_runs(store_at(store), where=[Filter(column="kind", op="=", value="evaluate")])
    (trained,) = list_runs(store_at(store), where=[Filter(column="name", op="=", value="ft")])
    assert evaluated.tags[tags.CHECKPOINT] == trained.tags[tags.CHECKPOINT] == str(store / "ft" / "best")
    assert evaluated.tags[tags.RECIPE] == trained.tags[tags.RECIPE]
    assert len(evaluated.tags[tags.DATA_DIGEST]) == 12


def test_the_best_epochs_number_is_what_evaluate_finds_on_one_view(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = json.loads((store / "ft" / "best" / "config.json").read_text())["meta"]["metrics"]
    arguments = ["--runs-dir", store, "--segments", 1, "--crops", 1, "--json"]
    assert vmae("evaluate", "--checkpoint", "ft", *arguments) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["top1"] == best["val/top1"]
    assert found["loss"] == pytest.approx(best["val/loss"], rel=1e-6)


def test_what_chose_the_epoch_is_no_test(
    store: Path, tiny_videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vmae.experiments.runs import find
    from vmae.experiments.tracking import store_at

    def metrics(name: str) -> dict[str, float]:
        return find(store_at(store), name).metrics

    facts = json.loads((store / "ft" / "evaluation" / "metrics.json").read_text())
    assert facts["chose"] and Path(facts["list"]).name == "val.csv"
    assert facts["top1_low"] <= facts["top1"] <= facts["top1_high"]
    logged = metrics("ft")
    assert logged["val/final_top1"] == facts["top1"] and "test/top1" not in logged
    capsys.readouterr()
    # Another list than the one that chose: a test. So is the held-out list where nothing was chosen.
    held_out = tiny_videos / "val.csv"
    listed = store / "test.csv"
    listed.write_text("".join(f"{tiny_videos / x}\n" for x in held_out.read_text().splitlines()))
    runs = ["--runs-dir", store, "--init", "pt", "--epochs", 1, "--set", "train.batch_size=8"]
    assert vmae("finetune", *runs, f"data.test_csv={listed}", "--run-name", "tested") == 0
    out = capsys.readouterr().out
    assert "on 8 videos of test.csv, 2 views each" in out and "too good" not in out
    assert vmae("finetune", *runs, "train.best_by=none", "--run-name", "unchosen") == 0
    for name in ("tested", "unchosen"):
        logged = metrics(name)
        assert {"test/top1", "test/top1_low", "test/top1_high"} <= logged.keys(), name
        assert "val/final_top1" not in logged
    # Evaluated again on the list that chose, its number is no test either.
    assert vmae("evaluate", "--checkpoint", "ft", "--runs-dir", store, "--data", held_out) == 0
    assert "val.csv chose the epoch, so this number is too good by some points" in capsys.readouterr().out


def test_predict_names_classes_and_unreadable_files(
    store: Path, tiny_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("left\nright\nup\ndown\n")
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"nothing")
    videos = [tiny_videos / "00.mp4", bad, tiny_videos / "01.mp4"]
    arguments = ["--checkpoint", "ft", "--runs-dir", store, "--labels", labels, "--top", 2, "--json"]
    assert vmae("predict", *videos, *arguments) == 2
    rows = json.loads(capsys.readouterr().out)
    assert [r["path"] for r in rows] == [str(v) for v in videos] and "error" in rows[1]
    assert len(rows[0]["top"]) == 2 and rows[0]["top"][0]["class"] in ("left", "right", "up", "down")
    assert rows[0]["top"][0]["prob"] >= rows[0]["top"][1]["prob"]


@pytest.mark.parametrize("kind", ["mp4", "gif", "png"])
def test_reconstruct_writes_each_kind_of_file(
    store: Path, tiny_videos: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"out.{kind}"
    arguments = ["--checkpoint", "pt", "--runs-dir", store, "-o", out, "--ratio", 0.5, "--seed", 3]
    assert vmae("reconstruct", tiny_videos / "00.mp4", *arguments) == 0
    without = out.read_bytes()
    assert vmae("reconstruct", tiny_videos / "00.mp4", *arguments, "--pca") == 0
    assert out.read_bytes() != without
    text = capsys.readouterr().out
    assert "model only: mse" in text and "as trained (true patch statistics): mse" in text
    start = {"mp4": out.read_bytes()[4:8] == b"ftyp", "gif": out.read_bytes()[:3] == b"GIF"}
    assert start.get(kind, out.read_bytes()[1:4] == b"PNG")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["predict", "x.mp4", "--checkpoint", "pt"], "expected a fine-tuned classifier"),
        (["predict", "x.mp4", "--checkpoint", "fte"], "got 'fte' (did you mean 'ft'?)"),
        (["reconstruct", "x.mp4", "--checkpoint", "ft", "-o", "o.png"], "expected a pre-trained model"),
        (["reconstruct", "x.mp4", "--checkpoint", "pt", "-o", "o.jpg"], "ending in .mp4, .gif, .png"),
        (["evaluate", "--checkpoint", "pt"], "expected a fine-tuned classifier"),
        (["finetune", "--recipe", "demo_pretrain"], "got 'demo_pretrain', which is for vmae pretrain"),
        (["finetune", "--gpus-per-worker", "1"], "expected --workers N"),
        (["finetune", "--resume", "ftt"], "did you mean 'ft'"),
        (["finetune", "--resume", "pt"], "expected a finetune run, got 'pt'; vmae pretrain --resume goes on"),
        (["pretrain", "--resume", "pt", "--size", "small"], "expected --resume alone"),
        (
            ["pretrain", "--recipe", "demo_finetune"],
            "expected a recipe for vmae pretrain, got 'demo_finetune'",
        ),
        (
            ["pretrain", "--set", "finetune.drop_path=0.2"],
            "finetune.drop_path: vmae pretrain does not use it",
        ),
        (["finetune", "--set", "a=1", "mask.ratio=0.9"], "mask.ratio: vmae finetune does not use it"),
        (["pretrain", "--set", "train.best_by=los"], "got 'los' (did you mean 'loss'?)"),
        (["finetune", "--init", "pt", "--set", "train.cuda_graph=true"], "expected a CUDA device, got cpu"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    store: Path, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vmae(*argv, "--runs-dir", store) == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.strip()]
    assert message in line


def test_recipes_are_listed_shown_and_run_again_from_the_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vmae("recipes", "list", "--json") == 0
    names = [r["name"] for r in json.loads(capsys.readouterr().out)]
    assert {"demo_pretrain", "k400_base_pretrain", "v2_giant_pretrain", "small_data_transfer"} <= set(names)
    assert vmae("recipes", "show", "k400_base_pretrain", "--set", "mask.ratio=0.75") == 0
    text = capsys.readouterr().out
    (tmp_path / "run.yaml").write_text(text)

    from vmae.experiments import recipes
    from vmae.experiments.config import ExperimentConfig

    shown = ExperimentConfig.load(tmp_path / "run.yaml")
    assert shown.mask.ratio == 0.75 and shown.model == recipes.get("k400_base_pretrain").model
    assert vmae("recipes", "show", "k400_bas_pretrain") == 2
    assert "did you mean 'k400_base_pretrain'" in capsys.readouterr().err


def test_features_of_every_readable_video_and_the_bad_ones_by_name(
    store: Path, tiny_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np
    import torch

    from vmae.core.measure.probe import extract_features
    from vmae.core.video.annotations import read_annotations
    from vmae.core.video.clips import ClipDataset
    from vmae.core.weights.checkpoint import load_model
    from vmae.experiments.config import ExperimentConfig

    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"nothing")
    samples = read_annotations(tiny_videos / "train.csv")
    lines = [f"{s.path} {s.label}" for s in samples]
    (tmp_path / "list.csv").write_text("\n".join([*lines[:3], f"{bad} 0", *lines[3:]]) + "\n")
    out = tmp_path / "features.npz"
    command = ["features", tmp_path / "list.csv", out, "--checkpoint", "pt", "--runs-dir", store]
    assert vmae(*command, "--pooling", "time") == 1
    text = capsys.readouterr().out
    assert "24 x 64 (time)" in text and f"bad: {bad}: " in text
    found = np.load(out)
    assert found["index"].tolist() == [i for i in range(25) if i != 3]
    assert found["paths"].tolist() == [s.path for s in samples]
    config = ExperimentConfig.load(store / "pt" / "config.yaml")
    model, _ = load_model(store / "pt" / "model")
    expected = extract_features(model, ClipDataset(samples, config.data, "val", 0), pooling="time").x
    assert torch.allclose(torch.from_numpy(found["x"]), expected, atol=1e-5)
    assert not list((store / "cache" / "parts").iterdir())
    assert vmae(*command[:-4], "--checkpoint", "ft", "--runs-dir", store) == 2
    assert "expected a pre-trained model, got a classifier" in capsys.readouterr().err


def test_an_interrupted_evaluation_goes_on(
    store: Path, tiny_videos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vmae.experiments.cluster import video_map

    monkeypatch.setattr(video_map, "HERE", 7)
    real, calls = video_map.do_part, []

    def interrupted(*args: object) -> object:
        calls.append(len(args[1]))  # type: ignore[arg-type]
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(video_map, "do_part", interrupted)
    command = ["evaluate", "--checkpoint", "ft", "--data", tiny_videos / "train.csv", "--runs-dir", store]
    command += ["--segments", 2, "--crops", 1, "--json"]
    assert vmae(*command) == 130
    assert vmae(*command) == 0
    assert calls == [7, 7, 7, 7, 3]
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["videos"] == 24
    monkeypatch.setattr(video_map, "HERE", 256)
    assert vmae(*command) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["loss"] == pytest.approx(again["loss"], abs=1e-6) and found["top1"] == again["top1"]


def test_the_same_evaluation_may_end_in_another_shell_meanwhile(
    store: Path, tiny_videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It removes the parts that both keep: when this one reads them, and between two of its own."""
    from vmae.experiments.cluster import video_map

    monkeypatch.setattr(video_map, "HERE", 7)
    real, calls = video_map.do_part, []
    parts = store_at(store).layout.parts

    def alone(*args: object) -> object:
        calls.append(parts.exists() and list(parts.iterdir()))
        shutil.rmtree(parts, ignore_errors=True)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(video_map, "do_part", alone)
    command = ["evaluate", "--checkpoint", "ft", "--data", tiny_videos / "train.csv", "--runs-dir", store]
    assert vmae(*command, "--segments", 3, "--crops", 1) == 0
    assert len(calls) == 4 and not calls[0] and all(calls[1:])
    assert video_map._read_part(parts / "gone.npz") == []


def test_a_list_without_a_recipe_is_trained_on_as_recommended(
    tiny_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vmae.experiments.config import ExperimentConfig

    runs = ["--runs-dir", tmp_path / "runs", "--data", tiny_videos / "train.csv"]
    assert vmae("finetune", *runs, "--budget", "16s", "--run-name", "own", "--epochs", 1) == 0
    told = capsys.readouterr()
    for text in ("because", "steps an epoch", "a clip covers 100% of the median video", "chance 25.0%"):
        assert text in told.err
    assert "on 8 videos of val.csv" in told.out and "too good" not in told.out
    config = ExperimentConfig.load(tmp_path / "runs/own/config.yaml")
    assert (config.recipe, config.data.sampling) == ("small_clips_finetune", "uniform")
    assert config.train.epochs == 1
    assert vmae("finetune", *runs, "--recipe", "demo_finetune", "--budget", "16s") == 2
    assert "expected --budget and --flip with --data and without --recipe" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", ["demo_finetune", "small_data_transfer", None])
def test_the_clip_is_the_initial_weights_under_every_recipe(
    store: Path, tiny_videos: Path, recipe: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    from vmae.experiments.config import ExperimentConfig

    name = f"from_{recipe}"
    arguments = ["--runs-dir", store, "--init", store / "pt" / "model", "--run-name", name, "--epochs", 1]
    arguments += ["--data", tiny_videos / "train.csv"]
    arguments += ["--recipe", recipe] if recipe else ["--budget", "16s"]
    assert vmae("finetune", *arguments, "--set", "train.batch_size=8", "data.workers=0") == 0
    told = capsys.readouterr().err
    assert "clips of 4 frames of 32x32, patch 8, tubelet 2" in told
    config = ExperimentConfig.load(store / name / "config.yaml")
    m = config.model
    assert (m.frames, m.height, m.patch_size, m.tubelet_size, m.embed_dim) == (4, 32, 8, 2, 32)
    assert config.data.size == (32, 32) and 32 <= config.data.short_side <= 40


def test_labels_of_one_class_are_refused_and_a_shared_video_is_told(
    tiny_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line.rsplit(" ", 1)[0] for line in (tiny_videos / "train.csv").read_text().splitlines()]
    (tmp_path / "one.csv").write_text("".join(f"{tiny_videos / p} 2\n" for p in lines))
    held_out = ["--val", tmp_path / "one.csv", "--runs-dir", tmp_path / "runs"]
    for recipe in ([], ["--recipe", "demo_finetune"]):
        assert vmae("finetune", "--data", tmp_path / "one.csv", *held_out, *recipe) == 2
        message = capsys.readouterr().err
        assert "expected labels of two classes or more in the training list, got label 2 on all 24" in message
    # Nor is a list that is shorter than a batch: its name stays free.
    few = ["--data", tiny_videos / "train.csv", *held_out, "--recipe", "demo_finetune", *SHAPE]
    assert vmae("finetune", *few, "--set", "train.batch_size=64", "--run-name", "few") == 2
    assert "train.batch_size = 64 clips; the training list has 24" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    shared = ["--data", tiny_videos / "train.csv", *held_out, "--recipe", "demo_finetune", "--epochs", 1]
    assert vmae("finetune", *shared, *SHAPE) == 0
    assert "warning: 24 videos of the held-out list are also in the training list" in capsys.readouterr().err


def test_folds_of_an_indexed_folder_hold_each_of_its_videos_out_once(
    tiny_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vmae.core.video.annotations import read_annotations

    samples = read_annotations(tiny_videos / "train.csv")
    rows = "".join(f"{s.path},{s.label},g{i // 2}\n" for i, s in enumerate(samples))
    (tmp_path / "all.csv").write_text(f"path,label,session\n{rows}")
    lists = tmp_path / "lists"
    index = ["data", "index", tmp_path / "all.csv", "--groups", "session", "--folds", 3, "--out", lists]
    assert vmae(*index) == 0
    assert len(read_annotations(lists / "train.csv")) < 24  # a fold stands in val.csv
    arguments = ["--data", lists / "train.csv", "--recipe", "demo_finetune", *SHAPE, "train.batch_size=4"]
    arguments += ["--folds", lists / "folds.csv", "--epochs", 1, "--runs-dir", tmp_path / "runs"]
    capsys.readouterr()
    assert vmae("finetune", *arguments) == 0
    told = capsys.readouterr()
    assert "videos of val.csv that it names" in told.err
    assert "on 24 held-out videos, 3 folds (chance 25.0%)" in told.out


def test_folds_and_seeds_give_one_number_and_go_on_where_they_were(
    tiny_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vmae.core.video.annotations import read_annotations
    from vmae.experiments import runs as results
    from vmae.experiments.answers import answers_of
    from vmae.experiments.layout import RunsDir
    from vmae.experiments.tracking import store_at

    # No val.csv beside it: with folds none is needed. Two videos of a session follow each other.
    listed = tmp_path / "all.csv"
    samples = read_annotations(tiny_videos / "train.csv")
    listed.write_text("".join(f"{s.path} {s.label}\n" for s in samples))
    groups = "".join(f"{s.path},g{i // 2}\n" for i, s in enumerate(samples))
    (tmp_path / "groups.csv").write_text(f"path,group\n{groups}")
    runs = tmp_path / "runs"
    arguments = ["--data", listed, "--recipe", "demo_finetune", *SHAPE, "train.best_by=val/top1"]
    arguments += ["--folds", 3, "--seeds", 2, "--epochs", 1, "--runs-dir", runs, "--run-name", "cv"]
    assert vmae("finetune", *arguments) == 0
    told = capsys.readouterr()
    assert f"folds of whole groups of {tmp_path}/groups.csv" in told.err
    assert "on 24 held-out videos, 3 folds and 2 seeds (chance 25.0%)" in told.out
    found = answers_of(RunsDir(runs).run("cv"))
    assert found is not None
    assert (found.seeds, len(found.paths)) == ([0, 1], 24)
    fold_of = {a.path: a.fold for a in found.rows}
    pairs = [(fold_of[a.path], fold_of[b.path]) for a, b in zip(samples[::2], samples[1::2], strict=True)]
    assert all(a == b for a, b in pairs)
    assert not (runs / "cv-fold0-seed0" / "best").exists()  # no epoch was chosen
    store = store_at(runs)
    together, one = results.find(store, "cv").metrics, results.find(store, "cv-fold1-seed1").metrics
    assert together["test/top1_low"] <= together["test/top1"] <= together["test/top1_high"]
    assert together["test/top1"] == pytest.approx(found.table().mean())
    assert one["test/top1"] == pytest.approx(found.table([p for p in fold_of if fold_of[p] == 1])[1].mean())
    assert vmae("runs", "compare", "cv-fold0-seed0", "cv-fold0-seed1", "--no-curves", "--runs-dir", runs) == 0
    assert "8 videos" in capsys.readouterr().out.splitlines()[-1]  # paired, on the same videos
    # What is done is not done again, and the list may have changed meanwhile.
    (runs / "cv-fold2-seed1" / "evaluation" / "metrics.json").unlink()
    listed.unlink()
    assert vmae("finetune", "--resume", "cv", "--runs-dir", runs) == 0
    again = capsys.readouterr()
    assert "fold 2, seed 1 (6 of 6)" in again.err and "fold 0" not in again.err.replace("fold 0:", "")
    assert vmae("finetune", "--recipe", "demo_finetune", "--seeds", 2, "--runs-dir", runs) == 2
    assert "--seeds: expected --folds to go with it" in capsys.readouterr().err


def test_a_smaller_classifier_learns_from_a_run(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--set", "model.embed_dim=16", "model.num_heads=2", "finetune.distill.weight=0.5"]
    named = ["--runs-dir", store, "--run-name", "small", "--epochs", 1]
    assert vmae("distill", "--teacher", "ft", *named, *asked, "train.batch_size=8") == 0
    said = capsys.readouterr()
    assert "top-1" in said.out
    assert "taken from ft: clips of 4 frames of 32x32, patch 8, tubelet 2, and how they are cut" in said.err
    saved = yaml.safe_load((store / "small" / "config.yaml").read_text())
    distill = saved["finetune"]["distill"]
    assert Path(distill["teacher"]).is_absolute() and "ft" in Path(distill["teacher"]).parts
    assert distill["weight"] == 0.5
    student = load_model(store / "small" / "model")[0]
    assert student.config.embed_dim == 16 and student.config.frames == 4

    assert vmae("distill", "--teacher", "pt", "--runs-dir", store, "--run-name", "untaught") == 2
    assert "expected a classifier, got a pre-trained model at pt" in capsys.readouterr().err
    assert not (store / "untaught").exists()
    assert vmae("distill", "--teacher", "fz", "--runs-dir", store) == 2
    assert "got 'fz'" in capsys.readouterr().err
    assert vmae("distill", "--runs-dir", store) == 2
    assert "expected --teacher" in capsys.readouterr().err


def test_convert_takes_a_run_s_name(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert vmae("convert", "pt", tmp_path / "hf", "--to", "hf", "--runs-dir", store) == 0
    assert "VideoMAE" in capsys.readouterr().out and (tmp_path / "hf" / "config.json").exists()
    assert vmae("convert", "pz", tmp_path / "x", "--to", "hf", "--runs-dir", store) == 2
    assert "expected a run's name or a checkpoint's path, got 'pz' (did you mean" in capsys.readouterr().err


def test_the_end_says_the_held_out_accuracy_and_the_best_epoch(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vmae("finetune", "--resume", "ft", "--runs-dir", store) == 0
    out = capsys.readouterr().out
    assert "validation accuracy on val.csv: " in out and " after epoch 2, best " in out and " of 2" in out
