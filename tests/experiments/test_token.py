"""Ray's token: a file of the user's own, or only in the environment."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os
os.umask(0o022)
from vmae.experiments.cluster.token import ask_for_token
ask_for_token()
print(os.environ.get("RAY_AUTH_MODE"), os.environ.get("RAY_AUTH_TOKEN"))
"""


def asked(home: Path, **environment: str) -> list[str]:
    """Mode and token in the environment of a process that asked for one."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**kept, "HOME": str(home), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_fresh_token_is_its_users_alone(tmp_path: Path) -> None:
    assert asked(tmp_path) == ["token", "None"]
    file = tmp_path / ".ray" / "auth_token"
    assert (mode(file), mode(file.parent)) == (0o600, 0o700)
    token = file.read_text()
    assert len(token) == 64 and [p.name for p in file.parent.iterdir()] == ["auth_token"]
    asked(tmp_path)
    assert file.read_text() == token, "a cluster that runs knows the old one"


@pytest.mark.parametrize("content", ["f" * 64, ""])
def test_one_that_others_can_read_is_taken_from_them(content: str, tmp_path: Path) -> None:
    file = tmp_path / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text(content)
    file.chmod(0o644)
    asked(tmp_path)
    assert mode(file) == 0o600 and file.read_text() == (content or file.read_text()) != ""


def test_where_no_file_can_be_written_it_is_in_the_environment(tmp_path: Path) -> None:
    (tmp_path / ".ray").write_text("in the way")
    ray_mode, token = asked(tmp_path)
    assert ray_mode == "token" and len(token) == 64


def test_what_the_user_says_stays(tmp_path: Path) -> None:
    assert asked(tmp_path, RAY_AUTH_MODE="disabled") == ["disabled", "None"]
    assert asked(tmp_path, RAY_AUTH_TOKEN="mine") == ["token", "mine"]
    assert not (tmp_path / ".ray").exists()
