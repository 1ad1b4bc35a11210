"""Reading many files in threads, so that leaving off (Ctrl-C) takes no longer than a frame."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

_left: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar("left", default=None)


class Map(Protocol):
    """`map` in the threads: results in the items' order."""

    def __call__(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]: ...


def left_off() -> threading.Event | None:
    """Set once the `reading_threads` that this code runs in are left; None outside of such threads."""
    return _left.get()


@contextlib.contextmanager
def reading_threads(workers: int) -> Iterator[Map]:
    """Inside, a `map` over threads. Left by an exception, what was not begun is dropped and what is under way
    ends at its next frame (`container.Deadline`)."""
    event = threading.Event()
    context = contextvars.copy_context()
    context.run(_left.set, event)
    pool = ThreadPoolExecutor(max(1, workers))

    def in_threads(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        futures = [pool.submit(context.copy().run, function, item) for item in items]
        return (future.result() for future in futures)

    try:
        yield in_threads
    except BaseException:
        event.set()
        raise
    finally:
        pool.shutdown(cancel_futures=event.is_set())
