"""Retrieval on windowed features: nearest by hand, files and names, the page, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from vmae.cli.main import main
from vmae.core.model.videomae import VideoMAE, VideoMAEConfig
from vmae.core.weights.checkpoint import save_model
from vmae.experiments.windowed import write_array


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return 2, str(result.exception)
    return result.exit_code, result.stdout


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Windowed features of four clips, d a copy of a from its frame 4 on."""
    folder = tmp_path_factory.mktemp("retrieval")
    rng = np.random.default_rng(0)
    (folder / "videos").mkdir()
    for name in "abc":
        colour = rng.integers(0, 255, 3)
        frames = np.clip(colour + rng.normal(0, 9, (16, 32, 32, 3)), 0, 255).astype(np.uint8)
        np.save(folder / "videos" / f"{name}.npy", frames)
    np.save(folder / "videos" / "d.npy", np.load(folder / "videos" / "a.npy")[4:])
    torch.manual_seed(0)
    shape = {"frames": 4, "height": 32, "width": 32, "embed_dim": 32, "depth": 1, "num_heads": 2}
    decoder = {"decoder_embed_dim": 32, "decoder_depth": 1, "decoder_num_heads": 2}
    save_model(folder / "model", VideoMAE(VideoMAEConfig.from_dict(shape | decoder)))
    line = ["features", folder / "videos", folder / "index", "--window", 4, "--checkpoint", folder / "model"]
    assert run(*line, "--runs-dir", folder / "runs")[0] == 0
    return folder / "index"


def test_the_copy_comes_first_by_name_and_by_file(index: Path, tmp_path: Path) -> None:
    common = ["--index", index, "--json", "--runs-dir", tmp_path]
    code, text = run("retrieve", "a", *common)
    by_name = json.loads(text)
    assert code == 0 and by_name[0]["name"] == "d" and len(by_name) == 3
    assert by_name[0]["similarity"] == max(m["similarity"] for m in by_name) > 0.99
    code, text = run("retrieve", index.parent / "videos" / "a.npy", *common, "--top", 2)
    by_file = json.loads(text)
    # A file is not left out: it finds itself in the index.
    assert code == 0 and {m["name"] for m in by_file} == {"a", "d"}


def test_similarity_and_place_by_hand(index: Path, tmp_path: Path) -> None:
    by_hand = tmp_path / "index"
    by_hand.mkdir()
    settings = json.loads((index / "features.json").read_text()) | {"dim": 2, "stride": 4, "window": 8}
    (by_hand / "features.json").write_text(json.dumps(settings))
    tables = {"q": [[2, 0], [0, 2]], "x": [[1, 0], [3, 3], [-1, -1]], "y": [[0, 5]]}
    with open(by_hand / "videos.jsonl", "w") as journal:
        for name, rows in tables.items():
            write_array(by_hand / f"{name}.npy", np.array(rows, np.float32))
            row = {"name": name, "path": f"/v/{name} &.mp4", "frames": 10, "fps": 2.0, "windows": len(rows)}
            journal.write(json.dumps(row) + "\n")
    page = tmp_path / "page.html"
    code, text = run("retrieve", "q", "--index", by_hand, "--runs-dir", tmp_path, "--page", page)
    # The query's mean is (1, 1): x's second window points there, from frame 4 to the last, 10.
    assert code == 0
    assert text.splitlines()[0].split() == ["1", "1.000", "x", "2.00-5.00", "s", "/v/x", "&.mp4"]
    assert text.splitlines()[1].split()[:3] == ["2", "0.707", "y"]
    content = page.read_text()
    assert content.count("<video") == 3 and "file:///v/x%20%26.mp4#t=2.000,5.000" in content


def test_what_cannot_be_found_is_said(index: Path, tmp_path: Path) -> None:
    common = ["--index", index, "--runs-dir", tmp_path]
    code, text = run("retrieve", "aa", *common)
    assert code == 2 and "expected a video of" in text and "did you mean 'a'" in text
    code, text = run("retrieve", "a", "--index", tmp_path, "--runs-dir", tmp_path)
    assert code == 2 and "expected windowed features" in text
    torch.manual_seed(1)
    shape = {"frames": 4, "height": 32, "width": 32, "embed_dim": 32, "depth": 1, "num_heads": 2}
    decoder = {"decoder_embed_dim": 32, "decoder_depth": 1, "decoder_num_heads": 2}
    save_model(tmp_path / "other", VideoMAE(VideoMAEConfig.from_dict(shape | decoder)))
    file = index.parent / "videos" / "a.npy"
    code, text = run("retrieve", file, *common, "--checkpoint", tmp_path / "other")
    assert code == 2 and "expected the weights that" in text
