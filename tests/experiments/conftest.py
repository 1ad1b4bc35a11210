"""What the tests of real sweeps share: tiny configurations, commands, and the numbers they must end with."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
ONE_BY_ONE = Path(__file__).parent / "one_by_one.py"
TINY = {
    "model.height": "32",
    "model.width": "32",
    "model.embed_dim": "32",
    "model.depth": "2",
    "model.num_heads": "2",
    "model.decoder_embed_dim": "32",
    "model.decoder_depth": "1",
    "data.size": "32,32",
    "data.short_side": "32",
    "data.sampling_rate": "2",
    "train.batch_size": "8",
    "train.picture_every": "0",
    "probe.epochs": "4",
    "probe.folds": "2",
}


class Sweeps:
    """Commands of tiny sweeps over the mini data set, and what they leave."""

    shape = TINY

    def __init__(self, data: Path) -> None:
        self.data = data

    def command(self, runs: Path, *extra: str, epochs: int = 12) -> list[str]:
        line = [sys.executable, "-m", "vmae", "sweep", "masking_ratio", "--values", "0.5,0.75,0.9"]
        line += ["--recipe", "demo_pretrain"]
        line += ["--data", str(self.data / "train.csv"), "--runs-dir", str(runs), "--epochs", str(epochs)]
        for key, value in TINY.items():
            line += ["--set", f"{key}={value}"]
        return [*line, *extra]

    @staticmethod
    def environment(**more: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if k not in ("VMAE_RUNS", "MLFLOW_TRACKING_URI")}
        return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}

    def start(self, command: list[str], cwd: Path, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=cwd,
            env=self.environment(**environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    @staticmethod
    def wait(condition: Callable[[], object], process: subprocess.Popen[str], what: str) -> None:
        end = time.monotonic() + 240
        while not condition():
            if process.poll() is not None:
                raise AssertionError(process.stdout.read() if process.stdout else "ended")
            assert time.monotonic() < end, f"waited for {what}"
            time.sleep(0.05)

    @staticmethod
    def running(runs: Path) -> list[dict[str, object]]:
        """progress.json of the trials that are pre-training and have a checkpoint to go on from."""
        found = []
        for path in runs.glob("sweeps/*/trials/ratio*/progress.json"):
            progress = json.loads(path.read_text())
            saved = list(path.parent.glob("pretrain/checkpoints/step-*"))
            if progress["stage"] == "pretrain" and saved and not (path.parent / "result.json").exists():
                found.append({**progress, "id": path.parent.name})
        return found

    @staticmethod
    def numbers(runs: Path) -> dict[str, dict[str, float]]:
        """Each trial's metrics that must not depend on what happened to it."""
        found = {}
        for path in sorted(runs.glob("sweeps/*/trials/*/result.json")):
            metrics = json.loads(path.read_text())["metrics"]
            found[path.parent.name] = {
                k: v for k, v in metrics.items() if not k.startswith("perf/") and "clips_per_s" not in k
            }
        return found

    @staticmethod
    def assert_close(found: dict[str, dict[str, float]], expected: dict[str, dict[str, float]]) -> None:
        """Sums in another order: the same trials and metrics, to five places."""
        assert found.keys() == expected.keys()
        for trial, metrics in expected.items():
            assert found[trial].keys() == metrics.keys()
            for name, value in metrics.items():
                assert found[trial][name] == pytest.approx(value, abs=1e-5), f"{trial}: {name}"

    @staticmethod
    def attempts(runs: Path) -> int:
        """Processes that worked on some trial, at most."""
        files = runs.glob("sweeps/*/trials/*/result.json")
        return max(json.loads(path.read_text())["attempts"] for path in files)


@pytest.fixture(scope="session")
def sweeps(mini_data: Path) -> Sweeps:
    return Sweeps(mini_data)


@pytest.fixture(scope="session")
def undisturbed_runs(sweeps: Sweeps, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with the sweep of `sweeps.command`: run one after the other, without Ray."""
    runs = tmp_path_factory.mktemp("quiet") / "runs"
    done = subprocess.run(
        [sys.executable, str(ONE_BY_ONE), *sweeps.command(runs)[4:]],
        env=sweeps.environment(),
        cwd=runs.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return runs


@pytest.fixture(scope="session")
def undisturbed_numbers(sweeps: Sweeps, undisturbed_runs: Path) -> dict[str, dict[str, float]]:
    """What the trials of `sweeps.command` give when nothing happens."""
    return sweeps.numbers(undisturbed_runs)


class MlflowServer:
    """An MLflow server on a loopback port, which can be killed and started again on the same store."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.folder = folder
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}", "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        self.process = subprocess.Popen(
            command,
            cwd=self.folder,
            env={**os.environ, **quiet},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=2)
                return
            except (urllib.error.URLError, OSError):
                assert time.monotonic() < end, "the MLflow server did not start"
                time.sleep(0.3)

    def kill(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        family = psutil.Process(self.process.pid).children(recursive=True)
        for member in (*family, psutil.Process(self.process.pid)):
            member.kill()
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    made = MlflowServer(tmp_path)
    made.start()
    yield made
    made.kill()


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An S3 server on loopback (moto's, where `moto_server` is on the path) with an empty bucket."""
    server = shutil.which("moto_server")
    if server is None:
        pytest.skip("needs moto_server (pip install 'moto[server]') on the path, which is absent")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    process = subprocess.Popen(
        [server, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    end = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(urllib.request.Request(f"{url}/bucket", method="PUT"), timeout=5)
            break
        except (urllib.error.URLError, OSError):
            assert time.monotonic() < end, "the S3 server did not start"
            time.sleep(0.3)
    yield {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    process.kill()
    process.wait()
