"""Folders for sockets: the path of one has at most 107 bytes, however long TMPDIR is."""

from __future__ import annotations

import multiprocessing.process
import multiprocessing.util
import os
import tempfile
from pathlib import Path

from vmae.core.errors import InputError

MOST_BYTES = 107
"""Of a socket's path on Linux (`sockaddr_un`)."""
_OTHERS = ("/tmp", "/var/tmp", "/dev/shm")
_LISTENER = "/pymp-12345678/listener-12345678"


def socket_folder(below: str, what: str) -> str:
    """The folder for temporary files, or another one where the path of a socket `below` it is too long.

    Raises:
        InputError: no folder is short enough; says what for.
    """
    own = tempfile.gettempdir()
    for folder in (own, *_OTHERS):
        if len(os.fsencode(folder + below)) <= MOST_BYTES and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise InputError(
        f"{what}: expected a folder for temporary files of at most {MOST_BYTES - len(below)} bytes, got "
        f"{own}: set TMPDIR to a shorter one"
    )


def shorten_own_sockets() -> None:
    """Let the sockets of this process and those it starts lie in a folder that is short enough for them.

    `multiprocessing` passes batches from loader processes through sockets in a folder of its own under
    TMPDIR; where their path is too long the batches never come.
    """
    folder = socket_folder(_LISTENER, "loader processes (data.workers)")
    config = multiprocessing.process.current_process()._config  # type: ignore[attr-defined]
    known = config.get("tempdir")
    if known is not None and len(os.fsencode(known)) + len(Path(_LISTENER).name) + 1 > MOST_BYTES:
        config["tempdir"] = None
    if config.get("tempdir") is None and folder != tempfile.gettempdir():
        before, tempfile.tempdir = tempfile.tempdir, folder
        try:
            multiprocessing.util.get_temp_dir()  # kept by this process, and removed at its end
        finally:
            tempfile.tempdir = before
