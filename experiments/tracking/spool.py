"""What a run reported, in a file beside its checkpoints: written there first, sent from there."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
import uuid
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vmae.core.files import write_text
from vmae.experiments.layout import Tracked

Event = dict[str, Any]
_QUIET_S = 60.0
_KEPT = 10_000


class Spool:
    """The spool of a run: a JSON object a line (`event`, `time_ms`, ...), and how many bytes were sent.

    A line that a killed process left half-written is passed over wherever lines are read.
    """

    def __init__(self, home: Tracked) -> None:
        self.home = home
        self.path = home.spool
        self.unwritten: deque[bytes] = deque(maxlen=_KEPT)
        """Events for which there was no room."""

    def end_with_newline(self) -> None:
        """End a line that was left half-written, so that the next event stands alone."""
        # Where there is no room, that line and the next are lost.
        with contextlib.suppress(OSError):
            if not self.path.exists() or not self.path.stat().st_size:
                return
            with open(self.path, "rb+") as f:
                f.seek(-1, os.SEEK_END)
                if f.read(1) != b"\n":
                    f.write(b"\n")

    def append(self, event: Event) -> OSError | None:
        """Add an event, with the time it was made.

        Where it cannot be written (a full disk) it is kept in memory, to be written before the next one, and
        the error is returned: what a run reports is not worth its end.
        """
        self.unwritten.append(json.dumps({**event, "time_ms": int(time.time() * 1000)}).encode() + b"\n")
        try:
            with open(self.path, "ab", buffering=0) as f:
                while self.unwritten:
                    before = f.tell()
                    if f.write(self.unwritten[0]) != len(self.unwritten[0]):
                        f.truncate(before)  # no half a line, to which the next would be glued
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
                    self.unwritten.popleft()
        except OSError as e:
            return e
        return None

    def pending(self) -> bool:
        """Whether some of it was not sent."""
        return bool(self.unwritten) or self.waiting()[1] > self.offset()

    def offset(self) -> int:
        """How many bytes were sent."""
        try:
            return int(self.home.offset.read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def remember(self, offset: int) -> None:
        """Note that so many bytes were sent."""
        write_text(self.home.offset, str(offset))

    def waiting(self) -> tuple[list[tuple[Event, int]], int]:
        """The events past the offset, each with the offset after it; and the offset after all whole lines."""
        offset = self.offset()
        try:
            with open(self.path, "rb") as f:
                f.seek(offset)
                data = f.read()
        except FileNotFoundError:
            return [], offset
        found = []
        for raw in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
            offset += len(raw)
            event = _parsed(raw)
            if event is not None:
                found.append((event, offset))
        return found, offset

    def start(self) -> Event | None:
        """The first attempt's beginning, which says what run this is; None where none was written whole."""
        return next((e for e in self._events() if e["event"] == "start"), None)

    def last(self) -> Event | None:
        """The last event; None where it is half-written or there is none."""
        lines = self.path.read_bytes().splitlines()
        return _parsed(lines[-1]) if lines else None

    def in_use(self) -> bool:
        """Whether a process may still write it: one did so lately, and the run has no end."""
        last = self.last()
        ended = last is not None and last["event"] == "finish"
        return not ended and time.time() - self.path.stat().st_mtime < _QUIET_S

    def refused(self) -> list[Event]:
        """What was set aside: `event`, and `why` the store refused it."""
        try:
            lines = self.home.refused.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        return [entry for entry in map(_parsed, lines) if entry is not None]

    def set_aside(self, entry: Event) -> None:
        """Keep a refused event, once."""
        if entry["event"] not in [kept["event"] for kept in self.refused()]:
            with open(self.home.refused, "a") as f:
                f.write(json.dumps(entry) + "\n")

    def keep_refused(self, entries: list[Event]) -> None:
        """Keep these refused events and no others."""
        if entries:
            write_text(self.home.refused, "".join(json.dumps(entry) + "\n" for entry in entries))
        else:
            self.home.refused.unlink(missing_ok=True)

    def files(self) -> list[Path]:
        """The files of the run's folder that unsent or refused events refer to."""
        events = [event for event, _ in self.waiting()[0]] + [entry["event"] for entry in self.refused()]
        paths = [self.home.path / e["path"] for e in events if "path" in e]
        return [p for p in paths if p.is_relative_to(self.home.path)]

    def metrics(self) -> dict[str, list[tuple[int, float]]]:
        """Every metric's curve, sent or not: {metric: (step, value) by step}; empty without a spool.

        A step that a resumed attempt repeated counts once, with its first value.
        """
        found: dict[str, dict[int, float]] = {}
        for event in self._events():
            if event["event"] == "metrics":
                for key, value in event["values"].items():
                    found.setdefault(key, {}).setdefault(event["step"], value)
        return {key: sorted(points.items()) for key, points in found.items()}

    def _events(self) -> Iterator[Event]:
        with contextlib.suppress(FileNotFoundError), open(self.path, "rb") as f:
            yield from (event for event in map(_parsed, f) if event is not None)


def _parsed(line: bytes) -> Event | None:
    """An event, or None for half a line."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None


def key_of(home: Tracked, name: str) -> str:
    """The identity in the store of the run in a folder: what its spool says, a new one where it has none.

    A name is no identity: the folder of a run may be removed and its name taken by another.
    """
    start = Spool(home).start()
    return str(start["key"]) if start is not None else f"run:{name}:{uuid.uuid4().hex[:12]}"


def spooled_metrics(spool: Path) -> dict[str, list[tuple[int, float]]]:
    """`Spool.metrics` of a spool's file."""
    return Spool(Tracked(spool.parent)).metrics()
