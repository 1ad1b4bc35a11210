"""A lock on a file that ends with its block and with its process, whatever that process has forked."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

_TAKEN: set[TextIO] = set()


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Inside, no other process is inside with the same file. A dead process holds nothing.

    Raises BlockingIOError where another one is and `wait` is false.
    """
    with open(path, "a") as file:
        _TAKEN.add(file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            _TAKEN.discard(file)
            if not file.closed:
                # Closing it is not enough: a process that was forked meanwhile has it open too.
                fcntl.flock(file, fcntl.LOCK_UN)


def _let_go() -> None:
    """In a forked process: the lock is not its own, and shall end with the one that took it."""
    for file in _TAKEN:
        file.close()
    _TAKEN.clear()


os.register_at_fork(after_in_child=_let_go)
