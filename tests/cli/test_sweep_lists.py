"""What a sweep makes of a list alone: the recommended pre-training, and a trial a fold and seed."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vmae.cli.sweep_options import SweepOptions
from vmae.core.errors import InputError
from vmae.core.video.annotations import read_annotations
from vmae.experiments.sweeps.ready import prepare
from vmae.experiments.sweeps.trial import run_trial
from vmae.experiments.tracking import store_at


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    lines, table = [], ["path,group"]
    for i in range(24):
        np.save(tmp_path / f"{i}.npy", rng.integers(0, 255, (20, 40, 60, 3), np.uint8))
        lines.append(f"{i}.npy {i % 3}\n")
        table.append(f"{i}.npy,g{i // 4}")
    (tmp_path / "train.csv").write_text("".join(lines))
    (tmp_path / "groups.csv").write_text("\n".join(table) + "\n")
    return tmp_path / "train.csv"


def options(listed: Path, **given: Any) -> SweepOptions:
    empty: dict[str, Any] = {f.name: None for f in fields(SweepOptions)}
    empty |= {"stage_names": (), "param_texts": (), "assignments": (), "stage_texts": (), "lists": {}}
    empty |= {
        "list_them": False,
        "scheduler": "none",
        "seeds": 1,
        "train_csv": listed,
        "values": "0.5,0.75",
        "equal": "epochs",
    }
    return SweepOptions(**{**empty, **given})


def test_a_list_alone_is_pretrained_as_recommended_and_divided(
    listed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = options(listed, folds="3", seeds=2, epochs=1).plan(store_at(tmp_path / "runs"), "masking_ratio")
    said = capsys.readouterr().err
    assert "sampling                 uniform" in said and "folds of whole groups of" in said
    assert plan.base.recipe == "small_clips_pretrain" and plan.base.data.sampling == "uniform"
    assert plan.base.pipeline.finetune_optim.layer_decay == 0.75  # the recommended recipe's
    assert (plan.folds, len(plan.trials)) == ((0, 1, 2), 3 * 3 * 2)
    for trial in plan.trials:
        data = trial.config(plan.base).data
        inside, outside = (read_annotations(csv) for csv in (data.train_csv, data.val_csv))
        groups = [{int(Path(s.path).stem) // 4 for s in part} for part in (inside, outside)]
        assert len(inside) + len(outside) == 24 and not groups[0] & groups[1]


def test_without_folds_a_held_out_list_is_needed(listed: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a held-out list"):
        options(listed).plan(store_at(tmp_path / "runs"), "masking_ratio")


def test_folds_that_are_not_there_are_said_before_the_list_is_looked_at(
    listed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = options(listed, folds=str(tmp_path / "none.csv"))
    with pytest.raises(InputError, match=r"none\.csv: expected a csv with a header"):
        given.plan(store_at(tmp_path / "runs"), "masking_ratio")
    assert not capsys.readouterr().err


def test_monitors_rank_a_list_without_labels_and_held_out_videos(
    listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As docs/monitors.md says: the whole of it, on a list of paths."""
    monkeypatch.chdir(tmp_path)
    listed.write_text("".join(f"{i}.npy\n" for i in range(24)))
    small = (
        "model.depth=1",
        "model.embed_dim=32",
        "model.num_heads=2",
        "train.batch_size=8",
        "data.workers=0",
    )
    store = store_at(tmp_path / "runs")
    given = options(listed, stage_names=("monitor",), epochs=1, recipe="demo_pretrain", assignments=small)
    plan = given.plan(store, "masking_ratio")
    prepare(plan, store)
    plan = plan.begun(store.layout.sweep(plan.name))
    plan.save(store.layout.sweep(plan.name))
    done = run_trial(store.layout.sweep(plan.name), plan.trials[-1].id, store)
    assert done["metrics"]["monitor/participation"] > 0
    assert not {"eval/loss", "monitor/knn", "pretrain/val_loss"} & set(done["metrics"])
    with pytest.raises(InputError, match="expected a held-out list"):
        options(listed, stage_names=("monitor", "probe")).plan(store, "masking_ratio")
