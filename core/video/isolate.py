"""Work on files that may hang or crash a decoder: in processes that can be killed.

`run_isolated` gives each item to one of a few worker processes and takes a limit per item; a worker that
exceeds it is killed and replaced, and the item is reported, not lost. `run_limited` is the light form inside
one process, for training: it can leave a stuck read behind but not end it. The loader then replaces its
worker processes, and the stuck read ends with them (`ClipLoader`); without workers it stays until the process
ends.
"""

from __future__ import annotations

import contextlib
import contextvars
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any, Protocol, TypeVar

from vmae.core.errors import VideoError

R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of item number `index`: a `value`, or `failure` (`timeout`, `crash` or `error`) with
    `detail`."""

    index: int
    value: Any = None
    failure: str = ""
    detail: str = ""


class Runner(Protocol):
    """The form of `run_isolated`."""

    def __call__(
        self, function: Callable[[Any], Any], items: Sequence[Any], *, workers: int, limit_s: float
    ) -> Iterator[Outcome]: ...


@contextlib.contextmanager
def shielded_from_ctrl_c() -> Iterator[None]:
    """Processes started inside the block never see SIGINT, from their first instruction on.

    Ctrl-C reaches a terminal's whole process group; the parent decides what becomes of its workers. Ignoring
    the signal in the worker's own code comes too late: one that is still importing dies with a traceback.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: Any, function: Callable[[Any], Any]) -> None:
    while True:
        try:
            index, item = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            pipe.send((index, function(item), ""))
        except Exception as e:
            pipe.send((index, None, f"{type(e).__name__}: {e}"))


class _Worker:
    def __init__(self, context: Any, function: Callable[[Any], Any]) -> None:
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, function), daemon=True)
        with shielded_from_ctrl_c():
            self.process.start()
        theirs.close()
        self.index: int | None = None
        self.end = float("inf")

    def give(self, index: int, item: Any, limit_s: float) -> None:
        self.index, self.end = index, time.monotonic() + limit_s
        self.pipe.send((index, item))

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def run_isolated(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    *,
    workers: int,
    limit_s: float,
) -> Iterator[Outcome]:
    """Yield an `Outcome` for every item, in the order in which they end.

    Args:
        function: importable (it is sent by name to spawned processes), as are items and results.
        workers: processes.
        limit_s: seconds for one item, from when a worker takes it (a new worker's start counts 30 s extra).
    """
    context = multiprocessing.get_context("spawn")
    queue = list(enumerate(items))[::-1]
    pool: list[_Worker] = []
    fresh_s = 30.0
    try:
        while len(pool) < min(workers, len(items)):
            pool.append(_Worker(context, function))
            pool[-1].give(*queue.pop(), limit_s + fresh_s)
        while any(w.index is not None for w in pool):
            busy = [w for w in pool if w.index is not None]
            wait_s = max(0.0, min(w.end for w in busy) - time.monotonic())
            ready = connection.wait([w.pipe for w in busy], timeout=wait_s)
            for k, worker in enumerate(pool):
                if worker.index is None:
                    continue
                outcome = None
                if worker.pipe in ready:
                    try:
                        index, value, detail = worker.pipe.recv()
                        failure = "error" if detail else ""
                        outcome = Outcome(index=index, value=value, failure=failure, detail=detail)
                    except (EOFError, OSError):
                        worker.process.join()
                        outcome = Outcome(
                            index=worker.index,
                            failure="crash",
                            detail=f"the decoder's process ended with {worker.process.exitcode}",
                        )
                elif time.monotonic() > worker.end:
                    outcome = Outcome(
                        index=worker.index, failure="timeout", detail=f"more than {limit_s:g} s"
                    )
                if outcome is None:
                    continue
                worker.index, extra = None, 0.0
                if outcome.failure in ("crash", "timeout"):
                    worker.kill()
                    if queue:
                        pool[k] = _Worker(context, function)
                        extra = fresh_s
                if queue:
                    pool[k].give(*queue.pop(), limit_s + extra)
                yield outcome
    finally:
        for worker in pool:
            if worker.process.is_alive():
                worker.process.kill()
            worker.process.join()
            worker.pipe.close()


_given_up: set[str] = set()


class StuckRead(VideoError):
    """A read that went on beyond its limit inside one call of a decoder: a thread of this process is lost."""


def run_limited(function: Callable[[], R], path: str, limit_s: float) -> R:
    """Call `function` in a thread and wait at most `limit_s` seconds.

    A stuck decoder (which works outside the interpreter lock) is left to itself and its file is refused from
    then on in this process, so that a file costs at most one thread.

    Raises:
        StuckRead: reason `timeout`; from the second time on a plain VideoError.
        Exception: what `function` raised.
    """
    if path in _given_up:
        raise VideoError(path, "timeout", f"more than {limit_s:g} s, given up earlier")
    result: list[Any] = []

    def work() -> None:
        try:
            result.append((function(), None))
        except BaseException as e:
            result.append((None, e))

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(work,), daemon=True, name="vmae-read")
    thread.start()
    thread.join(limit_s)
    if not result:
        _given_up.add(path)
        raise StuckRead(path, "timeout", f"more than {limit_s:g} s inside one call of the decoder")
    value, error = result[0]
    if error is not None:
        raise error
    returned: R = value
    return returned
