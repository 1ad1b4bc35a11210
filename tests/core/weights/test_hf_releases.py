"""docs/huggingface.md's table: which release of transformers reads which layout, exactly or wrongly.

The installed release, and an older one that is fetched into a folder of its own (skipped where it cannot be).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vmae.core.model.classifier import VideoClassifier, VideoClassifierConfig
from vmae.core.weights.convert import write_model
from vmae.core.weights.export import TOLERANCE, example_inputs, run_model

ROOT = Path(__file__).resolve().parents[3]
OLD = "5.12.1"
WITH_IT = ("httpx<1", "httpcore<2", "huggingface_hub>=1.5,<2", "sniffio", "tokenizers>=0.22,<=0.23.0")
COMPARE = """
import json, logging, sys, warnings
warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
import torch, transformers
from pathlib import Path
from vmae.core.weights.checkpoint import load_model
from vmae.core.weights.export import example_inputs, run_hf
folder = Path(sys.argv[1])
model = load_model(folder / "model")[0].eval()
found = {k: run_hf(folder / k, model, example_inputs(model, 2)).tolist() for k in ("v4", "v5")}
print(json.dumps({"release": transformers.__version__, **found}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier as ours and in both layouts; biases and norms off 0 and 1, so that a lost one shows."""
    folder = tmp_path_factory.mktemp("hf")
    torch.manual_seed(0)
    config = VideoClassifierConfig(
        frames=4, height=32, width=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, head_norm_eps=1e-5,
        init_scale=1.0,
    )  # fmt: skip
    model = VideoClassifier(config, 5).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape), alpha=0.1)
    write_model(folder / "model", model, "vmae")
    for layout in ("v4", "v5"):
        write_model(folder / layout, model, "hf", hf_layout=layout)
    (expected,) = run_model(model, example_inputs(model, 2))
    (folder / "expected.json").write_text(json.dumps(expected.tolist()))
    return folder


def differences(folder: Path, *paths: str) -> tuple[str, dict[str, float]]:
    """The release that a process with `paths` first imports, and each layout's difference from the model."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([*paths, str(ROOT)]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMPARE, str(folder)],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    expected = torch.tensor(json.loads((folder / "expected.json").read_text()))
    apart = {k: float((torch.tensor(found[k]) - expected).abs().max()) for k in ("v4", "v5")}
    return found["release"], apart


@pytest.mark.slow
def test_the_installed_release_reads_both_layouts(folder: Path) -> None:
    pytest.importorskip("transformers")
    release, apart = differences(folder)
    assert release.startswith("5.") and max(apart.values()) < TOLERANCE, (release, apart)


@pytest.mark.slow
def test_a_release_in_between_reads_only_its_own(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    own = os.environ.get("VMAE_TRANSFORMERS_OLD")
    if own is None:
        own = str(tmp_path / "old")
        line = [
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            own,
            f"transformers=={OLD}",
            *WITH_IT,
        ]
        done = subprocess.run(
            [sys.executable, *line], capture_output=True, text=True, timeout=300, check=False
        )
        if done.returncode:
            pytest.skip(f"needs transformers {OLD}, which pip cannot fetch here")
    release, apart = differences(folder, own)
    assert release == OLD
    # Loaded without an exception, and wrong: the attention's biases stay where they were drawn.
    assert apart["v4"] > 10 * TOLERANCE and apart["v5"] < TOLERANCE, apart
