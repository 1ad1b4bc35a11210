"""The only writer to MLflow: every run is written through a `Tracker`, which survives the store being away.

What a run reports is appended to a file beside its checkpoints first (the spool) and sent from there by a
background thread. So training never waits for the store and never stops for it; what could not be sent when
the process ends stays in the spool, and the next attempt (or `vmae runs sync`) sends it. Sending again what
was already sent changes nothing: a run is found again by its key, metrics carry the time they were made, and
steps the store already has are passed over.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import logging
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlparse

from vmae import __version__
from vmae.core.errors import InputError, VmaeError
from vmae.core.files import write_text
from vmae.experiments.layout import RunsDir, Tracked, is_of_spool
from vmae.experiments.storage import Storage, open_storage, scratch

if TYPE_CHECKING:
    import numpy as np
    from mlflow.tracking import MlflowClient

EXPERIMENT = "vmae"
KEY_TAG = "vmae.key"
KIND_TAG = "vmae.kind"
CLASSIFIER_TAG = "vmae.classifier"
"""Of a trial that was fine-tuned: the classifier's folder (`vmae.checkpoint` is the pre-trained model's)."""
COMMAND_ENV = "VMAE_COMMAND"
COMMIT_ENV = "VMAE_COMMIT"
"""What says a run's command line and commit where its process cannot know them (a worker's, an image's)."""
REFUSED_TAG = "vmae.refused"
_MAY_BE_TAKEN_LATER = (401, 403, 407, 408, 409, 425, 429, 499)
"""Client errors (HTTP status) that credentials or time can mend."""
_BATCH = {"metrics": 1000, "params": 100, "tags": 100}
"""What MLflow takes in one request."""
SYSTEM_EVERY_S = 10.0
"""Seconds between two measurements of the machine by a tracker."""
GATHER_S = 5.0
"""Seconds between two visits to the store: each costs tens of milliseconds of processor time."""
PARENT_WITHIN_S = 600.0
"""How long a run waits for its parent's to be there; then it goes without."""
UPLOAD_BYTES_S = 2e6
"""What a connection is trusted to carry; how long a run's end waits for large artifacts follows from it."""
log = logging.getLogger("vmae.tracking")


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """What a run sends to the store besides its numbers."""

    checkpoints: Literal["link", "upload", "none"] = "link"
    """The run's checkpoints among its artifacts, put there when training ends. link: a file that says where
    they lie, how large they are and of which epoch. upload: the weights too (of the last and the best epoch;
    of an interrupted run also the newest training checkpoint). none: nothing."""


@dataclass(frozen=True, kw_only=True)
class Store:
    """Where runs are recorded.

    `uri` is an MLflow tracking URI; `runs_dir` the project's run directory (checkpoints, sweeps, and by
    default the SQLite file and artifacts too). `remote` is the URI of a run directory on an object store
    (see `vmae.experiments.storage`): `runs_dir` is then this machine's copy of what it needs of it.
    """

    uri: str
    runs_dir: Path
    remote: str = ""

    @property
    def layout(self) -> RunsDir:
        """The paths under `runs_dir`."""
        return RunsDir(self.runs_dir)

    def storage(self) -> Storage:
        """What keeps the files of `runs_dir`; InputError where there is no file system for `remote`."""
        return open_storage(self.remote, self.runs_dir)

    def shown(self, path: Path) -> str:
        """A path under `runs_dir` as its user knows it: of a run directory on an object store a URI."""
        if not self.remote:
            return str(path)
        return "/".join((self.remote, *path.relative_to(self.runs_dir).parts))

    @property
    def sqlite_path(self) -> Path | None:
        """The database file, or None where the store is a server."""
        return Path(self.uri.removeprefix("sqlite:///")) if self.uri.startswith("sqlite:///") else None


def default_runs_dir() -> Path:
    """`$VMAE_RUNS`, or `./runs`."""
    return Path(os.environ.get("VMAE_RUNS") or "runs").resolve()


