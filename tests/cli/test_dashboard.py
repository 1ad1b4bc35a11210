"""`vmae dashboard`: what it refuses, where it listens."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from vmae.cli.dashboard import dashboard
from vmae.core.errors import VmaeError
from vmae.dashboard import server
from vmae.dashboard.settings import VARIABLE, Settings


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


def test_it_listens_on_this_machine_only_and_hands_its_settings_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: dict[str, object] = {}
    monkeypatch.setattr(server, "serve", lambda **options: started.update(options))
    monkeypatch.setenv(VARIABLE, "")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    result = CliRunner().invoke(dashboard, ["--runs-dir", str(tmp_path), "--port", str(port)])
    assert result.exit_code == 0, result.exception
    assert started == {"host": "127.0.0.1", "port": port, "upload_mb": 64}
    assert Settings.from_env().runs_dir == str(tmp_path)


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
