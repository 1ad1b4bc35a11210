"""Single runs: what they end with is what they say, and a resumed one needs nothing but itself."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vmae.core.errors import VmaeError
from vmae.core.model.videomae import VideoMAEConfig
from vmae.core.train.config import TrainConfig
from vmae.core.train.task import Report
from vmae.core.video.config import DataConfig
from vmae.core.weights.checkpoint import load_model
from vmae.experiments import jobs
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.runs import find
from vmae.experiments.tracking import Store, store_at


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return store_at(tmp_path / "runs")


@pytest.fixture
def config(tmp_path: Path) -> ExperimentConfig:
    """Eight small clips of two greys, four steps in two epochs."""
    for k in range(8):
        np.save(tmp_path / f"{k}.npy", np.full((6, 16, 16, 3), 100 * (k % 2) + k, np.uint8))
    (tmp_path / "train.csv").write_text("".join(f"{k}.npy {k % 2}\n" for k in range(8)))
    shape = {"frames": 4, "height": 16, "width": 16, "patch_size": 8, "depth": 1, "embed_dim": 16}
    decoder = {"num_heads": 1, "decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 1}
    data = {"frames": 4, "size": (16, 16), "short_side": 16, "sampling_rate": 1, "workers": 0, "segments": 1}
    return ExperimentConfig(
        name="pt",
        data=DataConfig(train_csv=str(tmp_path / "train.csv"), crops=1, **data),  # type: ignore[arg-type]
        model=VideoMAEConfig(**shape, **decoder),  # type: ignore[arg-type]
        train=TrainConfig(epochs=2, batch_size=4, picture_every=0, log_every=1),
    )


def terminated_at(step: int) -> Report:
    """SIGTERM arrives when the step is reported."""

    def report(event: str, data: dict[str, Any]) -> None:
        if event == "step" and data["step"] == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return report


def test_weights_that_could_not_be_saved_are_no_finished_run(
    config: ExperimentConfig, store: Store, tmp_path: Path
) -> None:
    place = store.layout.run("pt").model
    place.mkdir(parents=True)
    # A file cannot take a folder's name, whoever writes it.
    (place / "model.safetensors" / "full").mkdir(parents=True)
    with (
        pytest.warns(UserWarning, match="model NOT saved"),
        pytest.raises(VmaeError, match=r"runs/pt: expected the run's last weights to be saved, got: .*--res"),
    ):
        jobs.pretrain_run(config, store)
    assert find(store, "pt").status == "FAILED" and not place.exists()
    # Room was made: the same run goes on from its last checkpoint, which needs no step.
    outcome = jobs.pretrain_run(jobs.saved_config(store, "pt"), store)
    assert outcome.result.steps == 4 and load_model(place)[1]["epochs"] == 2
    assert find(store, "pt").status == "FINISHED"


def test_a_fine_tuning_goes_on_without_the_weights_it_began_with(
    config: ExperimentConfig, store: Store, tmp_path: Path
) -> None:
    jobs.pretrain_run(config, store)
    tuned = replace(config, job="finetune", init="pt", optim=config.pipeline.finetune_optim)

    def weights(name: str) -> dict[str, torch.Tensor]:
        return load_model(store.layout.run(name).model)[0].state_dict()

    jobs.task_run(replace(tuned, name="whole"), store)
    home = store.layout.run("part")
    stopped = jobs.task_run(replace(tuned, name="part"), store, report=terminated_at(1))
    assert stopped.result.stopped and 0 < stopped.result.steps < 4
    shutil.rmtree(store.layout.run("pt").path)
    outcome = jobs.task_run(jobs.saved_config(store, "part"), store)
    assert outcome.result.steps == 4
    assert all(torch.equal(v, weights("part")[k]) for k, v in weights("whole").items())
    assert jobs.saved_config(store, "part").init.endswith("runs/pt/model")
    # Without a checkpoint that is whole it has no weights to go on with.
    for state in home.checkpoints.glob("step-*/state.pt"):
        state.write_bytes(b"cut")
    with pytest.raises(VmaeError, match="runs/pt/model"):
        jobs.task_run(jobs.saved_config(store, "part"), store)