def store_at(runs_dir: Path | str | None = None, *, remote: bool = False, role: str = "driver") -> Store:
    """The store of a run directory: `$MLFLOW_TRACKING_URI` where it is set, else SQLite in the directory.

    Args:
        runs_dir: a folder, or with `remote` also a URI (`s3://bucket/folder`).
        role: whose copy of a URI's files this is (see `storage.scratch`).

    Raises:
        InputError: a URI where a folder is needed, or one without a tracking server.
    """
    text = str(runs_dir or os.environ.get("VMAE_RUNS") or "")
    tracking = os.environ.get("MLFLOW_TRACKING_URI")
    if "://" in text:
        if not remote:
            raise InputError(f"--runs-dir: expected a folder, got {text}: sweep, sweeps and runs take a URI")
        if not tracking or tracking.startswith("sqlite:"):
            raise InputError(
                f"--runs-dir {text}: expected a tracking server in MLFLOW_TRACKING_URI (a database cannot be "
                f"on an object store), got {tracking or 'none'}"
            )
        return Store(uri=tracking, runs_dir=scratch(text, role), remote=text.rstrip("/"))
    directory = Path(runs_dir).resolve() if runs_dir else default_runs_dir()
    return Store(uri=tracking or f"sqlite:///{RunsDir(directory).database}", runs_dir=directory)


def create_store(store: Store) -> None:
    """Make the database and the experiment where they are missing; safe to call from several processes.

    Raises VmaeError where the tracking server does not answer, or refuses.
    """
    store.runs_dir.mkdir(parents=True, exist_ok=True)
    with reachable(store) as client, _locked(store.layout.making):
        _experiment_id(store, client)


@contextlib.contextmanager
def reachable(store: Store) -> Iterator[MlflowClient]:
    """A client of the store; VmaeError names the tracking server where it does not answer inside."""
    client = _client(store.uri)
    from mlflow.exceptions import MlflowException

    try:
        yield client
    except MlflowException as e:
        hint = ""
        if "Invalid Host header" in str(e):
            # MLflow 3 answers to localhost and to private addresses; by a name only if it was told so.
            host = urlparse(store.uri).netloc
            hint = f"; start the server with `mlflow server --allowed-hosts {host} ...`, see docs/clusters.md"
        raise VmaeError(
            f"expected the tracking server {store.uri} to answer, got: {_first_line(e)}{hint}"
        ) from e


