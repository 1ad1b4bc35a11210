"""Sends what a run has spooled to the store."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vmae.core.errors import VmaeError
from vmae.core.locks import locked
from vmae.experiments.tracking import tags
from vmae.experiments.tracking.client import (
    create_store,
    experiment_id,
    find_run,
    first_line,
    http_status,
    mlflow_client,
)
from vmae.experiments.tracking.spool import Event, Spool
from vmae.experiments.tracking.store import Store

UPLOAD_BYTES_S = 2e6
"""What a connection is trusted to carry; how long a run's end waits for large artifacts follows from it."""
_MAY_BE_TAKEN_LATER = (401, 403, 407, 408, 409, 425, 429, 499)
"""Client errors (HTTP status) that credentials or time can mend."""
_BATCH = {"metrics": 1000, "params": 100, "tags": 100}
"""What MLflow takes in one request."""
_PARENT_WITHIN_S = 600.0
"""How long a run waits for its parent's to be there; then it goes without."""
log = logging.getLogger("vmae.tracking")


class NoParentYet(Exception):
    """A trial's run would come before its sweep's."""


class Sender:
    """Sends a spool's events in order and remembers how far it came."""

    def __init__(self, store: Store, spool: Spool) -> None:
        self.store = store
        self.spool = spool
        self.run_id = ""  # until it is connected
        self._known_steps: dict[str, int] = {}
        self._known_images: set[str] = set()
        self._refused_now: list[dict[str, Any]] = []

    def send(self) -> None:
        """Send all complete lines past the offset.

        One process at a time sends a spool. What another process sent meanwhile is passed over because the
        offset is read under the lock.
        """
        with self._connected():
            self._send_events(*self.spool.waiting())

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        """Inside, this process alone sends the spool, and its run is there."""
        with locked(self.spool.home.sending):
            if not self.run_id:
                start = self.spool.start()
                if start is None:
                    raise VmaeError(f"expected to find in {self.spool.path} what run it is of")
                self._connect(start)
            yield

    def _send_events(self, events: list[tuple[Event, int]], end_of_all: int) -> None:
        from mlflow.entities import Metric

        metrics: list[Metric] = []
        # A resumed attempt repeats steps that an earlier one spooled: the last step of each metric is what
        # tells them apart. It counts as known only once the store has taken it.
        last_step = dict(self._known_steps)

        def flush() -> None:
            self._log("metrics", metrics)
            metrics.clear()
            self._known_steps.update(last_step)

        for event, end in events:
            if event["event"] == "metrics":
                for key, value in event["values"].items():
                    if event["step"] > last_step.get(key, -1):
                        last_step[key] = event["step"]
                        metrics.append(Metric(key, value, event["time_ms"], event["step"]))
                continue
            flush()
            self._deliver(event)
            self.spool.remember(end)
        flush()
        if end_of_all > self.spool.offset():
            self.spool.remember(end_of_all)
        self._say_refused()

    def _deliver(self, event: dict[str, Any]) -> None:
        """Send one event, or set it aside."""
        from mlflow.entities import Metric, Param, RunTag

        path = self.spool.home.path / event.get("path", "")

        client, kind = mlflow_client(self.store.uri), event["event"]
        if kind == "metrics":
            points = event["values"].items()
            self._log("metrics", [Metric(k, v, event["time_ms"], event["step"]) for k, v in points])
        elif kind == "params":
            self._log("params", [Param(k, v) for k, v in event["params"].items()])
        elif kind in ("start", "tags"):
            self._log("tags", [RunTag(k, str(v)) for k, v in event["tags"].items()])
        try:
            if kind == "start":
                client.update_run(self.run_id, status="RUNNING")
            elif kind == "artifact" and path.exists():
                with patience(path):
                    client.log_artifact(self.run_id, str(path), event["folder"] or None)
            elif kind == "image":
                self._send_image(event, path)
            elif kind == "finish":
                client.set_terminated(self.run_id, status=event["status"], end_time=event["time_ms"])
        except Exception as e:
            if not self._refused(e):
                raise
            self._set_aside(event, e)

    def _log(self, kind: str, items: list[Any]) -> None:
        """Send metrics, params or tags in batches; of a batch that is refused, each item alone decides."""
        client = mlflow_client(self.store.uri)
        for start in range(0, len(items), _BATCH[kind]):
            part = items[start : start + _BATCH[kind]]
            batch: Any = {kind: part}
            try:
                client.log_batch(self.run_id, **batch)
            except Exception as e:
                if not self._refused(e):
                    raise
                half = len(part) // 2
                if half:
                    self._log(kind, part[:half])
                    self._log(kind, part[half:])
                    continue
                (item,) = part
                event = {"event": kind, ("values" if kind == "metrics" else kind): {item.key: item.value}}
                if kind == "metrics":
                    event |= {"step": item.step, "time_ms": item.timestamp}
                self._set_aside(event, e)

    def _refused(self, error: Exception) -> bool:
        """Whether the store will not take it at another time either: it says so, and is well otherwise."""
        status = http_status(error)
        if status is None or not 400 <= status < 500 or status in _MAY_BE_TAKEN_LATER:
            return False
        try:
            return bool(mlflow_client(self.store.uri).get_run(self.run_id).info.lifecycle_stage == "active")
        except Exception:
            return False

    def _set_aside(self, event: dict[str, Any], error: Exception) -> None:
        entry = {"event": event, "why": first_line(error)}
        self._refused_now.append(entry)
        log.warning("tracking store %s refused %s", self.store.uri, _described([entry]))
        self.spool.set_aside(entry)

    def _say_refused(self) -> None:
        """Let the run's tag say what it lacks."""
        if self._refused_now:
            mlflow_client(self.store.uri).set_tag(self.run_id, tags.REFUSED, _described(self.spool.refused()))
            self._refused_now = []

    def send_refused(self) -> str:
        """Offer once more what was refused (a server's limit may be another one now).

        Returns a line about what still is, an empty one where nothing is.
        """
        with self._connected():
            before = self.spool.refused()
            self._refused_now = []
            for entry in before:
                self._deliver(entry["event"])
            left = self._refused_now
            if left:
                self.spool.keep_refused(left)
                self._say_refused()
            elif before:
                mlflow_client(self.store.uri).set_tag(self.run_id, tags.REFUSED, "")
                self.spool.keep_refused([])
            return _described(left)

    def _send_image(self, event: Mapping[str, Any], path: Path) -> None:
        mark = f"{event['key'].replace('/', '#')}+step+{event['step']}+"
        if mark in self._known_images or not path.exists():
            return
        import numpy as np
        from PIL import Image

        client = mlflow_client(self.store.uri)
        picture = np.asarray(Image.open(path))
        client.log_image(self.run_id, picture, key=event["key"], step=event["step"])
        self._known_images.add(mark)

    def _connect(self, start: Mapping[str, Any]) -> None:
        """Find the run by its key or make it; learn what the store already has of it."""
        from mlflow.entities import Param

        client = mlflow_client(self.store.uri)
        if self.store.sqlite_path:
            create_store(self.store)
        experiment = experiment_id(self.store, client)
        run_id = find_run(client, experiment, start["key"])
        if run_id is None:
            made = {**start["tags"], tags.KEY: start["key"], tags.KIND: start["kind"]}
            if start["parent_key"]:
                parent = find_run(client, experiment, start["parent_key"])
                if parent is not None:
                    made[tags.PARENT] = parent
                elif time.time() - start["time_ms"] / 1000 < _PARENT_WITHIN_S:
                    raise NoParentYet(f"expected the run of {start['parent_key']} in {self.store.uri} first")
            run = client.create_run(experiment, start["time_ms"], made, start["name"])
            run_id = str(run.info.run_id)
            # Whatever was sent went to a store (or a run) that is gone.
            self.spool.remember(0)
            known: dict[str, str] = {}
        else:
            data = client.get_run(run_id).data
            known = data.params
            for key in data.metrics:
                history = client.get_metric_history(run_id, key)
                self._known_steps[key] = max(m.step for m in history)
            for item in client.list_artifacts(run_id, "images"):
                name = Path(item.path).name
                self._known_images.add(name.partition("timestamp+")[0])
        self.run_id = run_id
        try:
            # An attempt that ended just after it had made the run left some of them out.
            self._log("params", [Param(k, v) for k, v in start["params"].items() if k not in known])
        except Exception:
            self.run_id = ""
            raise


@contextlib.contextmanager
def patience(path: Path) -> Iterator[None]:
    """Inside, a server may take as long to answer as a file of this size needs to be stored."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    usual = os.environ.get(name, "10")
    os.environ[name] = str(max(int(usual), int(path.stat().st_size / UPLOAD_BYTES_S)))
    try:
        yield
    finally:
        os.environ[name] = usual


def _described(refused: list[dict[str, Any]]) -> str:
    """`3 events; the last: artifact model.pt: 413 ...`; empty without any."""
    if not refused:
        return ""
    event, count = refused[-1]["event"], f"{len(refused)} event{'s' * (len(refused) > 1)}"
    names = (
        [Path(event["path"]).name]
        if "path" in event
        else [*event.get("values", event.get(event["event"], {}))]
    )
    return f"{count}; the last: {event['event']} {', '.join(names)}: {refused[-1]['why']}"
