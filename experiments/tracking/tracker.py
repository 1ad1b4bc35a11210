"""The only writer to MLflow: every run is written through a `Tracker`, which survives the store being away.

What a run reports is appended to a file beside its checkpoints first (the spool) and sent from there by a
background thread. So training never waits for the store and never stops for it; what could not be sent when
the process ends stays in the spool, and the next attempt (or `vmae runs sync`) sends it. Sending again what
was already sent changes nothing: a run is found again by its key, metrics carry the time they were made, and
steps the store already has are passed over.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmae.experiments.layout import Tracked
from vmae.experiments.tracking.client import first_line
from vmae.experiments.tracking.origin import environment_tags
from vmae.experiments.tracking.sender import UPLOAD_BYTES_S, NoParentYet, Sender
from vmae.experiments.tracking.spool import Spool
from vmae.experiments.tracking.store import Store

if TYPE_CHECKING:
    import numpy as np

SYSTEM_EVERY_S = 10.0
"""Seconds between two measurements of the machine by a tracker."""
GATHER_S = 5.0
"""Seconds between two visits to the store: each costs tens of milliseconds of processor time."""
log = logging.getLogger("vmae.tracking")


@dataclass(frozen=True)
class Cost:
    """Seconds in which the run's own thread did not go on, and processor seconds of all threads."""

    seconds: float = 0.0
    cpu_s: float = 0.0


