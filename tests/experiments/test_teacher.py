"""Pre-training on a frozen run's latents, named as `--init` names one."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmae.core.config import override
from vmae.core.errors import InputError
from vmae.core.model.videomae import VideoMAE
from vmae.core.weights.checkpoint import load_model
from vmae.experiments import jobs, recipes
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.tracking import store_at


def test_a_run_teaches_another(mini_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = override(
        recipes.get("demo_pretrain"),
        {
            "data.train_csv": str(mini_data / "train.csv"),
            "data.val_csv": str(mini_data / "val.csv"),
            "data.workers": 0,
            "model.depth": 2,
            "train.epochs": 1,
            "train.batch_size": 24,
            "train.picture_every": 0,
            "optim.warmup_epochs": 0,
        },
    )
    store = store_at("runs")
    jobs.pretrain_run(override(base, {"name": "first"}), store)
    asked = {"model.target": "teacher:first", "model.target_layer": 0, "train.epochs": 6}
    student = override(base, {"name": "second", "model.embed_dim": 96, "model.num_heads": 2, **asked})
    outcome = jobs.pretrain_run(student, store)
    saved = ExperimentConfig.load(store.layout.run("second").config)
    place = store.layout.run("first").model.resolve()
    assert saved.model.target == f"teacher:{place}"
    losses = [h["loss"] for h in outcome.result.history]
    # Latents have variance 1: predicting none of them costs 1.
    assert losses[-1] < 0.8 * losses[0]
    # Measured on held-out videos by the same task, the teacher read again.
    assert outcome.eval_loss is not None and outcome.eval_loss == pytest.approx(losses[-1], rel=0.5)
    trained = load_model(outcome.result.model_path)[0]
    assert isinstance(trained, VideoMAE)
    assert trained.config.target_dim == base.model.embed_dim != trained.config.embed_dim

    with pytest.raises(InputError, match=r"expected a run or a path after teacher:, got 'fist'.*'first'"):
        jobs.pretrain_run(override(student, {"name": "third", "model.target": "teacher:fist"}), store)
    assert not store.layout.run("third").path.exists()
