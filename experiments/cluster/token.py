"""The token that a Ray of this machine's own asks of whoever gives it work."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import tempfile
from pathlib import Path

_MODE, _TOKEN, _TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


def token_file() -> Path:
    """Where Ray looks for a token that is not in the environment."""
    return Path.home() / ".ray" / "auth_token"


def known_token() -> bool:
    """Whether there is a token for a cluster that asks for one."""
    return bool(os.environ.get(_TOKEN) or os.environ.get(_TOKEN_PATH)) or token_file().exists()


def ask_for_token() -> None:
    """Have the Ray that this process will start ask for a token that its user alone knows.

    Ray listens on all interfaces and runs what it is sent. Its own token file can be read by every user of
    the machine, and before 2.59 it asked for none unless told to. Where no file can be written the token is
    in the environment alone. What the user has said in RAY_AUTH_MODE stays.
    """
    if "ray" not in sys.modules:  # it has read the variable otherwise
        os.environ.setdefault(_MODE, "token")
    if os.environ.get(_MODE, "token").lower() != "token":
        return
    if os.environ.get(_TOKEN) or os.environ.get(_TOKEN_PATH):
        return
    try:
        _private(token_file())
    except OSError:
        os.environ[_TOKEN] = secrets.token_hex(32)


def _private(path: Path) -> None:
    """Make the file, with a fresh token, where it is not there; take it from other users where it is."""
    with contextlib.suppress(FileNotFoundError):
        found = path.stat()
        if found.st_size:
            if found.st_mode & 0o077:
                path.chmod(0o600)
            return
        path.unlink()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent)  # 0600 from the first byte
    try:
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):
            # Not over the token of a process that was faster.
            os.link(name, path)
    finally:
        os.unlink(name)
