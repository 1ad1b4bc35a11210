"""The standard streams of a command: what only informs must never end the work that it tells of."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, TextIO

_UNWRITTEN = (OSError, ValueError, RuntimeError)
"""A full disk, a reader that is gone; a closed stream; a signal's handler that writes amid a line."""


class _Informing:
    """A text stream that drops what cannot be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(*_UNWRITTEN):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(*_UNWRITTEN):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Output:
    """A text stream that remembers what it could not be written for."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as e:
            self.failure = e
            raise

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as e:
            self.failure = e
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def make_safe() -> None:
    """Let standard error inform and no more; to be called before anything else is opened.

    A stream that was closed becomes the null device: the next file that is opened would take its number, and
    libraries that write to standard error would write into that.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
    errors = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115 - open to the end
    sys.stderr = _Informing(errors)  # type: ignore[assignment]
    if sys.stdout is not None:
        sys.stdout = _Output(sys.stdout)  # type: ignore[assignment]


def lost_output(error: BaseException) -> str | None:
    """Why standard output could not be written, if that is what failed; empty where its reader is gone."""
    out = sys.stdout
    if not isinstance(out, _Output) or out.failure is None or out.failure is not error:
        return None
    # What is left in its buffer goes nowhere, now and at the end of the process.
    os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
    return "" if isinstance(error, BrokenPipeError) else str(out.failure.strerror)
