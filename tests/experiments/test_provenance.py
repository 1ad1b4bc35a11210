"""The data digest changes with the data and with nothing else."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from vmae.core.errors import InputError
from vmae.core.video.config import DataConfig
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.layout import RunDir, SweepDir
from vmae.experiments.provenance import (
    config_tags,
    data_digest,
    first_code,
    keep_digest,
    shared_tags,
    with_first_digest,
)
from vmae.experiments.tracking import Store, Tracker, origin, tags


def _data(folder: Path) -> DataConfig:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("a.mp4", "b.mp4"):
        (folder / name).write_bytes(b"12345")
        os.utime(folder / name, ns=(1, 1_000_000))
    (folder / "train.csv").write_text("a.mp4 0\nb.mp4 1\n")
    return DataConfig(train_csv=str(folder / "train.csv"), frames=8, size=(64, 64))


def test_digest_follows_lists_and_files_not_their_place(tmp_path: Path) -> None:
    data = _data(tmp_path / "one")
    first = data_digest(data)
    assert len(first) == 12
    assert data_digest(data) == first
    assert data_digest(_data(tmp_path / "elsewhere")) == first
    digests = [first]
    (tmp_path / "one" / "b.mp4").write_bytes(b"123456")  # size and time
    digests.append(data_digest(data))
    (tmp_path / "one" / "b.mp4").unlink()
    digests.append(data_digest(data))
    (tmp_path / "one" / "train.csv").write_text("a.mp4 1\nb.mp4 1\n")  # a label
    digests.append(data_digest(data))
    digests.append(data_digest(replace(data, val_csv=data.train_csv)))
    assert len(set(digests)) == len(digests)


def test_trials_share_the_sweeps_digest_unless_their_lists_differ(tmp_path: Path) -> None:
    base = ExperimentConfig(recipe="demo_pretrain", data=_data(tmp_path / "one"))
    found = keep_digest(base, SweepDir(tmp_path))
    assert found == config_tags(base)
    assert found["vmae.recipe"] == "demo_pretrain"
    (tmp_path / "one" / "a.mp4").unlink()  # the kept digest is used: nothing is computed again
    assert shared_tags(base, base, SweepDir(tmp_path)) == found
    other = ExperimentConfig(data=replace(base.data, val_csv=base.data.train_csv))
    assert shared_tags(other, base, SweepDir(tmp_path))["vmae.data_digest"] != found["vmae.data_digest"]


def test_data_that_changed_since_a_run_began_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The digest that it began with stays; another order, label or video has a tag and a line."""
    sweep, base = SweepDir(tmp_path), ExperimentConfig(data=_data(tmp_path / "one"))
    store = Store(uri="sqlite:////nowhere.db", runs_dir=tmp_path)
    first = keep_digest(base, sweep)
    Tracker(store, sweep.path, name="s", key="s", kind="sweep", tags=first, patience_s=600)
    assert with_first_digest(config_tags(base), sweep) == (first, "")
    listed = tmp_path / "one" / "train.csv"
    for change in (
        lambda: listed.write_text("b.mp4 1\na.mp4 0\n"),
        lambda: listed.write_text("a.mp4 1\nb.mp4 1\n"),
        lambda: (tmp_path / "one" / "b.mp4").write_bytes(b"123456"),
    ):
        change()
        now = data_digest(base.data)
        found, said = with_first_digest(config_tags(base), sweep)
        assert found == {**first, tags.DATA_CHANGED: now}
        assert "the data changed since" in said and now in said
    keep_digest(base, sweep)
    assert "the data changed since" in caplog.text


def test_a_run_that_goes_on_with_other_code_says_so_and_keeps_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def commit(name: str) -> None:
        monkeypatch.setenv(origin.COMMIT_ENV, name)
        origin.own_commit.cache_clear()

    home = RunDir(tmp_path / "run")
    store = Store(uri=f"sqlite:///{tmp_path / 'mlflow.db'}", runs_dir=tmp_path)
    commit("aaaa111")
    assert first_code(home) == ({}, "")
    Tracker(store, home.path, name="k", key="run:k", kind="pretrain", patience_s=60).finish(timeout_s=0)
    assert first_code(home) == ({}, "")
    commit("bbbb222")
    found, said = first_code(home)
    assert found == {tags.COMMIT: "aaaa111", tags.CODE_CHANGED: "commit bbbb222"}
    assert "commit aaaa111; now commit bbbb222" in said
    monkeypatch.setattr("vmae.__version__", "99.0")
    assert first_code(home)[0][tags.CODE_CHANGED] == "commit bbbb222, vmae 99.0"
    origin.own_commit.cache_clear()


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.csv"):
        data_digest(DataConfig(train_csv=str(tmp_path / "absent.csv")))
