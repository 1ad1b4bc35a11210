"""The comparison of starting points: equal steps in every arm, and a page that says what the rows say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from vmae.core.config import override
from vmae.experiments import recipes
from vmae.experiments.bench.finetune_vs_scratch import ARMS, as_markdown, compare
from vmae.experiments.config import ExperimentConfig


def tiny(name: str, folder: Path) -> ExperimentConfig:
    config = recipes.get(name)
    model = replace(config.model, height=32, width=32, frames=4, embed_dim=32, depth=1, num_heads=2)
    data = replace(config.data, frames=4, sampling_rate=1, size=(32, 32), short_side=32, segments=1)
    changes = {"data.train_csv": str(folder / "train.csv"), "data.val_csv": str(folder / "val.csv")}
    made = replace(config, model=model, data=data, train=replace(config.train, epochs=1, batch_size=12))
    return override(made, changes)


def test_every_arm_trains_as_long_and_the_page_says_who_is_ahead(tiny_videos: Path, tmp_path: Path) -> None:
    first, second = tiny("demo_pretrain", tiny_videos), tiny("demo_finetune", tiny_videos)
    rows = compare(first, second, tmp_path, seeds=1)
    assert [r["arm"] for r in rows] == ["pre-training", *ARMS]
    assert {r["steps"] for r in rows} == {2}
    # Finished parts are not repeated: the same rows come back.
    assert compare(first, second, tmp_path, seeds=1) == rows
    assert json.loads((tmp_path / "rows.json").read_text()) == rows
    scores = {"from pre-training": 0.6, "from fresh weights": 0.5, "from fresh weights, no layer decay": 0.55}
    made = [
        {"seed": seed, "arm": arm, "top1": top1 - 0.2 * seed * (arm == "from pre-training"), "steps": 2}
        for seed in range(2)
        for arm, top1 in scores.items()
    ]
    text = as_markdown(made, "COMMAND", first, second, videos=(24, 8), classes=4, shared=False)
    assert "| from pre-training | 2 | **50.0%** | 40.0% to 60.0% | 60.0%, 40.0% |" in text
    assert "ahead in 1 of 2 seeds: +5.0, -15.0 points" in text
    assert "one pre-training a seed" in text and "chance 25.0%" in text
