"""Checkpoint files are found, described by their headers, and offered after the runs."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vmae.core.errors import CheckpointError
from vmae.core.model.classifier import VideoClassifier, VideoClassifierConfig
from vmae.core.model.videomae import VideoMAE, VideoMAEConfig
from vmae.core.weights import files
from vmae.core.weights.checkpoint import WEIGHTS_NAME, save_model
from vmae.dashboard.clips import ClipInfo
from vmae.dashboard.settings import Settings
from vmae.dashboard.sources import DatasetEntry, read_catalog, read_samples
from vmae.dashboard.viewer import load_videomae
from vmae.experiments.tracking import Tracker, create_store, store_at

SMALL: dict[str, Any] = {
    "frames": 8,
    "height": 32,
    "width": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 1,
    "num_heads": 2,
    "decoder_embed_dim": 16,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two models (one deep, one in its folder), and four files that are none."""
    torch.manual_seed(0)
    model = VideoMAE(VideoMAEConfig(**SMALL))
    save_model(tmp_path / "a.safetensors", model, {"mask": {"type": "random", "ratio": 0.5}})
    save_model(tmp_path / "deep" / "er" / "model", model)
    encoder = {k: v for k, v in SMALL.items() if not k.startswith("decoder")}
    classifier = VideoClassifier(VideoClassifierConfig(**encoder), 3)
    save_model(tmp_path / "classifier.safetensors", classifier)
    save_file({"x": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 64)
    (tmp_path / "pickle.safetensors").write_bytes(b"\x80\x04" + b"cos\nsystem\n" * 9)
    return tmp_path


def _with_mask(**mask: object) -> bytes:
    """A file whose header is a pre-trained model's with this mask."""
    said = json.dumps({"format": "vmae-1", "model": "VideoMAE", "config": {}, "meta": {"mask": mask}})
    head = json.dumps({"__metadata__": {"vmae": said}}).encode()
    return len(head).to_bytes(8, "little") + head


def _nested(text: str) -> bytes:
    return len(text).to_bytes(8, "little") + text.encode()


ODD: dict[str, Any] = {
    "a pipe": os.mkfifo,
    "a link to itself": lambda p: p.symlink_to(p.name),
    "a link to nowhere": lambda p: p.symlink_to("nowhere"),
    "a folder": lambda p: p.mkdir(),
    "nested without end": lambda p: p.write_bytes(_nested("[" * 200_000)),
    "an entry nested without end": lambda p: p.write_bytes(
        _nested(json.dumps({"__metadata__": {"vmae": "[" * 200_000}}))
    ),
    "a header of an exabyte": lambda p: p.write_bytes((2**60).to_bytes(8, "little") + b"{}"),
    "metadata that are a list": lambda p: p.write_bytes(_nested(json.dumps({"__metadata__": [1]}))),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_files_are_left_out(kind: str, folder: Path) -> None:
    ODD[kind](folder / "odd.safetensors")
    assert {f.name for f in files.list_files((str(folder),))} == {"a.safetensors", "deep/er/model"}


@pytest.mark.parametrize("ratio", [10**400, float("nan"), 1e300, -3, 1, True, "0.5", None])
def test_a_ratio_that_is_none_is_not_known(ratio: object, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(_with_mask(ratio=ratio, type=["tube"]))
    (found,) = files.list_files((str(tmp_path),))
    assert found.ratio is None


def test_names_are_shown_in_letters_that_a_page_has(tmp_path: Path) -> None:
    (tmp_path / "a\nb.safetensors").write_bytes(_with_mask(ratio=0.5))
    (tmp_path / os.fsdecode(b"caf\xe9.safetensors")).write_bytes(_with_mask(ratio=0.5))
    assert [f.name for f in files.list_files((str(tmp_path),))] == ["a?b.safetensors"]


def test_only_pretraining_checkpoints_are_listed(folder: Path) -> None:
    assert WEIGHTS_NAME == files.WEIGHTS_NAME
    found = {f.name: f for f in files.list_files((str(folder),))}
    assert set(found) == {"a.safetensors", "deep/er/model"}
    assert (found["a.safetensors"].ratio, found["a.safetensors"].mask_type) == (0.5, "random")
    assert found["deep/er/model"].ratio is None


def test_one_file_is_listed_once_however_it_is_named(folder: Path) -> None:
    (folder / "link.safetensors").symlink_to(folder / "a.safetensors")
    given = (str(folder / "a.safetensors"), str(folder), str(folder / "deep"))
    assert len(files.list_files(given)) == 2


def test_the_walk_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "deep" / "loop").symlink_to(folder, target_is_directory=True)
    assert len(files.list_files((str(folder),))) == 2
    assert [f.name for f in files.list_files((str(folder),), ["deep"])] == ["a.safetensors"]
    monkeypatch.setattr(files, "MAX_DEPTH", 1)
    assert [f.name for f in files.list_files((str(folder),))] == ["a.safetensors"]
    monkeypatch.setattr(files, "MOST_FILES", 0)
    assert files.list_files((str(folder / "nothing"),)) == []


def test_files_follow_the_runs_and_open(folder: Path, mini: Any) -> None:
    settings = Settings(**{**json.loads(mini.settings), "checkpoints": ()})
    found = read_catalog(settings, files.list_files((str(folder), str(mini.runs_dir))))
    labels = [c.label for c in found.checkpoints]
    # The runs' own files are under the run directory too: each stands there once, runs before files.
    assert len({c.path for c in found.checkpoints}) == len(labels)
    assert [label.endswith("(file)") for label in labels] == [False] * 3 + [True] * (len(labels) - 3)
    assert "deep/er/model (file)" in labels
    entry = next(c for c in found.checkpoints if c.label == "a.safetensors (file)")
    assert (entry.ratio, entry.mask_type) == (0.5, "random")
    assert found.checkpoint(entry.id) is entry
    assert load_videomae(entry.path, entry.stamp).grid.num_tokens == 64


def test_a_runs_list_is_read_in_the_runs_format(tmp_path: Path) -> None:
    """`frame_dir total label` cannot be guessed: the list was shown empty."""
    (tmp_path / "val.csv").write_text("jump 12 1\nrun 30 0\n")
    store = store_at(tmp_path / "runs")
    create_store(store)
    params = {"data.val_csv": str(tmp_path / "val.csv"), "data.annotation_format": "total_label"}
    with Tracker(store, store.layout.run("a").path, name="a", key="run:a", kind="pretrain", params=params):
        pass
    (dataset,) = read_catalog(Settings(runs_dir=str(store.runs_dir))).datasets
    assert [(s.label, s.num_frames) for s in read_samples(dataset)] == [(1, 12), (0, 30)]


def test_a_file_that_is_no_model_is_refused_before_the_server_starts(folder: Path) -> None:
    from click.testing import CliRunner

    from vmae.cli.dashboard import dashboard

    for given in ("broken.safetensors", "classifier.safetensors", "nowhere"):
        result = CliRunner().invoke(dashboard, ["--checkpoint", str(folder / given)])
        assert isinstance(result.exception, CheckpointError)
        assert "expected a pre-training checkpoint" in str(result.exception)


def test_equal_names_are_told_apart_by_sweep_and_data_set() -> None:
    from vmae.dashboard.sources import CheckpointEntry, DatasetEntry, _told_apart

    data = {d: DatasetEntry(id=d, label=f"{d}/val.csv", csv="", data_root="") for d in ("a", "b")}
    entries = [
        CheckpointEntry(id=i, label=label, path="/x", stamp=0, run_id=i, dataset_id=d)
        for i, label, d in (("1", "ratio0.5_s0", "a"), ("2", "ratio0.5_s0", "b"), ("3", "other", "a"))
    ]
    found = [e.label for e in _told_apart(entries, {"1": "demo-1", "2": "demo-2"}, data)]
    assert found == ["ratio0.5_s0 · demo-1 · a/val.csv", "ratio0.5_s0 · demo-2 · b/val.csv", "other"]


def test_a_clip_is_shown_as_the_run_cut_its_clips() -> None:
    clip = ClipInfo(key="", label="", num_frames=60, fps=30.0, width=1, height=1)
    entry = partial(DatasetEntry, id="x", label="x", csv="", data_root="", sampling_rate=4)
    assert entry().stride(clip, 8) == 4
    assert entry(fps=10.0).stride(clip, 8) == 3 and entry(fps=60.0).stride(clip, 8) == 1
    assert entry(sampling="uniform").stride(clip, 8) == 7
