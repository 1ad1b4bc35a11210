"""`vmae dashboard`: what it refuses, where it listens."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from vmae.cli.dashboard import dashboard
from vmae.core.errors import VmaeError
from vmae.dashboard import server
from vmae.dashboard.settings import VARIABLE, Settings

ROOT = Path(__file__).resolve().parents[2]


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(dashboard, list(arguments))
    assert isinstance(result.exception, VmaeError), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


def test_a_port_in_use_is_one_line() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        assert f"127.0.0.1:{port}" in refused("--port", str(port))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--port", "99999"), "expected a port"),
        (("--upload-mb", "0"), "at least 1"),
        (("--mlflow-url", "javascript:alert(1)"), "http"),
        (("--checkpoint", "nowhere.safetensors"), "expected a pre-training checkpoint"),
        (("--data", "nowhere.csv"), "nowhere.csv"),
    ],
)
def test_bad_options_are_one_line(arguments: tuple[str, ...], expected: str) -> None:
    assert expected in refused(*arguments)


def test_it_listens_on_this_machine_only_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "vmae", "dashboard", "--runs-dir", str(tmp_path), "--port", str(port)]
    with (
        open(tmp_path / "errors", "w") as errors,
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            assert f"dashboard on {tmp_path}: http://127.0.0.1:{port}" in process.stdout.readline()
            end = time.monotonic() + 120
            while not (places := _listening(process.pid)):
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.1)
            assert places == {("127.0.0.1", port)}
            arguments = psutil.Process(process.pid).cmdline()
            assert arguments[1:3] == ["-m", "vmae.dashboard"], "it is this process, not a child of it"
            assert f"--runs-dir={tmp_path}" in arguments
            assert _handshake(port, "127.0.0.1") == _handshake(port, "localhost") == 101
            # A page of another name that points to this machine, and one of another port.
            assert _handshake(port, "evil.example") == 403
            assert _handshake(port, "127.0.0.1", origin=f"http://evil.example:{port}") == 403
        finally:
            # Leaving the block closes the pipe before it waits: nobody reads what the server says last.
            process.terminate()
    assert process.returncode is not None
    # It did not ask a service on the internet which address the page's other name could be.
    assert "external" not in (tmp_path / "errors").read_text()


def _handshake(port: int, host: str, origin: str = "") -> int:
    """The status of a WebSocket's opening by a page of `origin`, by default of `host` itself."""
    asked = (
        f"GET /_stcore/stream HTTP/1.1\r\nHost: {host}:{port}\r\nOrigin: {origin or f'http://{host}:{port}'}"
        "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=30) as s:
        s.sendall(asked.encode())
        return int(s.recv(64).split()[1])


@pytest.mark.parametrize(
    ("host", "names"),
    [
        ("127.0.0.1", ["127.0.0.1", "::1", "localhost"]),
        ("localhost", ["127.0.0.1", "::1", "localhost"]),
        ("10.0.0.7", ["10.0.0.7"]),
        ("Node7", ["node7"]),
    ],
)
def test_a_browser_may_ask_for_what_it_listens_on(host: str, names: list[str]) -> None:
    assert server.own_names(host) == names
    given = server.arguments(host, 8501, 10, ["proxy.example"])
    assert [a.partition("=")[2] for a in given if a.startswith("--server.allowedHosts=")] == [
        *names,
        "proxy.example",
    ]


def test_listening_everywhere_it_has_all_names_of_this_machine() -> None:
    names = server.own_names("0.0.0.0")
    assert {"localhost", "127.0.0.1", socket.gethostname().lower()} <= set(names)
    assert "*" not in names and "0.0.0.0" not in names
    assert server.own_names("::") == names


def _listening(pid: int) -> set[tuple[str, int]]:
    found = psutil.Process(pid).net_connections(kind="inet")
    return {(c.laddr.ip, c.laddr.port) for c in found if c.status == psutil.CONN_LISTEN}


def test_the_server_hands_its_settings_to_the_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vmae.dashboard import __main__ as program

    started: dict[str, object] = {}
    monkeypatch.setattr(program, "serve", lambda **options: started.update(options))
    monkeypatch.setenv(VARIABLE, "")
    program.main(
        [
            f"--runs-dir={tmp_path}",
            "--port=9",
            "--data=a.csv",
            "--data=b.csv",
            "--upload-mb=3",
            "--allow-host=proxy",
        ]
    )
    assert started == {"host": "127.0.0.1", "port": 9, "upload_mb": 3, "allowed": ["proxy"]}
    expected = Settings(runs_dir=str(tmp_path), data=("a.csv", "b.csv"), upload_mb=3)
    assert Settings.from_env() == expected


def test_streamlit_is_told_to_stay_at_home() -> None:
    given = server.arguments("127.0.0.1", 8501, 10)
    assert "--server.address=127.0.0.1" in given
    assert "--browser.gatherUsageStats=false" in given
    assert "--server.maxUploadSize=10" in given
    assert "--server.enableXsrfProtection=true" in given


def test_settings_survive_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(runs_dir="/a b", checkpoints=("x", "y"), mlflow_url="http://h:1")
    monkeypatch.setenv(VARIABLE, settings.to_env())
    assert Settings.from_env() == settings
    assert json.loads(settings.to_env())["checkpoints"] == ["x", "y"]
