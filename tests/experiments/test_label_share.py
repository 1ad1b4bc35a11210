"""Few labels, pre-trained and from scratch: what a trial trains on, and whose pre-training it takes over."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from vmae.cli.main import main
from vmae.core.config import override
from vmae.core.errors import InputError
from vmae.experiments import recipes
from vmae.experiments.results import questions
from vmae.experiments.results.table import read_table
from vmae.experiments.runs import Filter, list_runs
from vmae.experiments.stages import finetune
from vmae.experiments.sweeps.driver import find_sweep, freed_unless_begun, new_name, open_store
from vmae.experiments.sweeps.spec import Plan, Trial
from vmae.experiments.tracking import store_at, tags


def test_fewer_labels_are_gone_through_in_as_many_steps() -> None:
    base = override(
        recipes.get("demo_pretrain"), {"pipeline.then": ("finetune",), "pipeline.finetune_share": 0.1}
    )
    whole = finetune.settings(override(base, {"pipeline.finetune_share": 1.0}))
    few = finetune.settings(base)
    assert (whole.data.train_share, few.data.train_share) == (1.0, 0.1)
    assert (whole.train.epochs, few.train.epochs) == (10, 100)
    assert few.optim.warmup_epochs == 10 * whole.optim.warmup_epochs


def test_a_share_without_a_fine_tuning_is_refused() -> None:
    with pytest.raises(InputError, match=r"pipeline.finetune_share: expected finetune among .* got probe"):
        override(recipes.get("demo_pretrain"), {"pipeline.finetune_share": 0.1})
    with pytest.raises(InputError, match=r"pipeline.finetune_share: expected a share in \(0, 1\], got 0"):
        override(recipes.get("demo_pretrain"), {"pipeline.finetune_share": 0.0})


def test_a_fold_chooses_no_epoch() -> None:
    trial = Trial(id="t", overrides={}, seed=0, fold=1)
    config = trial.config(recipes.get("demo_pretrain"))
    assert config.pipeline.finetune_train.best_by is None
    assert finetune.settings(config).train.best_by is None


def test_a_sweep_that_is_refused_frees_its_name_and_its_folds_lists(tmp_path: Path) -> None:
    store = open_store(tmp_path / "runs")
    sweep = store.layout.sweep(new_name(store, "x", "mine"))
    with pytest.raises(RuntimeError), freed_unless_begun(store, "mine"):
        sweep.folds.path.mkdir()
        sweep.folds.listed.write_text("a.mp4 0\n")
        raise RuntimeError
    assert not sweep.path.exists()
    new_name(store, "x", "mine")
    with pytest.raises(RuntimeError), freed_unless_begun(store, "mine"):
        sweep.folds.path.mkdir()
        sweep.plan.write_text("{}")
        raise RuntimeError
    assert sweep.folds.path.is_dir()  # what has begun goes on with its folds


@pytest.fixture(scope="module")
def asked(sweeps: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with the question as its command asks it, at a reduced size."""
    folder = tmp_path_factory.mktemp("labels")
    words = shlex.split(questions.ALL["labels"].command(questions.SETS["demo"]))[2:]
    words[words.index("--seeds") + 1] = "1"
    words += ["--values", "0.5,1", "--runs-dir", str(folder / "runs"), "--recipe", "demo_pretrain"]
    words += ["--data", str(sweeps.data / "train.csv"), "--epochs", "2"]
    small = {"pipeline.finetune_train.epochs": "1", "pipeline.finetune_train.batch_size": "8"}
    for key, value in {**sweeps.shape, **small}.items():
        words += ["--set", f"{key}={value}"]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "one_by_one.py"), *words],
        cwd=folder,
        env=sweeps.environment(VMAE_COMMAND=shlex.join(["vmae", "sweep", *words])),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / "runs"


def test_trials_that_pretrain_alike_share_one_pretraining(asked: Path) -> None:
    store = open_store(asked, "reader")
    sweep = find_sweep(store, "labels-demo")
    plan = Plan.load(sweep)
    pretrained = [t for t in plan.trials if not t.overrides["pipeline.scratch"]]
    scratch = [t for t in plan.trials if t.overrides["pipeline.scratch"]]
    assert len(pretrained) == len(scratch) == 2  # and no baseline besides
    first, second = (sweep.trial(t.id).stage("pretrain") for t in pretrained)
    weights = [home.model / "model.safetensors" for home in (first, second)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert first.checkpoints.is_dir() and not second.checkpoints.exists()
    runs = list_runs(store_at(asked), where=[Filter(column="kind", op="=", value=tags.TRIAL)])
    taken = {r.name: r.tags[tags.PRETRAINED_BY] for r in runs if tags.PRETRAINED_BY in r.tags}
    assert taken == {pretrained[1].id: pretrained[0].id}
    for trial in scratch:
        assert not (sweep.trial(trial.id).stage("pretrain").checkpoints).exists()
        numbers = json.loads(sweep.trial(trial.id).result.read_text())["metrics"]
        assert "pretrain/loss" not in numbers and "finetune/top1" in numbers
    for trial in plan.trials:  # in as many steps each: 24 labels twice are 48 labels once
        states = sweep.trial(trial.id).stage("finetune").checkpoints.glob("step-*")
        assert max(int(state.name.rpartition("-")[2]) for state in states) == 6


def test_its_page_holds_the_pretrained_against_scratch(asked: Path, tmp_path: Path) -> None:
    for words in (["export", str(tmp_path), "--runs-dir", str(asked)], ["build", str(tmp_path), "--out"]):
        line = ["results", *words, *([str(tmp_path / "out")] if words[0] == "build" else [])]
        done = CliRunner().invoke(main, line, catch_exceptions=False)
        assert done.exit_code == 0, done.output
    table = read_table(tmp_path, "labels-demo")
    assert [s.overrides["pipeline.finetune_share"] for s in table.settings] == [0.5, 0.5, 1.0, 1.0]
    page = (tmp_path / "out" / "labels.md").read_text()
    assert "against from scratch" in page
    (row,) = [line for line in page.splitlines() if line.startswith("| all labels, pre-trained")]
    assert "points" not in row and row.count("[") == 2  # its interval, and that of the difference
    (row,) = [line for line in page.splitlines() if line.startswith("| all labels, from scratch")]
    assert row.count("[") == 1