@functools.lru_cache(maxsize=8)
def _client(uri: str) -> MlflowClient:
    """A client of the store, its database migrated.

    Making a client of a fresh SQLite file migrates it, and two processes that do so at once corrupt it: so
    a client is made under a file lock.
    """
    # A store that is away must answer soon: the spool is what waits, not the caller.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # A server's client prints two links for each run that ends, between a sweep's own lines.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # A server's client would print where to see each run that ends, into what may be JSON.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow.tracking import MlflowClient
    for name in ("alembic", "mlflow", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if not uri.startswith("sqlite:///"):
        return MlflowClient(uri)
    folder = Path(uri.removeprefix("sqlite:///")).parent
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(RunsDir(folder).making):
        return MlflowClient(uri)


def _experiment_id(store: Store, client: MlflowClient) -> str:
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    location = str(store.layout.artifacts) if store.sqlite_path else None
    # Without this tag MLflow's own UI opens in its GenAI mode.
    tags = {"mlflow.experimentKind": "custom_model_development"}
    return str(client.create_experiment(EXPERIMENT, artifact_location=location, tags=tags))


def environment_tags() -> dict[str, str]:
    """Tags that say what made a run: versions, host, command line and git commit (where there is one)."""
    from importlib.metadata import version

    own = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    tags = {
        "vmae.version": __version__,
        "vmae.torch": version("torch"),
        "vmae.python": sys.version.split()[0],
        "vmae.host": os.uname().nodename,
        # A Ray worker's own arguments say nothing: the command line that started it is handed down.
        "vmae.command": os.environ.get(COMMAND_ENV, own)[:4000],
        "mlflow.user": os.environ.get("USER", "unknown"),
    }
    commit = own_commit()
    if commit:
        tags["mlflow.source.git.commit"] = commit
    return tags


@functools.cache
def own_commit() -> str | None:
    """The commit of this code: the environment's word (of a worker, an image), or else git; None: unknown."""
    if said := os.environ.get(COMMIT_ENV):
        return said
    root = Path(__file__).resolve().parents[1]
    try:
        result = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
    except OSError:
        return None  # no git here
    return result.stdout.strip() if result.returncode == 0 else None


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
        self.spool = self._files.spool
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._hurry = threading.Event()
        self._deadline = float("inf")
        self._upload_s = 0.0
        self._finished: bool | None = None
        self._cost = Cost()
        self._background_cpu_s = 0.0
        with self._counted():
            _end_with_newline(self.spool)
            self._write(
                {
                    "event": "start",
                    "store": store.uri,
                    "name": name,
                    "key": key,
                    "kind": kind,
                    "parent_key": parent_key,
                    "params": {k: _param(v) for k, v in (params or {}).items()},
                    "tags": {**environment_tags(), **(tags or {})},
                }
            )
        self._sender = _Sender(store, self.spool)
        self._system = _System(self.spool)
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
            folder.mkdir(exist_ok=True)
            path = folder / f"{key.replace('/', '_')}_{step:06d}.png"
            Image.fromarray(image).save(path)
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
            self._write({"event": "tags", "tags": {k: str(v) for k, v in tags.items()}})

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until the store has everything reported so far; False where it does not come in time."""
        deadline = time.monotonic() + timeout_s
        while self._sender.pending() and time.monotonic() < deadline:
            self._wake.set()
            self._hurry.set()
            time.sleep(0.05)
        return not self._sender.pending()

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
        if self._thread.is_alive() or self._sender.pending():
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
        event["time_ms"] = int(time.time() * 1000)
        line = json.dumps(event) + "\n"
        with self._lock, open(self.spool, "a") as f:
            f.write(line)
        self._wake.set()

    def _log_system(self) -> None:
        step, values = self._system.measure()
        # On a full disk these are not worth an error, least of all in the thread that sends the others.
        with contextlib.suppress(OSError):
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
                if not isinstance(e, _NoParentYet):
                    where = self.store.uri
                    log.warning("tracking store %s is away (%s): trying again", where, _first_line(e))
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


class _NoParentYet(Exception):
    """A trial's run would come before its sweep's."""


class _System:
    """What a run takes from its machine, read from the operating system's counters (under a millisecond).

    Steps are seconds since the run's first attempt began, so that they grow over attempts.
    """

    def __init__(self, spool: Path) -> None:
        import psutil

        with open(spool) as f:
            self._start_ms: int = json.loads(f.readline())["time_ms"]
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


class _Sender:
    """Sends a spool's events in order and remembers how far it came (a byte offset beside the spool)."""

    def __init__(self, store: Store, spool: Path) -> None:
        self.store = store
        self.spool = spool
        self._files = Tracked(spool.parent)
        self.offset_path, self.refused_path = self._files.offset, self._files.refused
        self.run_id = ""  # until it is connected
        self._known_steps: dict[str, int] = {}
        self._known_images: set[str] = set()
        self._refused_now: list[dict[str, Any]] = []

    def pending(self) -> bool:
        return self.spool.stat().st_size > self._offset()

    def in_use(self) -> bool:
        """Whether a process may still write this spool: it did so lately, and the run has no end."""
        last = self.spool.read_bytes().rstrip().rpartition(b"\n")[2]
        return b'"finish"' not in last and time.time() - self.spool.stat().st_mtime < 6 * SYSTEM_EVERY_S

    def files(self) -> list[Path]:
        """The files that events refer to which were not sent, or were refused."""
        waiting = self.spool.read_bytes()[self._offset() :].splitlines()
        events = [json.loads(line) for line in waiting if line.endswith(b"}")]
        events += [entry["event"] for entry in self.refused()]
        paths = [self.spool.parent / e["path"] for e in events if "path" in e]
        return [p for p in paths if p.is_relative_to(self.spool.parent)]

    def _offset(self) -> int:
        try:
            return int(self.offset_path.read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def send(self) -> None:
        """Send all complete lines past the offset.

        One process at a time sends a spool. What another process sent meanwhile is passed over because the
        offset is read under the lock.
        """
        with self._connected():
            offset = self._offset()
            with open(self.spool, "rb") as f:
                f.seek(offset)
                data = f.read()
            complete = data[: data.rfind(b"\n") + 1]
            batch: list[tuple[dict[str, Any], int]] = []
            for raw in complete.splitlines(keepends=True):
                offset += len(raw)
                try:
                    event = json.loads(raw)
                except json.JSONDecodeError:
                    continue  # the half-written last line of a process that was killed
                batch.append((event, offset))
            self._send_events(batch)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        """Inside, this process alone sends the spool, and its run is there."""
        with _locked(self._files.sending):
            if not self.run_id:
                with open(self.spool, "rb") as f:
                    self._connect(json.loads(f.readline()))
            yield

    def _send_events(self, events: list[tuple[dict[str, Any], int]]) -> None:
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
            self._remember(end)
        flush()
        if events:
            self._remember(events[-1][1])
        self._say_refused()

    def _deliver(self, event: dict[str, Any]) -> None:
        """Send one event, or set it aside."""
        from mlflow.entities import Metric, Param, RunTag

        path = self.spool.parent / event.get("path", "")

        client, kind = _client(self.store.uri), event["event"]
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
                with _patience(path):
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
        client = _client(self.store.uri)
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
        status = _http_status(error)
        if status is None or not 400 <= status < 500 or status in _MAY_BE_TAKEN_LATER:
            return False
        try:
            return bool(_client(self.store.uri).get_run(self.run_id).info.lifecycle_stage == "active")
        except Exception:
            return False

    def refused(self) -> list[dict[str, Any]]:
        """What was set aside: `event`, and `why` the store refused it."""
        try:
            return [json.loads(line) for line in self.refused_path.read_text().splitlines()]
        except FileNotFoundError:
            return []

    def _set_aside(self, event: dict[str, Any], error: Exception) -> None:
        entry = {"event": event, "why": _first_line(error)}
        self._refused_now.append(entry)
        log.warning("tracking store %s refused %s", self.store.uri, _described([entry]))
        if event not in [kept["event"] for kept in self.refused()]:
            with open(self.refused_path, "a") as f:
                f.write(json.dumps(entry) + "\n")

    def _say_refused(self) -> None:
        """Let the run's tag say what it lacks."""
        if self._refused_now:
            _client(self.store.uri).set_tag(self.run_id, REFUSED_TAG, _described(self.refused()))
            self._refused_now = []

    def send_refused(self) -> str:
        """Offer once more what was refused (a server's limit may be another one now).

        Returns a line about what still is, an empty one where nothing is.
        """
        with self._connected():
            before = self.refused()
            self._refused_now = []
            for entry in before:
                self._deliver(entry["event"])
            left = self._refused_now
            if left:
                write_text(self.refused_path, "".join(json.dumps(entry) + "\n" for entry in left))
                self._say_refused()
            elif before:
                _client(self.store.uri).set_tag(self.run_id, REFUSED_TAG, "")
                self.refused_path.unlink()
            return _described(left)

    def _remember(self, offset: int) -> None:
        write_text(self.offset_path, str(offset))

    def _send_image(self, event: Mapping[str, Any], path: Path) -> None:
        mark = f"{event['key'].replace('/', '#')}+step+{event['step']}+"
        if mark in self._known_images or not path.exists():
            return
        import numpy as np
        from PIL import Image

        client = _client(self.store.uri)
        picture = np.asarray(Image.open(path))
        client.log_image(self.run_id, picture, key=event["key"], step=event["step"])
        self._known_images.add(mark)

    def _connect(self, start: Mapping[str, Any]) -> None:
        """Find the run by its key or make it; learn what the store already has of it."""
        from mlflow.entities import Param

        client = _client(self.store.uri)
        if self.store.sqlite_path:
            create_store(self.store)
        experiment = _experiment_id(self.store, client)
        run_id = find_run(client, experiment, start["key"])
        if run_id is None:
            tags = {**start["tags"], KEY_TAG: start["key"], KIND_TAG: start["kind"]}
            if start["parent_key"]:
                parent = find_run(client, experiment, start["parent_key"])
                if parent is not None:
                    tags["mlflow.parentRunId"] = parent
                elif time.time() - start["time_ms"] / 1000 < PARENT_WITHIN_S:
                    raise _NoParentYet(f"expected the run of {start['parent_key']} in {self.store.uri} first")
            run = client.create_run(experiment, start["time_ms"], tags, start["name"])
            run_id = str(run.info.run_id)
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


def find_run(client: MlflowClient, experiment_id: str, key: str) -> str | None:
    """The id of the run with this key, or None."""
    quoted = key.replace("'", "")
    found = client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{quoted}'", max_results=1)
    return str(found[0].info.run_id) if found else None


def sync(runs_dir: Path | str) -> list[tuple[Path, str]]:
    """Send everything that waits in spools under a run directory, and offer again what the store refused.

    Args:
        runs_dir: a folder, or a URI: its spools are fetched, and what was sent is noted there.

    Returns:
        (spool, outcome) for each spool that had something to send; outcome is `sent`, or why not all of it.

    Raises:
        StorageAway: an object store did not answer.
    """
    store = store_at(runs_dir, remote=True, role="sync")
    storage = store.storage()
    storage.pull(store.runs_dir, only=is_of_spool, fresh=True)
    outcomes: list[tuple[Path, str]] = []
    for spool in (home.spool for home in store.layout.spools()):
        sender = _Sender(store, spool)
        if not sender.pending() and not sender.refused():
            continue
        if not storage.locks and sender.in_use():
            outcomes.append((spool, "its own process is at work and will send it"))
            continue
        for path in sender.files():
            storage.pull_file(path)
        try:
            sender.send()
            refused = sender.send_refused()
            kept = f"refused: {refused} (kept in {sender.refused_path}; delete it to forget them)"
            outcomes.append((spool, kept if refused else "sent"))
        except Exception as e:
            outcomes.append((spool, _first_line(e)))
        for path in (sender.offset_path, sender.refused_path):
            if path.exists():
                storage.push_file(path)
            else:
                storage.delete(path)
    return outcomes


def spooled_metrics(spool: Path) -> dict[str, list[tuple[int, float]]]:
    """Every metric's curve as a run's own spool has it, sent or not: {metric: (step, value) by step}.

    A step that a resumed attempt repeated counts once, with its first value. Empty where there is no spool.
    """
    found: dict[str, dict[int, float]] = {}
    try:
        lines = spool.read_text().splitlines()
    except OSError:
        return {}
    for line in lines:
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue  # the half-written last line of a process that was killed
        if event["event"] == "metrics":
            for key, value in event["values"].items():
                found.setdefault(key, {}).setdefault(event["step"], value)
    return {key: sorted(points.items()) for key, points in found.items()}


@contextlib.contextmanager
def _patience(path: Path) -> Iterator[None]:
    """Inside, a server may take as long to answer as a file of this size needs to be stored."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    usual = os.environ.get(name, "10")
    os.environ[name] = str(max(int(usual), int(path.stat().st_size / UPLOAD_BYTES_S)))
    try:
        yield
    finally:
        os.environ[name] = usual


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def _end_with_newline(path: Path) -> None:
    """A process killed while writing leaves half a line: end it, so that the next event stands alone."""
    if path.exists() and path.stat().st_size:
        with open(path, "rb+") as f:
            f.seek(-1, os.SEEK_END)
            if f.read(1) != b"\n":
                f.write(b"\n")


def _http_status(error: Exception) -> int | None:
    """What a server answered, or the code that MLflow gives to its own refusals; None without an answer."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return int(error.get_http_status_code())
    return getattr(getattr(error, "response", None), "status_code", None)


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


def _param(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:6000]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
