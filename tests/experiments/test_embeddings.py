"""A model evaluated by mteb's own code on a small local task; what it cannot do is said in one line."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vmae.cli.main import run
from vmae.core.errors import InputError
from vmae.core.model.detector import VideoDetector, VideoDetectorConfig
from vmae.core.model.videomae import VideoMAE, VideoMAEConfig
from vmae.core.video.annotations import read_annotations
from vmae.core.video.demo_data import make_demo_data
from vmae.core.video.probe import probe_video
from vmae.core.video.reader import read_clip
from vmae.core.weights.checkpoint import save_model
from vmae.experiments.embeddings import embedder, measure
from vmae.experiments.tracking import store_at

ABSENT = [p for p in ("mteb", "torchcodec") if importlib.util.find_spec(p) is None]
needs_mteb = pytest.mark.skipif(
    bool(ABSENT), reason=f"needs {' and '.join(ABSENT)} (pip install 'vmae[mteb]')"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of the built-in set, a small model and a detector."""
    folder = tmp_path_factory.mktemp("mteb")
    make_demo_data(folder / "data", clips_per_class=5, size=48, workers=1, progress="silent")
    torch.manual_seed(0)
    config = VideoMAEConfig.from_size("tiny", height=32, width=32, depth=1, embed_dim=32)
    save_model(folder / "model", VideoMAE(config).eval())
    shape = VideoDetectorConfig.from_encoder(config)
    save_model(folder / "detector", VideoDetector(shape, 3))
    return folder


def task(csv: Path) -> Any:
    """A clustering task of mteb's on the videos of a list."""
    from datasets import Dataset, DatasetDict, Video
    from mteb.abstasks import AbsTaskClustering
    from mteb.abstasks.task_metadata import TaskMetadata

    samples = read_annotations(csv)

    class BuiltIn(AbsTaskClustering):
        metadata = TaskMetadata(
            name="BuiltInClustering",
            description="Motions of the built-in set.",
            dataset={"path": "none", "revision": "1"},
            type="VideoClustering",
            category="v2c",
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="v_measure",
            modalities=["video"],
        )
        max_fraction_of_documents_to_embed = None
        input_column_name = "video"
        label_column_name = "label"

        def load_data(self, *args: Any, **kwargs: Any) -> None:
            rows = {"video": [s.path for s in samples], "label": [s.label for s in samples]}
            self.dataset = DatasetDict({"test": Dataset.from_dict(rows).cast_column("video", Video())})
            self.data_loaded = True

    return BuiltIn()


@needs_mteb
@pytest.mark.filterwarnings("ignore")
def test_mteb_measures_a_model_with_its_own_code(folder: Path, tmp_path: Path) -> None:
    store, wanted = store_at(folder / "runs"), task(folder / "data" / "val.csv")
    scores = measure(store, str(folder / "model"), [wanted], tmp_path, batch_size=4)
    assert scores.keys() == {"BuiltInClustering"} and 0 < scores["BuiltInClustering"] <= 1
    (kept,) = tmp_path.rglob("BuiltInClustering.json")
    assert "vmae__model" in str(kept)
    began = kept.stat().st_mtime_ns
    assert measure(store, str(folder / "model"), [wanted], tmp_path) == scores
    assert kept.stat().st_mtime_ns == began


@needs_mteb
@pytest.mark.filterwarnings("ignore")
def test_features_are_the_models_of_frames_over_the_whole_video(folder: Path) -> None:
    from mteb._create_dataloaders import create_dataloader

    wanted = task(folder / "data" / "val.csv")
    wanted.load_data()
    model = embedder(store_at(folder / "runs"), str(folder / "model"))
    rows = wanted.dataset["test"]
    loader = create_dataloader(rows, task_metadata=wanted.metadata, input_column="video", batch_size=3)
    found = model.encode(loader, task_metadata=wanted.metadata, hf_split="test", hf_subset="default")
    samples = read_annotations(folder / "data" / "val.csv")
    assert found.shape == (len(samples), 32) and found.dtype == np.float32
    net, path = model._model, samples[1].path
    count = probe_video(path).num_frames
    frames = read_clip(path, np.linspace(0, count - 1, net.config.frames).round().astype(int), 32)
    video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None]
    with torch.no_grad():
        expected = net.features(video)[0].numpy()
    cosine = float(found[1] @ expected / np.linalg.norm(found[1]) / np.linalg.norm(expected))
    assert cosine > 0.999  # two decoders, resized before and after


@needs_mteb
def test_what_has_no_feature_or_is_no_task_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="expected a pre-trained model or a classifier, got a detector"):
        embedder(store_at(folder / "runs"), str(folder / "detector"))
    for name, message in (
        ("HMDB51Clusterin", "got 'HMDB51Clusterin'. Did you mean: 'HMDB51Clustering'?"),
        ("STS12", "STS12: expected a task on videos alone, got one on text"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run(["bench", "embeddings", str(folder / "model"), name, "--runs-dir", str(folder / "runs")])
        said = capsys.readouterr().err
        assert stopped.value.code == 2 and message in said and "Traceback" not in said


@pytest.mark.skipif(not ABSENT, reason="mteb is installed")
def test_without_the_extra_it_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(["bench", "embeddings", str(folder / "model"), "HMDB51Clustering"])
    assert stopped.value.code == 2 and "pip install 'vmae[mteb]'" in capsys.readouterr().err
