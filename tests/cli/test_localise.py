"""`vmae localise` on a folder of features in ActionFormer's layout, and a sweep that ends in it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vmae.cli.main import run
from vmae.core.measure.localisation import temporal_map
from vmae.core.measure.precision import Instances
from vmae.core.video.demo_untrimmed import DemoUntrimmedConfig, make_demo_untrimmed
from vmae.experiments.runs import find, list_runs
from vmae.experiments.tracking import store_at

FPS = 16.0


def vmae(*argv: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        run([str(a) for a in argv])
    return int(stopped.value.code or 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Features that name the action they are in, and their annotations."""
    features = tmp_path / "features"
    features.mkdir()
    database: dict[str, Any] = {}
    journal = []
    for k in range(20):
        rng = np.random.default_rng(k)
        x = rng.normal(0, 0.3, (100, 8)).astype(np.float32)
        actions = []
        for start in (10, 55):
            length, label = int(rng.integers(8, 30)), int(rng.integers(2))
            x[start : start + length, label] += 1
            segment = [(at * 4 + 8) / FPS for at in (start, start + length)]
            actions.append({"label": ("jump", "run")[label], "segment": segment})
        np.save(features / f"v{k}.npy", x)
        journal.append({"name": f"v{k}", "fps": FPS, "duration_s": 26.0, "windows": 100})
        subset = "validation" if k < 15 else "test"
        database[f"v{k}"] = {"subset": subset, "duration": 26.0, "fps": FPS, "annotations": actions}
    (features / "features.json").write_text(json.dumps({"window": 16, "stride": 4, "dim": 8}))
    (features / "videos.jsonl").write_text("".join(json.dumps(r) + "\n" for r in journal))
    (tmp_path / "a.json").write_text(json.dumps({"database": database}))
    return tmp_path


def test_a_head_is_trained_measured_and_tracked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["localise", folder / "features", "--data", folder / "a.json", "--runs-dir", folder / "runs"]
    quick = [
        "--set",
        "localise.epochs=8",
        "localise.head.dim=32",
        "localise.head.levels=4",
        "localise.lr=5e-3",
    ]
    assert vmae(*ask, *quick, "--json") == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["average_map"] > 0.5
    assert numbers["chance"] < 0.2
    run_ = find(store_at(folder / "runs"), "localise-1")
    assert run_.metrics["localise/average_map"] == numbers["average_map"]
    # The results file says the same to who reads it as ActivityNet's evaluation does.
    results = json.loads((Path(numbers["folder"]) / "detections.json").read_text())["results"]
    database = json.loads((folder / "a.json").read_text())["database"]
    names = [f"v{k}" for k in range(15, 20)]
    number = {"jump": 0, "run": 1}

    def rows(of: dict[str, list[dict[str, Any]]]) -> list[tuple[int, dict[str, Any]]]:
        return [(k, row) for k, name in enumerate(names) for row in of[name]]

    truth = rows({n: database[n]["annotations"] for n in names})
    found = rows(results)

    def columns(table: list[tuple[int, dict[str, Any]]]) -> dict[str, np.ndarray]:
        return {
            "source": np.array([k for k, _ in table]),
            "label": np.array([number[r["label"]] for _, r in table]),
            "extent": np.array([r["segment"] for _, r in table]),
        }

    scores = np.array([r["score"] for _, r in found])
    again = temporal_map(Instances(**columns(truth)), Instances(**columns(found), score=scores))
    assert again.average_map == pytest.approx(numbers["average_map"], abs=0.02)


