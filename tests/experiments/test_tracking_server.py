"""A real tracking server by MLFLOW_TRACKING_URI: written, read, listed and registered through HTTP."""

from __future__ import annotations

import http.server
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmae.core.errors import VmaeError
from vmae.experiments.runs import (
    Filter,
    Run,
    best_run,
    children,
    find,
    history,
    known_columns,
    list_runs,
    list_sweeps,
)
from vmae.experiments.tracking import Store, Tracker, TrackingConfig, create_store, store_at, tags


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    log = open(folder / "log.txt", "w")  # noqa: SIM115 - closed with the server
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
    )
    uri = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 180
        while True:
            try:
                with urllib.request.urlopen(f"{uri}/health", timeout=2):
                    break
            except OSError:
                assert process.poll() is None, (folder / "log.txt").read_text()
                assert time.monotonic() < end, (folder / "log.txt").read_text()
                time.sleep(0.5)
        yield uri
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)
        log.close()


@pytest.fixture
def store(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    store = store_at(tmp_path / "runs")
    assert store.sqlite_path is None
    create_store(store)
    return store


@pytest.mark.slow
def test_runs_go_to_the_server_and_come_back(store: Store, tmp_path: Path) -> None:
    sweep = Tracker(store, tmp_path / "s", name="s", key="sweep:s", kind="sweep", tags={"vmae.sweep": "s"})
    assert sweep.flush(60)
    for i in range(3):
        tracker = Tracker(
            store,
            tmp_path / f"t{i}",
            name=f"t{i}",
            key=f"sweep:s/t{i}",
            kind="trial",
            parent_key="sweep:s",
            params={"mask.ratio": 0.5 + i / 10},
            tags={"vmae.sweep": "s"},
        )
        for epoch in range(1, 4):
            tracker.log_metrics({"pretrain/loss": 1 / epoch, "probe/top1": 0.1 * (i + 1)}, epoch)
        assert tracker.finish(timeout_s=120)
    assert sweep.finish(timeout_s=120)
    (parent,) = list_sweeps(store)
    trials = children(store, parent)
    assert [t.name for t in trials] == ["t0", "t1", "t2"]
    assert trials[1].params == {"mask.ratio": "0.6"}
    assert history(store, trials[0].run_id, "pretrain/loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert best_run(store, "probe/top1").name == "t2"
    assert find(store, "t1") == trials[1]
    newest = list_runs(store, where=[Filter.parse("kind = trial")], limit=2)
    assert [r.name for r in newest] == ["t2", "t1"]
    chosen = list_runs(store, where=[Filter.parse("probe/top1 > 0.15")], sort="mask.ratio")
    assert [r.name for r in chosen] == ["t2", "t1"]
    assert "mask.ratio" in known_columns(store)


@pytest.mark.slow
def test_checkpoints_are_uploaded_to_the_server(store: Store, tmp_path: Path) -> None:
    from vmae.core.model.videomae import VideoMAE, VideoMAEConfig
    from vmae.core.train.state import save_state
    from vmae.core.weights.checkpoint import load_model, save_model
    from vmae.experiments.config import ExperimentConfig
    from vmae.experiments.layout import RunDir
    from vmae.experiments.run import log_checkpoints
    from vmae.experiments.tracking.client import experiment_id, find_run, mlflow_client

    home, model = tmp_path / "run", VideoMAE(VideoMAEConfig.from_size("tiny"))
    save_model(home / "model", model, {"epochs": 2})
    save_state(home / "checkpoints", 7, {"model": model.state_dict()})
    config = ExperimentConfig(tracking=TrackingConfig(checkpoints="upload"))
    with Tracker(store, home, name="up", key="run:up", kind="pretrain") as tracker:
        log_checkpoints(tracker, config, RunDir(home), stopped=True)
    client = mlflow_client(store.uri)
    run_id = find_run(client, experiment_id(store, client), "run:up")
    assert run_id is not None and client.get_run(run_id).info.status == "FINISHED"
    got = client.download_artifacts(run_id, "checkpoints", str(tmp_path))
    back, meta = load_model(Path(got) / "model")
    assert meta["epochs"] == 2 and all(
        a.equal(b) for a, b in zip(model.state_dict().values(), back.state_dict().values(), strict=True)
    )
    # An interrupted run can go on elsewhere.
    sent = Path(got) / "checkpoints" / "step-0000000007" / "state.pt"
    assert sent.read_bytes() == (home / "checkpoints" / "step-0000000007" / "state.pt").read_bytes()


class _Limited(http.server.BaseHTTPRequestHandler):
    """A proxy in front of a server that takes no body above a limit, as nginx does."""

    server: _Proxy
    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        if size > self.server.limit:
            self.send_error(413, "Request Entity Too Large")
            return
        kept = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "accept-encoding")}
        request = urllib.request.Request(
            self.server.behind + self.path, data=body or None, headers=kept, method=self.command
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                status, text, kind = answer.status, answer.read(), answer.headers["Content-Type"]
        except urllib.error.HTTPError as e:
            status, text, kind = e.code, e.read(), e.headers["Content-Type"]
        self.send_response(status)
        self.send_header("Content-Type", kind or "text/plain")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on

    def log_message(self, *_: object) -> None:
        pass


class _Proxy(http.server.ThreadingHTTPServer):
    daemon_threads = True
    limit = 100_000
    behind = ""


@pytest.mark.slow
def test_a_file_the_server_refuses_does_not_hold_back_the_rest(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """413 from a proxy with a limit; with a higher one `vmae runs sync` sends it, once."""
    from vmae.cli.main import run
    from vmae.experiments.tracking.client import mlflow_client

    proxy = _Proxy(("127.0.0.1", 0), _Limited)
    proxy.behind = server
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{proxy.server_address[1]}")
    store = store_at(tmp_path / "runs")
    create_store(store)
    large, small = tmp_path / "large.bin", tmp_path / "small.txt"
    large.write_bytes(bytes(200_000))
    small.write_text("small")
    home = store.runs_dir / "limited"
    with Tracker(store, home, name="limited", key="run:limited", kind="pretrain") as tracker:
        tracker.log_metrics({"pretrain/loss": 1.0}, 1)
        tracker.log_artifact(large)
        tracker.log_artifact(small)
        tracker.log_metrics({"pretrain/loss": 0.5}, 2)

    def found() -> Run:
        return find(store, "limited")

    def files() -> list[str]:
        client = mlflow_client(store.uri)
        return sorted(f.path for f in client.list_artifacts(found().run_id))

    assert found().status == "FINISHED"
    curve = history(store, found().run_id, "pretrain/loss")
    assert curve == [(1, 1.0), (2, 0.5)]
    assert files() == ["small.txt"]

    def vmae(*command: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stopped:
            run(["runs", *command, "--runs-dir", str(store.runs_dir)])
        return int(str(stopped.value.code)), capsys.readouterr().out

    code, output = vmae("sync")
    assert code == 1
    assert "limited: refused: 1 event; the last: artifact large.bin: 413" in output
    assert "refused by the store: 1 event; the last: artifact large.bin: 413" in vmae("show", "limited")[1]
    proxy.limit = 10**6
    assert vmae("sync") == (0, "limited: sent\n")
    assert files() == ["large.bin", "small.txt"]
    assert history(store, found().run_id, "pretrain/loss") == curve
    assert not found().tags[tags.REFUSED]
    assert vmae("sync") == (0, "nothing waits to be sent\n")
    proxy.shutdown()
    proxy.server_close()


def test_a_server_that_is_away_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vmae.cli.main import run

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    with pytest.raises(SystemExit) as stopped:
        run(["runs", "list", "--runs-dir", str(tmp_path)])
    assert stopped.value.code == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "vmae: error" in x]
    assert f"expected the tracking server http://127.0.0.1:{port} to answer" in line
    with pytest.raises(VmaeError, match=f"expected the tracking server http://127.0.0.1:{port} to answer"):
        create_store(store_at(tmp_path / "runs"))


class _OtherHost(http.server.BaseHTTPRequestHandler):
    """What MLflow 3 says to who calls it by a name that is not among its --allowed-hosts."""

    def do_GET(self) -> None:
        body = b"Invalid Host header - possible DNS rebinding attack detected"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_that_does_not_know_its_name_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _OtherHost) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{host}")
        with pytest.raises(VmaeError, match=f"mlflow server --allowed-hosts {host}"):
            create_store(store_at(tmp_path / "runs"))
        server.shutdown()
