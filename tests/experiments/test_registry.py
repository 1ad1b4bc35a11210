"""A registered checkpoint loads in a process that has nothing of this checkout, and predicts from paths."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vmae.core.errors import InputError
from vmae.core.model.classifier import VideoClassifier, VideoClassifierConfig
from vmae.core.model.videomae import VideoMAE, VideoMAEConfig
from vmae.core.video.clips import ClipDataset
from vmae.core.video.config import DataConfig
from vmae.core.video.samples import Sample
from vmae.core.weights.checkpoint import save_model
from vmae.experiments import registry
from vmae.experiments.runs import Run, find
from vmae.experiments.tracking import Store, Tracker, store_at

DATA = DataConfig(frames=8, sampling_rate=2, size=(32, 32), short_side=32)


def _model() -> VideoMAE:
    torch.manual_seed(0)
    return VideoMAE(
        VideoMAEConfig(
            frames=8,
            height=32,
            width=32,
            patch_size=8,
            tubelet_size=2,
            embed_dim=32,
            depth=1,
            num_heads=2,
            decoder_embed_dim=16,
            decoder_depth=1,
            decoder_num_heads=2,
        )
    )


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return store_at(tmp_path / "runs")


def _run(store: Store, name: str, model: torch.nn.Module, meta: dict[str, object]) -> Run:
    home = store.runs_dir / name
    save_model(home / "model", model, meta)
    with Tracker(
        store,
        home,
        name=name,
        key=f"run:{name}",
        kind="pretrain",
        params={"data.sampling_rate": 2, "data.short_side": 32, "data.sampling": "dense"},
        tags={"vmae.checkpoint": str(home / "model")},
    ):
        pass
    return find(store, name)


PROGRAM = """
import json, sys
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
models = [mlflow.pyfunc.load_model(uri) for uri in sys.argv[2:4]]
import vmae
print("RESULT", json.dumps([vmae.__file__, *[m.predict(sys.argv[4:]) for m in models]]))
"""


def test_registered_models_predict_in_a_fresh_process(store: Store, mini_data: Path, tmp_path: Path) -> None:
    pretrained = _model()
    torch.manual_seed(1)
    classifier = VideoClassifier(VideoClassifierConfig.from_encoder(pretrained.config, init_scale=1.0), 3)
    classifier.load_encoder(pretrained)
    runs = [
        _run(store, "pre", pretrained, {}),
        _run(store, "tuned", classifier, {"labels": ["up", "down", "left"]}),
    ]
    assert [registry.register(store, r, "mini") for r in runs] == [1, 2]
    assert registry.register(store, runs[0], "mini") == 1  # the same run is not counted twice
    assert not (tmp_path / "mlflow.db").exists()
    videos = sorted(str(p) for p in (mini_data / "val").glob("*.mp4"))[:3]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        # Isolated from this checkout: the package comes from the registered model.
        [sys.executable, "-c", PROGRAM, store.uri, "models:/mini/1", "models:/mini/2", *videos],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    where, features, labels = json.loads(line.removeprefix("RESULT "))
    assert "/code/vmae/" in where, where
    dataset = ClipDataset([Sample(path=v, label=0) for v in videos], DATA, "val")
    clips = torch.stack([torch.as_tensor(dataset[i]["clip"]) for i in range(3)]).permute(0, 4, 1, 2, 3)
    with torch.no_grad():
        expected = pretrained.eval().encode(clips).mean(1)
        probs = classifier.eval()(clips).softmax(1)
    assert [f["path"] for f in features] == videos
    torch.testing.assert_close(
        torch.tensor([f["features"] for f in features]), expected, atol=1e-4, rtol=1e-3
    )
    torch.testing.assert_close(
        torch.tensor([r["probabilities"] for r in labels]), probs, atol=1e-4, rtol=1e-3
    )
    for row, p in zip(labels, probs, strict=True):
        assert row["label"] == int(p.argmax())
        assert row["name"] == ["up", "down", "left"][row["label"]]


def test_what_cannot_be_registered_or_read_is_named(store: Store, tmp_path: Path) -> None:
    import mlflow

    run = _run(store, "pre", _model(), {})
    with pytest.raises(InputError, match="expected a model name without"):
        registry.register(store, run, "a/b")
    with Tracker(store, store.runs_dir / "x", name="x", key="x", kind="probe"):
        pass
    with pytest.raises(InputError, match="expected run 'x' to have a checkpoint, got none"):
        registry.register(store, find(store, "x"), "mini")
    assert run.checkpoint is not None
    registry.save_pyfunc(run, run.checkpoint, tmp_path / "model")
    (tmp_path / "bad.mp4").write_text("text")
    with pytest.raises(mlflow.exceptions.MlflowException, match=r"bad\.mp4: expected a video"):
        mlflow.pyfunc.load_model(str(tmp_path / "model")).predict([str(tmp_path / "bad.mp4")])
