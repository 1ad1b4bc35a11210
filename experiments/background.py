"""Threads beside a body: work that is done again and again, and work that nobody waits for."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

_left: list[threading.Thread] = []


def leave(thread: threading.Thread) -> None:
    """Note that nobody waits for this thread's work, which may be in native code when the process ends."""
    _left.append(thread)


def unfinished() -> bool:
    """Whether a thread that was left is still at work."""
    return any(thread.is_alive() for thread in _left)


@contextlib.contextmanager
def repeated(work: Callable[[], None], every_s: float, name: str) -> Iterator[None]:
    """Inside, a thread calls `work` every so many seconds, for the first time after as many.

    What `work` raises ends the repetition, and is raised here when the body has ended well.
    """
    stop = threading.Event()
    failures: list[BaseException] = []

    def loop() -> None:
        try:
            while not stop.wait(every_s):
                work()
        except BaseException as e:
            failures.append(e)

    thread = threading.Thread(target=loop, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if failures:
        raise failures[0]
