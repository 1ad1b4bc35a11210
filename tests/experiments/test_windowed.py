"""Windowed features: the numbers of each window by itself, ActionFormer's layout, killed runs, bad files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from vmae.cli.main import main
from vmae.core.model.classifier import VideoClassifier, VideoClassifierConfig
from vmae.core.model.detector import VideoDetector, VideoDetectorConfig
from vmae.core.model.videomae import VideoMAE, VideoMAEConfig
from vmae.core.video import augment
from vmae.core.video.probe_store import cached_info
from vmae.core.video.reader import read_clip
from vmae.core.weights.checkpoint import save_model
from vmae.experiments.windowed import JOURNAL, SETTINGS, read_features, read_folder

ROOT = Path(__file__).resolve().parents[2]
SHAPE = {
    "frames": 4,
    "height": 32,
    "width": 32,
    "patch_size": 16,
    "embed_dim": 32,
    "depth": 1,
    "num_heads": 2,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips of 30, 11 and 3 frames, a list of them, a pre-trained model and a classifier."""
    folder = tmp_path_factory.mktemp("windowed")
    rng = np.random.default_rng(0)
    (folder / "videos").mkdir()
    for name, frames in (("a", 30), ("b", 11), ("c", 3)):
        np.save(folder / "videos" / f"{name}.npy", rng.integers(0, 255, (frames, 36, 48, 3), dtype=np.uint8))
    (folder / "list.txt").write_text("videos/a.npy\nvideos/b.npy\nvideos/c.npy\n")
    torch.manual_seed(0)
    decoder = {"decoder_embed_dim": 32, "decoder_depth": 1, "decoder_num_heads": 2}
    save_model(folder / "pretrained", VideoMAE(VideoMAEConfig.from_dict(SHAPE | decoder)))
    save_model(folder / "classifier", VideoClassifier(VideoClassifierConfig.from_dict(SHAPE), 5))
    return folder


def run(place: Path, *arguments: str, model: str = "pretrained", listed: str = "list.txt") -> tuple[int, str]:
    command = ["features", str(place / listed), *arguments, "--checkpoint", str(place / model)]
    result = CliRunner().invoke(main, [*command, "--runs-dir", str(place / "runs")])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return 2, str(result.exception)
    return result.exit_code, result.output


def test_windows_count_at_the_rate_that_is_asked_for_and_lists_may_be_of_any_kind(
    place: Path, tiny_videos: Path, tmp_path: Path
) -> None:
    video = sorted(tiny_videos.rglob("*.mp4"))[0]
    info = cached_info(str(video))
    (place / "stretches.csv").write_text(f"{video} 0 -1\n")
    how = ["--window", "4", "--stride", "2", "--format", "start_total"]
    assert run(place, str(tmp_path / "own"), *how, listed="stretches.csv")[0] == 0
    code, text = run(place, str(tmp_path / "half"), *how, "--fps", f"{info.fps / 2}", listed="stretches.csv")
    assert code == 0, text
    settings, (row,) = read_folder(tmp_path / "half")
    assert settings["fps"] == info.fps / 2 == row["fps"] and row["frames"] == (info.num_frames + 1) // 2
    # Every second frame of the video: the windows of 8 frames, of which the model takes every second.
    eight = ["--window", "8", "--stride", "4", "--format", "start_total"]
    assert run(place, str(tmp_path / "eight"), *eight, listed="stretches.csv")[0] == 0
    wanted = read_features(tmp_path / "eight" / f"{row['name']}.npy")
    found = read_features(tmp_path / "half" / f"{row['name']}.npy")
    assert len(found) == len(wanted) and np.allclose(found, wanted, atol=1e-6)
    code, text = run(place, str(tmp_path / "npy"), "--window", "4", "--fps", "5")
    assert code == 2 and "no_rate" in text


