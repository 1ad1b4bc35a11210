"""The kernel of docs/extending.md as it stands: its folder and its line are added to a copy of `kernels/`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRIED = Path(__file__).parent / "own_op.py"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package `vmae` of the kernels alone, `scale_rows` among them."""
    pytest.importorskip("triton")
    home = tmp_path_factory.mktemp("own")
    (home / "vmae").mkdir()
    (home / "vmae" / "__init__.py").touch()
    shutil.copytree(
        ROOT / "kernels", home / "vmae" / "kernels", ignore=shutil.ignore_patterns("__pycache__", "gpu_*")
    )
    page = (ROOT / "docs" / "extending.md").read_text()
    found = re.findall(r"`(kernels/scale_rows/\w+\.py)`[^`]*:\n\n```python\n(.*?)```", page, flags=re.S)
    assert len(found) == 6
    (home / "vmae" / "kernels" / "scale_rows").mkdir()
    for name, text in found:
        (home / "vmae" / name).write_text(text)
    registry = home / "vmae" / "kernels" / "registry.py"
    text = registry.read_text()
    last, own = (
        "from vmae.kernels.patch_loss.spec",
        "from vmae.kernels.scale_rows.spec import OP as SCALE_ROWS",
    )
    assert text.count("DECODER_TOKENS)") == text.count(last) == 1
    text = text.replace("DECODER_TOKENS)", "DECODER_TOKENS, SCALE_ROWS)")
    registry.write_text(text.replace(last, f"{own}\n{last}"))
    return home


def _python(copy: Path, *arguments: str, **more: str) -> str:
    env = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "VMAE_KERNELS")}
    env |= {"PYTHONPATH": str(copy), "TRITON_CACHE_DIR": str(copy / "cache"), **more}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=copy, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_dispatched_compared_timed_and_listed(copy: Path) -> None:
    found = json.loads(_python(copy, str(TRIED), TRITON_INTERPRET="1"))
    assert found["at"] == str(copy / "vmae" / "kernels" / "scale_rows" / "op.py")
    assert found["launched"] == {"torch": False, "triton": True, "auto": False}
    for name, error in found["errors"].items():
        assert error < 1e-6, name
    assert found["refused"] == "expected scale [37]; got float32 [36] on cpu"
    (status,) = found["status"]
    assert (status["path"], status["reason"]) == ("torch", "the interpreter is only used in mode triton")
    assert {t["name"]: t["refused"] for t in found["timings"]} == {"ours": None, "torch path": None}
    assert all(t["ms"] > 0 for t in found["timings"])


def test_it_compiles_ahead_of_time(copy: Path) -> None:
    printed = _python(copy, "-m", "vmae.kernels.aot", "--only", "scale_rows", "--family", "90")
    assert "scale_rows/fwd D=768 fp32 | sm_90" in printed
    assert "no spill, no limit passed" in printed
