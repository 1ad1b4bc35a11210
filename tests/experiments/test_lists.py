"""Lists of a run: held-out classes by name, held-out videos known to decode, one form of paths."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vmae.core.errors import InputError, VideoError
from vmae.core.model.classifier import VideoClassifier, VideoClassifierConfig
from vmae.core.model.videomae import VideoMAEConfig
from vmae.core.video.config import DataConfig
from vmae.core.video.identity import canonical
from vmae.core.video.loader import build_loader
from vmae.core.video.samples import Sample
from vmae.core.weights.checkpoint import save_model
from vmae.experiments import data as lists_of
from vmae.experiments.cluster.video_map import Work, digest
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.evaluation import evaluate_run
from vmae.experiments.tracking import store_at

SIZE = {"frames": 4, "size": (16, 16), "short_side": 16, "sampling_rate": 1, "workers": 0}
GREYS = {"black": 0, "grey": 128, "white": 250}


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """Clips of one grey each: `train` of three classes, `val` of two, whose numbers mean others."""
    for split, names in (("train", ["black", "grey", "white"]), ("val", ["black", "white"])):
        folder = tmp_path / split
        folder.mkdir()
        lines = []
        for label, name in enumerate(names):
            for k in range(3):
                np.save(
                    folder / f"{name}{k}.npy",
                    np.full((6, 16, 16, 3), GREYS[name] + k, np.uint8),
                )
                lines.append(f"{name}{k}.npy {label}\n")
        (folder / "list.csv").write_text("".join(lines))
        (folder / "classes.txt").write_text("".join(f"{n}\n" for n in names))
    return tmp_path


def data(lists: Path, **changes: object) -> DataConfig:
    csv = {"train_csv": str(lists / "train/list.csv"), "val_csv": str(lists / "val/list.csv")}
    return DataConfig(**{**SIZE, **csv, **changes})  # type: ignore[arg-type]


def experiment(data: DataConfig) -> ExperimentConfig:
    shape = {"frames": 4, "height": 16, "width": 16, "patch_size": 8, "depth": 1, "embed_dim": 48}
    return ExperimentConfig(data=data, model=VideoMAEConfig(**shape))  # type: ignore[arg-type]


def open_both(config: ExperimentConfig, cache: Path) -> lists_of.Data:
    found = lists_of.open_data(config.data, 0, cache)
    lists_of.require_held_out(config.data, 0)
    return found


def labels(samples: list[Sample]) -> dict[str, int]:
    return {Path(s.path).stem[:-1]: s.label for s in samples}


def test_held_out_lists_are_mapped_by_name(lists: Path, tmp_path: Path) -> None:
    config = experiment(data(lists))
    found = open_both(config, tmp_path / "cache")
    assert labels(found.train_plain.samples) == {"black": 0, "grey": 1, "white": 2}
    assert found.val is not None
    assert labels(found.val.samples) == {"black": 0, "white": 2}
    assert found.num_classes == 3
    assert labels(lists_of.open_test(config.data, 0, tmp_path / "cache").samples) == {"black": 0, "white": 2}
    # A test list is mapped too, and one without names is by number.
    (lists / "val/classes.txt").rename(lists / "classes.txt")
    shutil.copy(lists / "val/list.csv", lists / "test.csv")
    (lists / "test.csv").write_text(
        (lists / "val/list.csv").read_text().replace("black", "val/black").replace("white", "val/white")
    )
    assert labels(lists_of.read_list(data(lists), str(lists / "test.csv"))) == {"black": 0, "white": 2}
    assert labels(lists_of.read_list(data(lists), str(lists / "val/list.csv"))) == {"black": 0, "white": 1}


def test_a_class_that_the_training_list_lacks_is_refused(lists: Path, tmp_path: Path) -> None:
    (lists / "val/classes.txt").write_text("black\npurple\n")
    with pytest.raises(InputError, match=r"val/list\.csv: expected classes .*, got 'purple' \(3 videos\)"):
        open_both(experiment(data(lists)), tmp_path / "cache")
    # Names that are not this training list's (fewer than it has labels) say nothing.
    (lists / "train/classes.txt").write_text("x\n")
    assert open_both(experiment(data(lists)), tmp_path / "cache").num_classes == 3


@pytest.mark.parametrize("names", [["black", "grey", "white"], ["white", "black", "grey"], None])
def test_a_model_is_measured_by_its_own_class_names(
    names: list[str] | None, lists: Path, tmp_path: Path
) -> None:
    config = VideoClassifierConfig(
        frames=4, height=16, width=16, patch_size=8, depth=1, embed_dim=16, num_heads=1
    )
    save_model(tmp_path / "model", VideoClassifier(config, 3), {"labels": names} if names else {})
    wanted = experiment(
        data=data(lists, train_csv="", val_csv="", test_csv=str(lists / "val/list.csv"), segments=1, crops=1)
    )
    _, home = evaluate_run(wanted, store_at(tmp_path / "runs"), str(tmp_path / "model"))
    expected = {"black": "0", "white": "1"} if names is None else {n: n for n in ("black", "white")}
    with home.predictions.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert {Path(row["path"]).stem[:-1]: row["label"] for row in rows} == expected
    if names:
        (lists / "val/classes.txt").write_text("black\npurple\n")
        with pytest.raises(InputError, match="got 'purple'"):
            evaluate_run(wanted, store_at(tmp_path / "runs"), str(tmp_path / "model"))


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("which", ["val_csv", "test_csv"])
def test_a_held_out_video_that_cannot_be_read_is_known_before_training(
    which: str, cache: bool, lists: Path, tmp_path: Path
) -> None:
    bad = lists / "val/white1.npy"
    bad.write_bytes(bad.read_bytes()[:200])
    changes = {"val_csv": "", which: str(lists / "val/list.csv"), "cache": cache}
    config = experiment(data(lists, **changes))
    with pytest.raises(VideoError, match=r"white1\.npy: unreadable"):
        open_both(config, tmp_path / "cache")
    counted = replace(config, data=replace(config.data, bad_eval="count"))
    open_both(counted, tmp_path / "cache")


def test_half_an_evaluation_is_of_its_files(lists: Path, tmp_path: Path) -> None:
    """The same path with another video is other work; the same video with another time is not."""
    (tmp_path / "model").write_bytes(b"weights")
    work = Work(kind="classify", checkpoint=str(tmp_path / "model"), data=data(lists))
    samples = lists_of.read_list(work.data, work.data.val_csv)
    before = digest(work, samples)
    Path(samples[0].path).touch()
    assert digest(work, samples) == before
    shutil.copyfile(samples[-1].path, samples[0].path)
    assert digest(work, samples) != before


def test_lists_given_in_any_way_are_one_cache(
    lists: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lists)
    (lists / "elsewhere").mkdir()
    text = (lists / "val/list.csv").read_text()
    moved = "".join(f"../val/{line}\n" for line in text.splitlines())
    (lists / "elsewhere/list.csv").write_text(moved)
    ways = ["val/list.csv", str(lists / "val/list.csv"), "elsewhere/../val/list.csv", "elsewhere/list.csv"]
    folders = set()
    for listed in ways:
        config = experiment(DataConfig(**SIZE, val_csv=listed, cache=True))  # type: ignore[arg-type]
        dataset = lists_of.open_test(config.data, 0, tmp_path / "cache", alone=True)
        assert dataset.cache is not None
        folders.add(dataset.cache.folder)
        assert len(dataset[0]["clip"]) == dataset.clips_per_video
        assert {s.path for s in dataset.samples} == {canonical(s.path) for s in dataset.samples}
    assert len(folders) == 1


@pytest.mark.parametrize("cache", [False, True])
def test_a_broken_training_video_is_left_out_of_probes_too(cache: bool, lists: Path, tmp_path: Path) -> None:
    bad = lists / "train/grey1.npy"
    bad.write_bytes(bad.read_bytes()[:200])
    config = experiment(data(lists, max_bad_share=0.2, cache=cache))
    found = open_both(config, tmp_path / "cache")
    (batch,) = list(build_loader(found.train_plain, 16))
    assert len(batch["path"]) == 8 and [f["path"] for f in batch["failed"]] == [str(bad)]
