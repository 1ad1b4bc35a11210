"""Exported graphs give the model's numbers, for any number of clips, and say how clips are made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vmae.core.errors import CheckpointError, InputError
from vmae.core.model.classifier import VideoClassifier, VideoClassifierConfig
from vmae.core.model.detector import VideoDetector, VideoDetectorConfig
from vmae.core.model.encoder import VideoModel
from vmae.core.model.end_to_end import EndToEndConfig, EndToEndDetector
from vmae.core.model.joint import JointEncoder
from vmae.core.model.videomae import VideoMAE, VideoMAEConfig
from vmae.core.video.demo_scene import clip_frames
from vmae.core.weights import export
from vmae.core.weights.export import (
    METADATA,
    TOLERANCE,
    describe_graph,
    example_inputs,
    export_graph,
    graph_of,
    run_graph,
    run_model,
)

SHAPE = {"frames": 4, "height": 32, "width": 48, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
DECODER = {"decoder_embed_dim": 32, "decoder_depth": 1, "decoder_num_heads": 2}
CHANGES: dict[str, dict[str, Any]] = {
    "classifier": {},
    "first": {"pool": "first"},
    "subtracting": {"background": "subtract"},
}
"""Of a classifier's configuration."""
SAMPLING = {"sampling": "dense", "sampling_rate": 2}


def model(kind: str) -> VideoModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "pretrained":
            return VideoMAE(VideoMAEConfig.from_dict(SHAPE | DECODER))
        if kind == "joint":
            return JointEncoder(VideoMAEConfig.from_dict(SHAPE | DECODER | {"target": "sigreg"}))
        if kind in CHANGES:
            config = VideoClassifierConfig.from_dict(SHAPE | {"init_scale": 1.0} | CHANGES[kind])
            return VideoClassifier(config, 5)
        if kind == "end_to_end":
            own: dict[str, Any] = {
                "init_scale": 1.0,
                "keep_rate": 0.6,
                "key_weight": 4.0,
                "queries": 5,
                "context_depth": 1,
            }
            own |= SHAPE | {"depth": 1}
            return EndToEndDetector(EndToEndConfig.from_dict(own), 4)
        return VideoDetector(VideoDetectorConfig.from_dict(SHAPE | {"init_scale": 1.0}), 4)


def read_facts(path: Path, to: str) -> dict[str, Any]:
    """What an exported file says of itself, as another program reads it."""
    if to == "onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found = session.get_modelmeta().custom_metadata_map
    else:
        found = {METADATA: ""}
        torch.export.load(path, extra_files=found)
    facts: dict[str, Any] = json.loads(found[METADATA])
    return facts


def real_clips(count: int) -> torch.Tensor:
    """uint8 [B, T, H, W, C] of the built-in generator."""
    clips = [clip_frames(0, "val", k % 12, k, size=48, frames=4)[:, 8:40] for k in range(count)]
    return torch.from_numpy(np.stack(clips))


@pytest.fixture(autouse=True)
def needs(request: pytest.FixtureRequest) -> None:
    if "onnx" in request.node.name:
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")


@pytest.mark.parametrize(
    ("kind", "to"),
    [
        ("classifier", "onnx"),
        ("detector", "onnx"),
        pytest.param("end_to_end", "onnx", marks=pytest.mark.slow),
        pytest.param("pretrained", "onnx", marks=pytest.mark.slow),
        ("classifier", "torch-export"),
        pytest.param("first", "torch-export", marks=pytest.mark.slow),
        pytest.param("detector", "torch-export", marks=pytest.mark.slow),
        ("end_to_end", "torch-export"),
    ],
)
def test_graphs_give_the_models_numbers_for_any_batch(tmp_path: Path, kind: str, to: str) -> None:
    net, path = model(kind), tmp_path / "model"
    facts = describe_graph(net, SAMPLING, ["a", "b"])
    export_graph(path, net, to, facts)
    for clips in (1, 2, 5):
        inputs = example_inputs(net, clips) | {"video": real_clips(clips)}
        got, expected = run_graph(path, to, inputs), run_model(net, inputs)
        assert [x.shape for x in got] == [x.shape for x in expected]
        assert all(np.abs(a - b).max() <= TOLERANCE for a, b in zip(got, expected, strict=True))
    assert read_facts(path, to) == json.loads(json.dumps(facts))
    if kind == "detector":
        # Boxes over the frame's edge are cut there; one box alone; none in some clips.
        inputs = {
            "video": real_clips(3),
            "boxes": torch.tensor([[-9.0, 4, 70, 90]]),
            "clips": torch.tensor([2]),
        }
        whole = inputs | {"boxes": torch.tensor([[0.0, 4, 48, 32]])}
        assert np.abs(run_graph(path, to, inputs)[0] - run_model(net, whole)[0]).max() <= TOLERANCE


@pytest.mark.parametrize("kind", ["pretrained", "joint", *CHANGES, "detector", "end_to_end"])
@torch.no_grad()
def test_a_graph_is_the_model_whatever_its_kind(kind: str) -> None:
    net = model(kind)
    graph, names = graph_of(net)
    inputs = example_inputs(net, 3) | {"video": real_clips(3)}
    found = graph(**inputs)
    got = found if isinstance(found, tuple) else (found,)
    assert len(got) == len(names)
    for a, b in zip(got, run_model(net, inputs), strict=True):
        assert np.abs(a.numpy() - b).max() <= 1e-5 and np.abs(b).max() > 1e-3


def test_a_file_says_how_a_video_becomes_a_clip() -> None:
    facts = describe_graph(model("classifier"), SAMPLING, None)
    assert facts["input"]["video"]["shape"] == ["B", 4, 32, 48, 3]
    assert facts["preprocessing"] == {
        "frames": 4, "sampling": "dense", "sampling_rate": 2, "crop": [32, 48], "crop_place": "centre",
        "resize": "bilinear, aspect ratio kept, shorter side to 32",
    }  # fmt: skip
    assert facts["inside"]["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert facts["model"] == "classifier" and facts["output"] == "logits"
    facts = describe_graph(model("end_to_end"), SAMPLING, None)
    assert facts["output"] == ["boxes", "scores"] and set(facts["input"]) == {"video"}
    assert facts["preprocessing"]["key_frame"] == 2
    facts = describe_graph(model("detector"), SAMPLING, None)
    assert facts["output"] == "scores" and set(facts["input"]) == {"video", "boxes", "clips"}


def test_what_cannot_be_exported_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = model("classifier")
    with pytest.raises(InputError, match="expected a runtime among onnx, torch-export"):
        export_graph(tmp_path / "x", net, "tensorrt", {})
    with pytest.raises(CheckpointError, match=r"float32 to export, got torch\.bfloat16"):
        export_graph(tmp_path / "x", net.to(torch.bfloat16), "torch-export", {})
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"expected onnx and onnxscript, not installed here: pip install"):
        export_graph(tmp_path / "x", net, "onnx", {})
    with pytest.raises(InputError, match="expected onnxruntime"):
        run_graph(tmp_path / "x", "onnx", {})
    assert list(tmp_path.iterdir()) == []