@pytest.mark.parametrize(("model", "views"), [("pretrained", 1), ("classifier", 3)])
def test_features_are_those_of_each_window_by_itself(
    place: Path, tmp_path: Path, model: str, views: int
) -> None:
    code, text = run(
        place, str(tmp_path / "out"), "--window", "8", "--stride", "3", "--views", str(views), model=model
    )
    assert code == 0 and "11 windows x 32 of 3 videos" in text
    from vmae.core.weights.checkpoint import load_model

    net = load_model(place / model)[0].eval()
    for name, starts in (("a", range(0, 23, 3)), ("b", range(0, 4, 3)), ("c", (0,))):
        frames = np.load(place / "videos" / f"{name}.npy")
        got = np.load(tmp_path / "out" / f"{name}.npy")
        assert got.dtype == np.float32
        resized = read_clip(place / "videos" / f"{name}.npy", range(len(frames)), 32)
        expected = []
        for start in starts:
            index = np.minimum(start + 2 * np.arange(4), len(frames) - 1)
            per_view = []
            for region in augment.view_boxes(*resized.shape[1:3], views):
                clip = np.empty((4, 32, 32, 3), np.uint8)
                augment.crop_resize(resized[index], region, clip)
                video = torch.from_numpy(clip).permute(3, 0, 1, 2)[None]
                with torch.no_grad():
                    per_view.append(
                        net.features(video) if model == "classifier" else net.encode(video).mean(1)  # type: ignore[operator]
                    )
            expected.append(torch.cat(per_view).mean(0))
        np.testing.assert_allclose(got, torch.stack(expected).numpy(), atol=2e-5)


def test_a_reader_of_actionformers_layout_reads_them(place: Path, tmp_path: Path) -> None:
    """Its documented steps: a file per id of the JSON, `[T, C]`, segments in seconds on the feature grid."""
    out = tmp_path / "out"
    assert run(place, str(out), "--window", "4", "--dtype", "fp16", "--prefix", "v_")[0] == 0
    settings, videos = read_folder(out)
    section = settings["actionformer"]
    assert section == {
        "feat_stride": 4, "num_frames": 4, "input_dim": 32, "file_ext": ".npy", "downsample_rate": 1,
    }  # fmt: skip
    assert [(v["name"], v["frames"], v["windows"]) for v in videos] == [
        ("v_a", 30, 7), ("v_b", 11, 2), ("v_c", 3, 1),
    ]  # fmt: skip
    database = {"a": {"fps": 10.0, "annotations": [{"segment": [0.6, 1.4], "label_id": 3}]}}
    for name, entry in database.items():
        feats = np.load(out / f"v_{name}{section['file_ext']}").astype(np.float32)
        assert feats.shape == (7, section["input_dim"])
        feats = np.ascontiguousarray(feats[:: section["downsample_rate"]].transpose())  # T x C -> C x T
        segment = np.array(entry["annotations"][0]["segment"])  # type: ignore[index]
        grid = (segment * entry["fps"] - 0.5 * section["num_frames"]) / section["feat_stride"]  # type: ignore[operator]
        # Feature t is centred on frame 4 t + 2: frames 6 to 14 are features 1 to 3.
        assert grid == pytest.approx([1.0, 3.0]) and grid.max() < feats.shape[1]


