"""A checkpoint's header may say anything: no memory is taken for it beyond what the file holds."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from vmae.core.errors import CheckpointError
from vmae.core.model.classifier import VideoClassifier, VideoClassifierConfig
from vmae.core.model.videomae import VideoMAE, VideoMAEConfig
from vmae.core.weights.checkpoint import load_model
from vmae.core.weights.convert import read_model, write_model
from vmae.core.weights.files import read_header
from vmae.core.weights.models import describe_model

SIZE: dict[str, Any] = {"frames": 4, "height": 16, "width": 16, "patch_size": 8, "embed_dim": 32, "depth": 1}
SIZE |= {"num_heads": 2}


def header() -> dict[str, Any]:
    model = VideoMAE(VideoMAEConfig.from_size("tiny", **SIZE, decoder_embed_dim=16))
    return json.loads(json.dumps(describe_model(model, {"epochs": 1})))


def write(path: Path, text: str) -> Path:
    """A safetensors file with one number, whose header says `text`."""
    one = {"encoder.x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    head = json.dumps({**one, "__metadata__": {"vmae": text}}).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + bytes(4))
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depth": 10**7}, "claims 10,000,002 layers, it has 1 tensors"),
        ({"decoder_depth": 10**7}, "layers, it has 1 tensors"),
        ({"depth": 1, "decoder_depth": 0}, "decoder_depth"),
        ({"embed_dim": 2**20}, "layers|weights"),
        ({"frames": 10**9}, "layers|tokens"),
        ({"height": 2**20}, "layers|tokens|square"),
        ({"mlp_ratio": 1e9}, "layers|weights"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio|NaN"),
        ({"num_heads": 0}, "num_heads"),
        ({"patch_size": 0}, "patch_size"),
        ({"depth": -1}, "depth"),
        ({"depth": "x"}, "description of a model"),
        ({"pos_grid": [10**6, 10**6, 10**6]}, "layers|tokens"),
    ],
)
def test_a_header_that_claims_too_much_is_refused_at_once(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    said = header()
    said["config"] |= changes
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=words):
        load_model(write(tmp_path / "x.safetensors", json.dumps(said)))
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "said",
    [
        header() | {"config": []},
        header() | {"config": None},
        header() | {"meta": [1]},
        {k: v for k, v in header().items() if k != "meta"},
        {k: v for k, v in header().items() if k != "config"},
        header() | {"model": "VideoClassifier", "num_classes": 10**10},
        header() | {"model": "VideoClassifier", "num_classes": "ten"},
        header() | {"model": ["VideoMAE"]},
    ],
)
def test_a_header_that_describes_no_model_is_refused(said: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        load_model(write(tmp_path / "x.safetensors", json.dumps(said)))


def test_headers_nested_without_end_are_no_crash(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", "[" * 200_000)
    with pytest.raises(CheckpointError, match="expected JSON in the header"):
        load_model(path)
    assert read_header(path) is None
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("[" * 200_000)
    with pytest.raises(CheckpointError, match="expected JSON"):
        read_model(tmp_path / "hf")


def test_a_tensor_that_repeats_one_number_holds_one_number(tmp_path: Path) -> None:
    """A head of two thousand million classes in a file of some kilobytes."""
    model = VideoClassifier(VideoClassifierConfig.from_size("tiny", **SIZE), 3)
    write_model(tmp_path / "good.pth", model, "official")
    content = torch.load(tmp_path / "good.pth", weights_only=True)
    content["model"]["head.weight"] = torch.zeros(1).expand(2_000_000_000, 32)
    del content["vmae"]
    torch.save(content, tmp_path / "bad.pth")
    assert (tmp_path / "bad.pth").stat().st_size < 10**6
    with pytest.raises(CheckpointError, match=r"claims .* weights or more"):
        read_model(tmp_path / "bad.pth", num_heads=2)
    write_model(tmp_path / "hf", model, "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**7}))
    with pytest.raises(CheckpointError, match="claims 10,000,000 layers"):
        read_model(tmp_path / "hf", num_heads=2)
