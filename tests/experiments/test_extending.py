"""docs/extending.md as it stands: its modules are written and used."""

from __future__ import annotations

import math
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

import vmae
from vmae.core.model.grid import TokenGrid
from vmae.core.model.masking import MaskConfig, sample_masks

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "model.frames": 8,
    "model.height": 32,
    "model.width": 32,
    "model.embed_dim": 32,
    "model.depth": 1,
    "model.num_heads": 2,
    "model.decoder_embed_dim": 32,
    "data.size": "32,32",
    "data.short_side": 32,
    "data.sampling_rate": 1,
    "train.epochs": 1,
    "train.batch_size": 8,
    "optim.warmup_epochs": 0,
}


@pytest.fixture
def here(tiny_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the page's modules and a small list."""
    page = (ROOT / "docs" / "extending.md").read_text()
    found = re.findall(r"`(my_\w+\.py)`:\n\n```python\n(.*?)```", page, flags=re.S)
    assert [name for name, _ in found] == ["my_masks.py", "my_targets.py", "my_stages.py"]
    for name, text in found:
        (tmp_path / name).write_text(text)
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    for file in tiny_videos.iterdir():
        shutil.copy(file, tmp_path / file.name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("VMAE_RUNS", raising=False)
    return tmp_path


def test_the_mask_hides_all_columns_but_the_kept_ones(here: Path) -> None:
    grid = TokenGrid(frames=8, height=32, width=32, patch_size=8, tubelet_size=2)
    config = MaskConfig(type="my_masks:columns", params={"keep": 2})
    mask, _ = sample_masks(config, grid, 3, torch.Generator().manual_seed(0))
    hidden = mask.to_bool().reshape(3, grid.t, grid.h, grid.w)
    assert (hidden == hidden[:, :1, :1]).all()
    assert hidden[:, 0, 0].sum(1).tolist() == [2, 2, 2]


def test_pre_training_with_the_mask_and_the_target(here: Path) -> None:
    own = {
        "mask.type": "my_masks:columns",
        "model.target": "my_targets:mean_colour",
        "model.target_dim": 3,
    }
    done = vmae.pretrain("train.csv", settings={**SMALL, **own}, name="own")
    assert math.isfinite(done.metrics["loss"])
    assert done.load().module.config.target == "my_targets:mean_colour"


def test_the_stage_measures_a_trial_and_ranks_by_its_metric(here: Path) -> None:
    from vmae.core.config import override
    from vmae.experiments import recipes, stages
    from vmae.experiments.sweeps.space import parse_params
    from vmae.experiments.sweeps.spec import make_plan
    from vmae.experiments.sweeps.trial import run_trial
    from vmae.experiments.tracking import Tracker, store_at

    stage = stages.get("my_stages:GAP")
    assert stage.metric.name == "gap/ratio"
    assert stage.metric.text(1.234) == "1.23"
    lists = {"data.train_csv": "train.csv", "data.val_csv": "val.csv", "pipeline.then": ["my_stages:GAP"]}
    base = override(recipes.get("demo_pretrain"), {**SMALL, **lists})
    plan = make_plan(
        name="own",
        sweep="custom",
        title="t",
        params=parse_params(["mask.ratio=0.75"], base),
        metric=base.pipeline.metric,
        base=base,
        baseline=False,
    )
    store = store_at()
    sweep = store.layout.sweep(plan.name)
    plan.save(sweep)
    with Tracker(store, sweep.path, name=plan.name, key=plan.key, kind="sweep"):
        result = run_trial(sweep, plan.trials[0].id, store)
    assert result["metrics"]["gap/ratio"] > 0
