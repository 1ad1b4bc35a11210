"""`vmae export`: real runtimes on a real video, the file's metadata, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from vmae.cli.main import main
from vmae.core.model.classifier import VideoClassifier, VideoClassifierConfig
from vmae.core.model.detector import VideoDetector, VideoDetectorConfig
from vmae.core.video.demo_data import encode_clip
from vmae.core.video.demo_scene import clip_frames
from vmae.core.weights import export
from vmae.core.weights.checkpoint import load_model, save_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    torch.manual_seed(0)
    config = VideoClassifierConfig(
        frames=4, height=32, width=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, init_scale=1.0,
        head_norm_eps=1e-5,
    )  # fmt: skip
    meta = {"labels": ["a", "b", "c"], "sampling": {"sampling_rate": 2, "sampling": "dense"}}
    save_model(folder / "model", VideoClassifier(config, 3), meta)
    encode_clip(folder / "clip.mp4", clip_frames(0, "val", 3, 0, size=48, frames=16), 16)
    return folder


def run(place: Path, out: Path, *arguments: str) -> tuple[int, str]:
    line = ["export", str(place / "model"), str(out), *arguments, "--runs-dir", str(place / "runs")]
    result = CliRunner().invoke(main, line)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return 2, str(result.exception)
    return result.exit_code, result.output


def test_onnxruntime_reads_what_a_video_gives(place: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    out = tmp_path / "model.onnx"
    code, text = run(place, out, "--to", "onnx", "--check", str(place / "clip.mp4"))
    assert code == 0, text
    assert "from the model in onnxruntime" in text and "on 1 clips of 1 videos" in text
    session = onnxruntime.InferenceSession(str(out))
    facts = json.loads(session.get_modelmeta().custom_metadata_map["vmae"])
    assert facts["labels"] == ["a", "b", "c"] and facts["preprocessing"]["sampling_rate"] == 2
    clips = np.random.default_rng(0).integers(0, 255, (3, *facts["input"]["video"]["shape"][1:]), np.uint8)
    model = load_model(place / "model")[0].eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(clips).permute(0, 4, 1, 2, 3)).numpy()
    np.testing.assert_allclose(session.run(None, {"video": clips})[0], expected, atol=1e-5)
    code, text = run(place, out, "--to", "onnx")
    assert code == 2 and "exists; expected a new path (or --force)" in text


def test_a_hugging_face_folder_is_compared_in_the_installed_release(place: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    code, text = run(place, tmp_path / "hf", "--to", "hf", "--check", str(place / "clip.mp4"))
    assert code == 0 and f"in transformers {transformers.__version__}, on 1 clips" in text, text
    processor = json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())
    assert processor["image_mean"] == pytest.approx([0.485, 0.456, 0.406])


def test_an_export_that_is_off_is_removed(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    code, text = run(place, tmp_path / "hf", "--to", "hf")
    assert code == 2 and "within -1, got" in text and "removed" in text
    assert not os.path.exists(tmp_path / "hf")


def test_a_detector_is_compared_on_as_many_clips_as_videos(place: Path, tmp_path: Path) -> None:
    config = VideoDetectorConfig(
        frames=4, height=32, width=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, init_scale=1.0
    )
    save_model(tmp_path / "model", VideoDetector(config, 3), {})
    code, text = run(tmp_path, tmp_path / "m.pt2", "--to", "torch-export", "--check", str(place / "clip.mp4"))
    assert code == 0 and "on 1 clips of 1 videos" in text, text


def test_a_video_that_cannot_be_read_is_refused_before_anything_is_written(
    place: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.mp4").write_text("no video")
    checks = ["--check", str(place / "clip.mp4"), "--check", str(tmp_path / "bad.mp4")]
    code, text = run(place, tmp_path / "m.pt2", "--to", "torch-export", *checks)
    assert code == 2 and "--check: expected videos that can be read, got" in text and "bad.mp4" in text, text
    assert not (tmp_path / "m.pt2").exists()


def test_a_runtime_that_is_not_installed_is_named(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    code, text = run(place, tmp_path / "model.onnx", "--to", "onnx")
    assert code == 2 and "expected onnx and onnxscript and onnxruntime, not installed here" in text
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: name != "onnxruntime" or None)
    code, text = run(place, tmp_path / "model.onnx", "--to", "onnx")
    assert code == 2 and "expected onnxruntime, not installed here" in text
    assert not (tmp_path / "model.onnx").exists()
