"""A worker process under watch: what it measured is kept, and what hangs or crashes is left out next time.

A kernel that hangs, or writes where it must not, takes its whole process with it. So the GPU suite measures
in a worker that reports every start and every result as a JSON line in a file. The parent kills a worker that
stays silent for longer than it said it would, writes down what it was doing, and starts it again; the worker
reads the file and goes on behind what is done, without what is to blame.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_RESTARTS = 12
STILL_COMPILING = "still compiling after"
"""How the reason begins where a compiler was cut off: nothing is known of what it compiles."""


@dataclass(kw_only=True)
class Journal:
    """The file of JSON lines that worker and parent share; one writer at a time."""

    path: Path
    started: float = field(default_factory=time.monotonic)

    def write(self, **event: Any) -> None:
        with self.path.open("a") as f:
            f.write(json.dumps(event) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """Return all whole lines so far; a line cut off by a kill is left out."""
        if not self.path.is_file():
            return []
        events = []
        for line in self.path.read_text().splitlines():
            try:
                events.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return events

    def start(self, item: str, part: str | None = None, *, limit_s: float, compiles: bool = False) -> None:
        """Say what is done next, whether that is compiling, and how long silence means nothing bad."""
        self.write(start=item, part=part, limit_s=limit_s, compiles=compiles)

    def done(self, item: str, key: str, value: Any, *, took_s: float) -> None:
        """A result: `value` belongs to `key` of the suite's JSON."""
        self.write(done=item, key=key, value=value, took_s=round(took_s, 1))

    def finished(self) -> set[str]:
        """Items that are done, left out, or to blame as a whole."""
        events = self.read()
        over = {e["done"] for e in events if "done" in e} | {e["left_out"] for e in events if "left_out" in e}
        return over | {e["blame"] for e in events if "blame" in e and e["part"] is None}

    def to_blame(self, item: str) -> dict[str, str]:
        """Parts of an item that hung or crashed before, and how."""
        return {e["part"]: e["why"] for e in self.read() if e.get("blame") == item and e["part"] is not None}


def supervise(
    command: list[str],
    journal: Journal,
    *,
    deadline: float,
    on_event: Callable[[dict[str, Any]], None],
    env: dict[str, str] | None = None,
    start_limit_s: float = 90.0,
) -> None:
    """Run `command`, which writes `journal`, until it ends well or `deadline` (time.monotonic) has come.

    on_event sees every line once, also those the parent writes (`blame`). A worker that dies or is silent
    for longer than its last `start` allowed (before the first one: start_limit_s) is started again, at most
    MAX_RESTARTS times.
    """
    seen = len(journal.read())
    errors = journal.path.with_suffix(".err")
    for _ in range(1 + MAX_RESTARTS):
        with errors.open("a") as log:
            worker = subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)
        try:
            seen, doing, why = _watch(worker, journal, seen, deadline, on_event, start_limit_s)
        finally:
            if worker.poll() is None:  # hung, out of time, or Ctrl-C here
                kill_group(worker)
        if why is None:
            return
        if doing is None:
            on_event({"say": f"the worker does not start: {why}"})
            return
        journal.write(blame=doing["start"], part=doing["part"], why=why)


def _watch(
    worker: subprocess.Popen[bytes],
    journal: Journal,
    seen: int,
    deadline: float,
    on_event: Callable[[dict[str, Any]], None],
    limit: float,
) -> tuple[int, dict[str, Any] | None, str | None]:
    """Until the worker ends, hangs or the time is up: lines seen, what it did, why it is to be replaced."""
    doing: dict[str, Any] | None = None
    heard = time.monotonic()
    while True:
        code = worker.poll()
        events = journal.read()
        for event in events[seen:]:
            heard = time.monotonic()
            if "start" in event:
                doing, limit = event, float(event["limit_s"])
            on_event(event)
        seen = len(events)
        now = time.monotonic()
        if code is not None:
            errors = journal.path.with_suffix(".err")
            why = None if code == 0 else f"the worker ended with code {code}: {_last_line(errors)}"
            return seen, doing, why
        if now > deadline:
            return seen, doing, None
        if now - heard > limit:
            compiles = doing is not None and doing.get("compiles")
            why = STILL_COMPILING if compiles else "hung: nothing heard for"
            return seen, doing, f"{why} {limit:.0f} s"
        time.sleep(0.1)


def _last_line(path: Path) -> str:
    lines = [x for x in path.read_text(errors="replace").splitlines() if x.strip()]
    return lines[-1].strip()[:200] if lines else "no message"


def kill_group(worker: subprocess.Popen[bytes]) -> None:
    """End the worker and everything it started; a process stuck in the driver is left behind."""
    try:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait(timeout=10)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        pass