def test_a_killed_run_goes_on_and_half_a_file_is_made_again(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    whole = tmp_path / "whole"
    assert run(place, str(whole), "--window", "4", "--stride", "1")[0] == 0
    line = [sys.executable, "-m", "vmae", "features", str(place / "list.txt"), str(out), "--window", "4"]
    line += ["--stride", "1", "--checkpoint", str(place / "pretrained"), "--runs-dir", str(place / "runs")]
    child = subprocess.Popen(
        line, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL
    )
    while child.poll() is None and not (out / "a.npy").exists():
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    # What a copy that was cut, and a journal's line that was being written, look like.
    for file in out.glob("?.npy"):
        file.write_bytes(file.read_bytes()[:-100])
    with open(out / "videos.jsonl", "a") as journal:
        journal.write('{"name": "b", "pa')
    code, text = run(place, str(out), "--window", "4", "--stride", "1")
    assert code == 0 and "of 3 videos" in text
    for name in "abc":
        np.testing.assert_array_equal(np.load(out / f"{name}.npy"), np.load(whole / f"{name}.npy"))
    stamps = {f: f.stat().st_mtime_ns for f in out.glob("?.npy")}
    # It may have been killed while it wrote a file: what it left is removed when it is old.
    for left in (out / ".b.npy.1.1.tmp", *out.glob(".*.tmp")):
        left.touch()
        os.utime(left, (0, 0))
    (out / ".c.npy.1.1.tmp").touch()
    assert run(place, str(out), "--window", "4", "--stride", "1")[0] == 0
    assert stamps == {f: f.stat().st_mtime_ns for f in out.glob("?.npy")}
    assert {f.name for f in out.iterdir()} == {*(f.name for f in stamps), JOURNAL, SETTINGS, ".c.npy.1.1.tmp"}


def test_other_settings_are_refused_in_the_same_folder(place: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    assert run(place, out, "--window", "4")[0] == 0
    code, text = run(place, out, "--window", "4", "--stride", "2")
    assert code == 2 and "stride (4, now 2)" in text
    code, text = run(place, out, "--window", "4", model="classifier")
    assert code == 2 and "weights" in text


def test_a_detector_has_no_feature_of_a_clip(place: Path, tmp_path: Path) -> None:
    save_model(place / "detector", VideoDetector(VideoDetectorConfig.from_dict(SHAPE), 5))
    code, text = run(place, str(tmp_path / "out"), "--window", "4", model="detector")
    assert code == 2 and "expected a pre-trained model or a classifier, got a detector" in text


def test_bad_videos_are_named_and_the_others_done(place: Path, tmp_path: Path) -> None:
    bad = tmp_path / "broken.mp4"
    bad.write_bytes(b"no video")
    (place / "with_bad.txt").write_text(f"videos/a.npy\n{bad}\nvideos/none.mp4\n")
    code, text = run(place, str(tmp_path / "out"), "--window", "4", listed="with_bad.txt")
    assert code == 1 and f"bad: {bad}" in text and "none.mp4" in text and "7 windows x 32 of 1 videos" in text
    (place / "only_bad.txt").write_text(f"{bad}\n")
    code, text = run(place, str(tmp_path / "out2"), "--window", "4", listed="only_bad.txt")
    assert code == 2 and "expected a readable video, got none of 1" in text


@pytest.mark.parametrize(
    ("arguments", "text", "message"),
    [
        (["--window", "6"], None, "multiple of the model's 4 frames"),
        (["--window", "4", "--pooling", "time"], None, "without --set and --pooling"),
        (["--stride", "4"], None, "expected --stride with --window"),
        (["--window", "4"], "", "expected at least one video"),
        (["--window", "4"], "videos/a.npy\nelsewhere/a.npy\n", "every video's name once"),
    ],
)
def test_what_cannot_be_is_refused(
    place: Path, tmp_path: Path, arguments: list[str], text: str | None, message: str
) -> None:
    listed = "list.txt"
    if text is not None:
        listed = "other.txt"
        (place / listed).write_text(text)
    code, got = run(place, str(tmp_path / "out"), *arguments, listed=listed)
    assert code == 2 and message in got


def test_a_folder_of_videos_in_processes_and_a_parquet(place: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    out = tmp_path / "table.parquet"
    code, text = run(place, str(out), "--window", "4", "--workers", "2", listed="videos")
    assert code == 0, text
    table = pq.read_table(out)
    assert table.num_rows == 10 and table["video"].to_pylist() == ["a"] * 7 + ["b"] * 2 + ["c"]
    assert table["start_frame"].to_pylist()[:3] == [0, 4, 8]
    np.testing.assert_array_equal(
        np.stack(table["feature"].to_numpy()[7:9]), read_features(tmp_path / "table" / "b.npy", 32)
    )


def test_the_journal_is_json_lines(place: Path, tmp_path: Path) -> None:
    run(place, str(tmp_path / "out"), "--window", "4")
    rows = [json.loads(line) for line in (tmp_path / "out" / "videos.jsonl").read_text().splitlines()]
    assert {k: rows[0][k] for k in ("name", "frames", "windows")} == {"name": "a", "frames": 30, "windows": 7}
