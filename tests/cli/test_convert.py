"""`vmae convert` and `vmae zoo` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from click.testing import CliRunner

from vmae.cli.main import main
from vmae.core.model.classifier import VideoClassifier, VideoClassifierConfig
from vmae.core.weights.convert import read_model
from vmae.core.weights.official import to_official


def test_official_to_hf_to_ours_and_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    size = {"frames": 4, "height": 16, "width": 24, "embed_dim": 32, "depth": 1}
    model = VideoClassifier(VideoClassifierConfig.from_size("tiny", **size), 3)
    source = tmp_path / "in.pth"
    torch.save({"model": to_official(model)[0]}, source)
    run = CliRunner().invoke
    first = [str(source), str(tmp_path / "hf"), "--to", "hf", "--num-heads", "4"]
    result = run(main, ["convert", *first, "--frames", "4", "--resolution", "16x24"])
    assert result.exit_code == 0, result.output
    assert "4x16x24" in result.output and "note: transformers fixes the eps of fc_norm" in result.output
    result = run(main, ["convert", str(tmp_path / "hf"), str(tmp_path / "ours"), "--to", "vmae"])
    assert result.exit_code == 0, result.output
    result = run(main, ["convert", str(tmp_path / "ours"), str(tmp_path / "out.pth"), "--to", "official"])
    assert result.exit_code == 0, result.output
    back = read_model(tmp_path / "out.pth").model.state_dict()
    assert all(torch.equal(v, back[k]) for k, v in model.state_dict().items())


def test_a_wrong_resolution_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(b"")
    line = ["convert", str(tmp_path / "x.pth"), str(tmp_path / "y"), "--to", "hf", "--resolution", "big"]
    result = CliRunner().invoke(main, line)
    assert "expected a resolution like 224 or 224x320" in str(result.exception)


def test_zoo_list() -> None:
    result = CliRunner().invoke(main, ["zoo", "list"])
    assert result.exit_code == 0
    assert "v1-k400-base-1600-ft" in result.output and "81.5" in result.output
    result = CliRunner().invoke(main, ["zoo", "list", "--size", "huge", "--task", "finetune", "--json"])
    assert {e["size"] for e in json.loads(result.output)} == {"huge"}
