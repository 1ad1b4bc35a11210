"""A trial's `progress.json`: where it is, for whoever watches the sweep."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from vmae.core.files import read_record, write_json
from vmae.experiments.stages.stage import Numbers


class ProgressFile:
    """Stage, share done, latest numbers; seconds, processes of all attempts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        before = read_record(path, "seconds", "attempts") or {}
        self._seconds_before: float = before.get("seconds", 0.0)
        self.attempts: int = before.get("attempts", 0) + 1
        self._start = time.monotonic()
        self._written = 0.0
        self.state: dict[str, Any] = {"stage": "starting", "fraction": 0.0, "metrics": {}, "error": None}

    @property
    def attempt_s(self) -> float:
        return time.monotonic() - self._start

    @property
    def seconds(self) -> float:
        return self._seconds_before + self.attempt_s

    def update(self, *, force: bool = False, metrics: Numbers | None = None, **state: Any) -> None:
        """Change the state; written at most once a second unless forced."""
        self.state.update(state)
        self.state["metrics"].update(metrics or {})
        now = time.monotonic()
        if force or now - self._written >= 1.0:
            self._written = now
            facts = {
                "seconds": self.seconds,
                "attempts": self.attempts,
                "updated": time.time(),
                "host": os.uname().nodename,
                "pid": os.getpid(),
            }
            write_json(self.path, {**self.state, **facts})
