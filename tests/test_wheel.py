"""The wheel has everything: built from the tree, installed apart, and used from there."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel; its requirements are this environment's."""
    home = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, tracked):
        if not name.startswith(("tests/", "docs/")) and (ROOT / name).exists():
            (home / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, home / "tree" / name, follow_symlinks=False)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    # Nothing is fetched: setuptools is this environment's too.
    build = [
        *pip,
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-q",
        "-w",
        str(home),
        "./tree",
    ]
    subprocess.run(build, cwd=home, check=True)
    (wheel,) = home.glob("vmae-*.whl")
    put = [*pip, "install", "--no-deps", "--no-index", "-q", "--target", str(home / "site"), str(wheel)]
    subprocess.run(put, cwd=home, check=True)
    return home / "site"


def _environment(site: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("VMAE_RUNS", "MLFLOW_TRACKING_URI")}
    kept.pop("TRITON_INTERPRET", None)
    return {**kept, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}


def _vmae(site: Path, cwd: Path, *argv: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "vmae", *argv],
        cwd=cwd,
        env=_environment(site),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_verbs_read_files_of_its_own(installed: Path, tmp_path: Path) -> None:
    where = "import vmae, vmae.core, vmae.kernels; print(vmae.__file__, vmae.core.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", where],
        cwd=tmp_path,
        env=_environment(installed),
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(Path(p).is_relative_to(installed) for p in done.stdout.split())
    assert "demo_pretrain" in _vmae(installed, tmp_path, "recipes")
    assert json.loads(_vmae(installed, tmp_path, "doctor", "--json"))["self_test"]["ok"]
    assert "patch_loss" in _vmae(installed, tmp_path, "bench", "kernels")
    # One kernel, compared with the table that comes with it.
    one = ("--only", "loss/loss P=1536 channels last mse normalised [|]", "--family", "90")
    compiled = _vmae(installed, tmp_path, "bench", "kernels", "--aot", *one)
    assert compiled.startswith("loss/loss P=1536")
    assert "no spill" in compiled


def test_its_dashboard_has_its_pages_and_figures(installed: Path, tmp_path: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "vmae", "dashboard", "--runs-dir", str(tmp_path), "--port", str(port)]
    with subprocess.Popen(command, cwd=tmp_path, env=_environment(installed)) as process:
        try:
            end = time.monotonic() + 120
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=5)
                    break
                except OSError:
                    assert process.poll() is None
                    assert time.monotonic() < end
                    time.sleep(0.1)
        finally:
            process.terminate()
    # The pages without a browser: Streamlit's own test runner, on the installed files.
    code = (
        "from streamlit.testing.v1 import AppTest\n"
        "for name in ('kernels', 'reconstruct', 'runs'):\n"
        "    app = AppTest.from_string(f'from vmae.dashboard.views.{name} import page\\npage()\\n')\n"
        "    app.run(timeout=120)\n"
        "    assert not app.exception, app.exception\n"
        "    print(name, [m.value for m in app.markdown], len(app.dataframe))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=_environment(installed) | {"VMAE_RUNS": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "No measurement is recorded here" not in done.stdout
    for file in ("viewer.js", "viewer.css", "player.html"):
        assert (installed / "vmae" / "dashboard" / file).is_file()