def test_a_killed_training_goes_on_to_the_same_numbers(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ["--set", "localise.epochs=5", "localise.head.dim=8", "localise.head.levels=2"]
    ask = [
        "localise",
        folder / "features",
        "--data",
        folder / "a.json",
        "--runs-dir",
        folder / "runs",
        *quick,
    ]
    assert vmae(*ask, "--run-name", "whole", "--json") == 0
    whole = json.loads(capsys.readouterr().out)
    line = [sys.executable, "-m", "vmae.cli.main", *map(str, ask), "--run-name", "cut"]
    child = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    state = folder / "runs" / "cut" / "evaluation" / "localiser.pt"
    while not state.exists() and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(signal.SIGTERM)
    said, _ = child.communicate(timeout=120)
    assert child.returncode == 130, said
    assert "interrupted: with the same arguments and --resume cut it goes on" in said
    assert torch.load(state, weights_only=True)["epoch"] < 5
    assert vmae(*ask, "--run-name", "cut") == 2
    assert "use --resume cut" in capsys.readouterr().err
    assert vmae(*ask, "localise.lr=5e-3", "--resume", "cut") == 2
    assert "expected a training by this configuration" in capsys.readouterr().err
    assert vmae(*ask, "--resume", "cut", "--json") == 0
    assert {**json.loads(capsys.readouterr().out), "folder": ""} == {**whole, "folder": ""}
    assert vmae(*ask, "--resume", "cutt") == 2
    assert "expected an interrupted run of vmae localise" in capsys.readouterr().err
    assert vmae(*ask, "--resume", "cut", "--run-name", "other") == 2


def test_missing_and_broken_features_are_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["localise", folder / "features", "--data", folder / "a.json", "--runs-dir", folder / "runs"]
    quick = ["--epochs", 1, "--set", "localise.head.dim=8", "localise.head.levels=2"]
    journal = folder / "features" / "videos.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:19]))
    assert vmae(*ask, *quick) == 0
    assert "1 videos have no features, first v19" in capsys.readouterr().out
    journal.write_text("".join(lines[:15]))
    assert vmae(*ask, *quick) == 2
    assert "got none of the subset test (such as v15.npy)" in capsys.readouterr().err
    journal.write_text("".join(lines))
    broken = folder / "features" / "v3.npy"
    broken.write_bytes(broken.read_bytes()[:200])
    assert vmae(*ask, *quick) == 2
    assert "v3.npy: expected features, not a whole .npy file" in capsys.readouterr().err
    np.save(broken, np.zeros((5, 7), np.float32))
    assert vmae(*ask, *quick) == 2
    assert "v3.npy: expected features [num_windows, " in capsys.readouterr().err
    broken.unlink()
    assert vmae(*ask, *quick) == 2
    assert "v3.npy: expected features, found no such file" in capsys.readouterr().err
    # What is refused leaves no run.
    assert [r.name for r in list_runs(store_at(folder / "runs"))] == ["localise-1"]
    assert not (folder / "runs" / "localise-2").exists()
    assert vmae("localise", folder / "none", "--data", folder / "a.json", "--runs-dir", folder / "runs") == 2
    assert "expected windowed features" in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_ends_in_localisation(tmp_path: Path, tiny_videos: Path) -> None:
    few = DemoUntrimmedConfig(train_videos=4, test_videos=2, trimmed_per_class=5, size=32, fps=8)
    films = make_demo_untrimmed(tmp_path / "films", few)
    shape = [
        "model.frames=4", "model.height=32", "model.width=32", "model.depth=1", "model.embed_dim=32",
        "data.frames=4", "data.size=32,32", "data.short_side=32", "data.sampling_rate=1",
        "train.batch_size=8", "train.picture_every=0", "localise.window=4", "localise.epochs=1",
        "localise.head.dim=16",
    ]  # fmt: skip
    ask = ["sweep", "--recipe", "demo_pretrain", "--param", "mask.ratio=0.5,0.75", "--then", "localise",
           "--epochs", 1, "--runs-dir", tmp_path / "runs", "--data", tiny_videos / "train.csv"]  # fmt: skip
    assert vmae(*ask, "--set", *shape) == 2  # says what it is to localise before anything is trained
    named = [f"localise.annotations={films / 'annotations.json'}", f"localise.videos={films / 'videos'}"]
    assert vmae(*ask, "--set", *shape, *named) == 0
    trials = [r for r in list_runs(store_at(tmp_path / "runs")) if r.tags["vmae.kind"] == "trial"]
    # The third is the one with random weights.
    assert len(trials) == 3 and all(0 <= r.metrics["localise/average_map"] <= 1 for r in trials)
