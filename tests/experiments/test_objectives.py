"""What is not pixels, trained and measured as any other: a joint embedding through the stages of a trial."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vmae.core.config import override
from vmae.core.errors import InputError
from vmae.core.model.joint import JointEncoder
from vmae.core.weights.checkpoint import load_model
from vmae.experiments import jobs, recipes
from vmae.experiments.tracking import store_at


def test_a_joint_embedding_is_trained_resumed_and_measured(mini_data: Path, tmp_path: Path) -> None:
    base = override(
        recipes.get("demo_pretrain"),
        {
            "data.train_csv": str(mini_data / "train.csv"),
            "data.val_csv": str(mini_data / "val.csv"),
            "data.workers": 0,
            "data.repeats": 2,
            "model.depth": 1,
            "model.target": "sigreg",
            "mask.type": "random",
            "mask.ratio": 0.75,
            "train.epochs": 4,
            "train.batch_size": 16,
            "optim.warmup_epochs": 0,
            "monitor.share": 1.0,
        },
    )
    store = store_at(tmp_path / "runs")
    whole = jobs.pretrain_run(override(base, {"name": "whole"}), store)
    losses = [h["loss"] for h in whole.result.history]
    assert losses[-1] < losses[0]
    assert whole.eval_loss is None and "val/loss" not in whole.result.history[-1]
    assert whole.result.history[-1]["monitor_participation"] > 1
    model = load_model(whole.result.model_path)[0]
    assert isinstance(model, JointEncoder)

    seen = 0

    def stop(event: str, data: dict[str, object]) -> None:
        nonlocal seen
        seen += event == "step"
        if seen == 5:
            raise KeyboardInterrupt

    halves = override(base, {"name": "halves", "train.checkpoint_every_steps": 2})
    with pytest.raises(KeyboardInterrupt):
        jobs.pretrain_run(halves, store, report=stop)
    resumed = jobs.pretrain_run(halves, store)
    assert [h["loss"] for h in resumed.result.history] == losses
    other = load_model(resumed.result.model_path)[0]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_what_cannot_be_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    base = recipes.get("demo_pretrain")
    with pytest.raises(InputError, match=r"data.repeats of at least 2 with model.target=sigreg .*, got 1"):
        override(base, {"model.target": "sigreg"})
    with pytest.raises(InputError, match=r"no mask.decoder_type with target sigreg"):
        config = override(
            base, {"model.target": "sigreg", "data.repeats": 2, "mask.decoder_type": "running_cell"}
        )
        jobs.pretrain_run(config, store_at(tmp_path / "runs"))