class Tracker:
    """One run in the store.

    Args:
        store: where to write.
        run_dir: the run's own directory; the spool lives there.
        name: shown name.
        key: identity of the run across attempts: opening a tracker with a known key continues that run, so
            a retried or resumed trial is one run in MLflow.
        kind: `pretrain`, `finetune`, `probe`, `evaluate`, `trial` or `sweep`.
        parent_key: key of the parent run (a sweep's), if any.
        params: flat parameters, written once when the run is made.
        tags: further tags.
        patience_s: seconds before the first event is sent. A process that has just begun has better things to
            do than to import MLflow.

    The tracker starts its thread at once; call `finish` (or use it as a context manager).
    """

    def __init__(
        self,
        store: Store,
        run_dir: Path | str,
        *,
        name: str,
        key: str,
        kind: str,
        parent_key: str | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        patience_s: float = 0.0,
    ) -> None:
        self.store = store
        self._patience_s = patience_s
        self.run_dir = Path(run_dir)
        self.key = key
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._files = Tracked(self.run_dir)
        self._spool = Spool(self._files)
        self.spool = self._spool.path
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._hurry = threading.Event()
        self._deadline = float("inf")
        self._upload_s = 0.0
        self._finished: bool | None = None
        self._full = False
        self._cost = Cost()
        self._background_cpu_s = 0.0
        with self._counted():
            self._spool.end_with_newline()
            self._write(
                {
                    "event": "start",
                    "store": store.uri,
                    "name": name,
                    "key": key,
                    "kind": kind,
                    "parent_key": parent_key,
                    "params": {k: _param(v) for k, v in (params or {}).items()},
                    "tags": {k: _text(v) for k, v in {**environment_tags(), **(tags or {})}.items()},
                }
            )
        self._sender = Sender(store, self._spool)
        self._system = _System(self._spool)
        self._thread = threading.Thread(target=self._loop, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers at a step (an integer that grows; steps the store already has are passed over)."""
        with self._counted():
            values = {k: float(v) for k, v in metrics.items()}
            self._write({"event": "metrics", "values": values, "step": int(step)})

    def log_image(self, image: np.ndarray, key: str, step: int) -> None:
        """Record a picture, uint8 `[H, W, 3]`, shown by MLflow with a step slider under `key`."""
        from PIL import Image

        with self._counted():
            folder = self._files.pictures
            path = folder / f"{key.replace('/', '_')}_{step:06d}.png"
            try:
                folder.mkdir(exist_ok=True)
                Image.fromarray(image).save(path)
            except OSError as e:
                log.warning("the picture %s could not be kept: %s", path, first_line(e))
                return
            self._write({"event": "image", "path": self._place(path), "key": key, "step": int(step)})

    def log_artifact(self, path: Path | str, folder: str = "") -> None:
        """Copy a file into the run's artifacts, under `folder`."""
        with self._counted():
            with contextlib.suppress(OSError):
                self._upload_s += Path(path).stat().st_size / UPLOAD_BYTES_S
            self._write({"event": "artifact", "path": self._place(Path(path)), "folder": folder})

    def _place(self, path: Path) -> str:
        """The path as the spool has it: from the run's directory on where it is in there, for it may move."""
        inside = path.is_relative_to(self.run_dir)
        return str(path.relative_to(self.run_dir) if inside else path)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; a later value replaces an earlier one."""
        with self._counted():
            self._write({"event": "tags", "tags": {k: _text(v) for k, v in tags.items()}})

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until the store has everything reported so far; False where it does not come in time."""
        deadline = time.monotonic() + timeout_s
        while self._spool.pending() and time.monotonic() < deadline:
            self._wake.set()
            self._hurry.set()
            time.sleep(0.05)
        return not self._spool.pending()

    def finish(self, status: str = "FINISHED", timeout_s: float | None = None) -> bool:
        """End the run with an MLflow status (`FINISHED`, `FAILED`, `KILLED`) and send what is left.

        It waits `timeout_s`, by default 30 seconds and as long as the artifacts may take. A second call (that
        of the `with` block) changes nothing.

        Returns:
            Whether everything reached the store; if not, a warning names the spool and what to type.
        """
        if self._finished is not None:
            return self._finished  # its status is said already
        if timeout_s is None:
            timeout_s = 30.0 + self._upload_s
        self._log_system()
        self._write({"event": "finish", "status": status})
        self._deadline = time.monotonic() + timeout_s
        self._stop.set()
        self._wake.set()
        self._hurry.set()
        self._thread.join(timeout_s + 1)
        if self._thread.is_alive() or self._spool.pending():
            log.warning(
                "the tracking store %s did not take everything: the rest of run %s waits in %s; "
                "`vmae runs sync` sends it",
                self.store.uri,
                self.key,
                self.spool,
            )
            self._finished = False
        else:
            self._finished = True
        return self._finished

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.finish()
        else:
            self.finish("KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED")

    @property
    def cost(self) -> Cost:
        """What tracking took from the run so far (the wait for the store in `flush` and `finish` apart)."""
        return Cost(self._cost.seconds, self._cost.cpu_s + self._background_cpu_s)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        start, cpu = time.perf_counter(), time.thread_time()
        yield
        spent = time.perf_counter() - start, time.thread_time() - cpu
        self._cost = Cost(self._cost.seconds + spent[0], self._cost.cpu_s + spent[1])

    def _write(self, event: dict[str, Any]) -> None:
        with self._lock:
            error = self._spool.append(event)
            if error is not None and not self._full:
                log.warning("what run %s reports waits in memory: %s", self.key, first_line(error))
            self._full = error is not None
        self._wake.set()

    def _log_system(self) -> None:
        try:
            step, values = self._system.measure()
        except Exception as e:
            # A container that hides /proc, a GPU that has fallen off: its numbers are missing, no more.
            log.debug("the machine of run %s was not measured: %s", self.key, first_line(e))
            return
        self._write({"event": "metrics", "values": values, "step": step})

    def _loop(self) -> None:
        self._stop.wait(self._patience_s)
        delay = 1.0
        measured = time.monotonic()
        while True:
            self._wake.wait(SYSTEM_EVERY_S)
            if time.monotonic() - measured >= SYSTEM_EVERY_S and not self._stop.is_set():
                self._log_system()
                measured = time.monotonic()
            self._wake.clear()
            stopping = self._stop.is_set()
            try:
                self._sender.send()
                self._background_cpu_s = time.thread_time()
            except Exception as e:
                # Whatever the store's client raises, the run goes on and the spool keeps the events.
                if not isinstance(e, NoParentYet):
                    where = self.store.uri
                    log.warning("tracking store %s is away (%s): trying again", where, first_line(e))
                    delay = min(60.0, delay * 2)
                self._wake.set()
                if stopping:
                    delay = 1.0
                    if time.monotonic() + delay > self._deadline:
                        return
                    time.sleep(delay)
                else:
                    self._stop.wait(delay)
            else:
                delay = 1.0
                if stopping:
                    return
                self._hurry.wait(GATHER_S)
                self._hurry.clear()
            if self._stop.is_set():
                self._wake.set()


class _System:
    """What a run takes from its machine, read from the operating system's counters (under a millisecond).

    Steps are seconds since the run's first attempt began, so that they grow over attempts.
    """

    def __init__(self, spool: Spool) -> None:
        import psutil

        start = spool.start()
        self._start_ms: int = start["time_ms"] if start is not None else int(time.time() * 1000)
        self._process = psutil.Process()
        self._process.cpu_percent()
        psutil.cpu_percent()

    def measure(self) -> tuple[int, dict[str, float]]:
        """(step, values): CPU in percent of one core (the run) and of all (the machine), memory in GiB."""
        import psutil

        values = {
            "system/process_cpu_percent": self._process.cpu_percent(),
            "system/process_memory_gib": self._process.memory_info().rss / 2**30,
            "system/cpu_percent": psutil.cpu_percent(),
            "system/memory_percent": psutil.virtual_memory().percent,
        }
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
            free, total = torch.cuda.mem_get_info()
            values["system/gpu_memory_percent"] = 100 * (1 - free / total)
        return int(time.time() - self._start_ms / 1000), values


def _param(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return _text(text[:6000])


def _text(value: object) -> str:
    """What a database takes: a file's name that is no UTF-8 has its odd bytes written as `\\xff`."""
    return str(value).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
