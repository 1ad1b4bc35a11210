"""Signals that ask a process to end: by the system, a container's stop, a terminal that is closed."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

ENDING = (signal.SIGTERM, signal.SIGHUP)
"""What they send, besides Ctrl-C's SIGINT."""


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def interrupts() -> None:
    """From here on they do what Ctrl-C does, unless the process has its own answer to them (`nohup` has).

    May be called again: a library that is in C takes signals behind Python's back, and gives them back so.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in ENDING:
        own = signal.getsignal(number)
        if own is not signal.SIG_IGN:
            signal.signal(number, own if callable(own) else _interrupt)


@contextlib.contextmanager
def interrupting() -> Iterator[None]:
    """Inside, they do what Ctrl-C does (`interrupts`); afterwards what they did before."""
    before = {s: signal.getsignal(s) for s in ENDING}
    interrupts()
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def ignored() -> Iterator[None]:
    """Inside, neither they nor Ctrl-C do anything: for what must not be left half done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, *ENDING)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
