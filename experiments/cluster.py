"""Ray, started here or joined elsewhere: addresses, the code nodes run, checks before work starts."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from vmae.core.errors import InputError, VmaeError

_CHECK_TIMEOUT_S = 90.0
CHECKS = ("python", "torch", "ray", "vmae", "GPUs", "data", "storage")


@dataclass(frozen=True, kw_only=True)
class NodeReport:
    """What one node said. `found` has a word for each of CHECKS; `problems` says what is wrong of them."""

    node: str
    host: str
    found: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


class ClusterUnfit(VmaeError):
    """Some node cannot do the work; `reports` says which and why."""

    def __init__(self, reports: Sequence[NodeReport]) -> None:
        self.reports = list(reports)
        bad = [r for r in self.reports if r.problems]
        first = f"{bad[0].node} ({bad[0].host}): {'; '.join(f'{k}: {v}' for k, v in bad[0].problems.items())}"
        super().__init__(f"expected every node to be fit, got {len(bad)} of {len(self.reports)}: {first}")


def parse_address(address: str) -> tuple[str, int] | None:
    """Host and port of `host:port` or `ray://host:port`; None for `auto`.

    Raises InputError for anything else.
    """
    if address == "auto":
        return None
    rest = address.removeprefix("ray://")
    host, _, port = rest.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536 or "/" in rest:
        raise InputError(f"--address: expected auto, HOST:PORT or ray://HOST:PORT, got '{address}'")
    return host.strip("[]"), int(port)


def probe_address(address: str, timeout_s: float = 5.0) -> None:
    """Raise VmaeError where nothing listens: Ray itself would try for minutes."""
    target = parse_address(address)
    if target is None:
        return
    try:
        with socket.create_connection(target, timeout=timeout_s):
            pass
    except OSError as e:
        raise VmaeError(
            f"--address: expected a Ray cluster at {address}, got: {e.strerror or e}; start one with "
            "`ray start --head --port 6379 --block` and see docs/clusters.md"
        ) from e


def _set_environment(address: str | None) -> None:
    """What must stand in the environment before Ray is imported."""
    defaults = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # On a machine that is busy with other work Ray needs longer than its own limit of half a minute.
        "RAY_raylet_start_wait_time_s": "180",
        # Printed to the standard output, where a command's JSON goes; work goes on in spite of either.
        "RAY_DEDUP_LOGS_SKIP_REGEX": "worker processes have been started|has been marked dead because",
        # Epochs of less than two seconds would otherwise wait to report.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
    }
    for key, value in defaults.items():
        os.environ.setdefault(key, value)
    # Ctrl-C must reach us as KeyboardInterrupt: Tune's own handler would swallow it and save for minutes.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    if address is not None and address != "auto":
        # Ray 2.5x and later start heads with a token and refuse a driver that says nothing of it.
        token = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
        known = bool(token) or (Path.home() / ".ray" / "auth_token").exists()
        os.environ.setdefault("RAY_AUTH_MODE", "token" if known else "disabled")


def shipped_code() -> dict[str, Any]:
    """The runtime environment that gives every worker this process's own `vmae`, installed there or not.

    With it goes what runs record of where the code came from, which no worker can see for itself: the command
    line and the commit.
    """
    import vmae
    from vmae.experiments.tracking.origin import COMMAND_ENV, COMMIT_ENV, own_commit

    known = {COMMAND_ENV: os.environ.get(COMMAND_ENV), COMMIT_ENV: own_commit()}
    return {
        "py_modules": [str(Path(vmae.__file__).resolve().parent)],
        "env_vars": {name: value for name, value in known.items() if value},
    }


@contextlib.contextmanager
def connected(address: str | None = None, *, cpus: float = 1.0) -> Iterator[None]:
    """Ray is there inside: one of this machine, or the cluster at `address`, with this code shipped to it.

    Where this process has joined Ray already (it runs in one of its workers) nothing is started or ended.

    Args:
        address: None, `auto`, `host:port` or `ray://host:port`.
        cpus: what one job asks for: a local Ray promises at least that many, or the job would wait for ever.

    Raises:
        InputError: an address of another form.
        VmaeError: no cluster there, or Ray did not start.
    """
    if address is not None:
        probe_address(address)
    _set_environment(address)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray
    for name in ("ray", "ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # On a full disk it would show how Tune's snapshot failed, which nothing reads: our own line says it.
    logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": False,
    }
    try:
        if address is None:
            ray.init(
                # Without an address Ray joins whatever cluster happens to run on this machine.
                address="local",
                include_dashboard=False,
                object_store_memory=200 * 2**20,
                num_cpus=max(os.cpu_count() or 1, int(-(-cpus // 1))),
                **quiet,
            )
        else:
            ray.init(address=address, runtime_env=shipped_code(), **quiet)
    except Exception as e:
        where = "on this machine" if address is None else f"at {address}"
        hint = ""
        if address is not None:
            hint = f" (RAY_AUTH_MODE is {os.environ.get('RAY_AUTH_MODE', 'not set')}; see docs/clusters.md)"
        raise VmaeError(f"expected Ray to start {where}, got: {str(e).splitlines()[0]}{hint}") from e
    try:
        yield
    finally:
        # A second Ctrl-C while we clean up would leave processes behind.
        with _ignoring_sigint():
            ray.shutdown()


class Ahead:
    """Ray starting in a thread, while the caller reads lists and makes the store.

    `with Ahead(...) as ahead: ...; ahead.wait()`; on leaving, Ray is ended. With `leave`, a Ray that nobody
    has waited for is left to end with this process: whoever refuses a command need not wait for its start.
    """

    def __init__(self, address: str | None, *, cpus: float, leave: bool = False) -> None:
        self.seconds = 0.0
        """What Ray's start took, its import included."""
        self._address, self._cpus = address, cpus
        self._leave = leave
        self._error: BaseException | None = None
        self._ready, self._end = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._hold, name="ray-start", daemon=True)

    def __enter__(self) -> Ahead:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with _ignoring_sigint():
            self._end.set()
            if not self._leave:
                self._thread.join()

    def wait(self) -> None:
        """Return when Ray is there; raises what `connected` raises."""
        self._leave = False
        self._ready.wait()
        if self._error is not None:
            raise self._error

    def _hold(self) -> None:
        # The thread stays: Ray's processes are killed when the thread that started them ends.
        start = time.monotonic()
        try:
            with connected(self._address, cpus=self._cpus):
                self.seconds = time.monotonic() - start
                self._ready.set()
                self._end.wait()
        except BaseException as e:
            self._error = e
            self._ready.set()


@contextlib.contextmanager
def _ignoring_sigint() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def wait_for_port(address: str, wait_s: float) -> None:
    """Return when something listens at `address`; after `wait_s` raises what `probe_address` raises."""
    end = time.monotonic() + wait_s
    while True:
        try:
            probe_address(address)
            return
        except InputError:
            raise
        except VmaeError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.5)


def wait_for_nodes(count: int, wait_s: float) -> int:
    """Return when the connected cluster has `count` nodes, or `wait_s` have passed; how many there are."""
    end = time.monotonic() + wait_s
    while len(alive_nodes()) < count and time.monotonic() < end:
        time.sleep(0.5)
    return len(alive_nodes())


def alive_nodes() -> list[dict[str, Any]]:
    """Ray's records of the nodes that are up."""
    import ray

    return sorted((n for n in ray.nodes() if n["Alive"]), key=lambda n: str(n["NodeID"]))


def node_facts(paths: Sequence[str], storage: str, mark: str) -> dict[str, Any]:
    """Runs on a node: its versions; whether it reads `paths` and `storage`'s mark, and writes beside it."""
    import sys
    from importlib.metadata import version

    from vmae import __version__

    facts: dict[str, Any] = {
        "host": socket.gethostname(),
        "python": ".".join(map(str, sys.version_info[:3])),
        "ray": version("ray"),
        "vmae": __version__,
    }
    try:
        import torch

        facts["torch"] = torch.__version__
        facts["gpus"] = torch.cuda.device_count() if torch.cuda.is_available() else 0
    except Exception as e:
        facts["torch"], facts["gpus"] = f"cannot be imported: {e}", 0
    unreadable = []
    for path in paths:
        try:
            with open(path, "rb") as f:
                f.read(1)
        except OSError as e:
            unreadable.append(f"{path} ({e.strerror})")
    facts["unreadable"] = unreadable
    facts["storage"] = _try_storage(storage, mark)
    return facts


def _try_storage(storage: str, mark: str) -> str:
    """Read the driver's mark and leave one: an empty string, or what went wrong."""
    from pyarrow.fs import FileType

    from vmae.experiments.storage import file_system

    try:
        fs, root = file_system(storage)
        if fs.get_file_info(f"{root}/.check-{mark}").type == FileType.NotFound:
            return "is another place than the driver's"
        with fs.open_output_stream(f"{root}/.check-{mark}-{uuid.uuid4().hex}") as f:
            f.write(b"ok")
    except Exception as e:
        return str(e).splitlines()[0] if str(e) else type(e).__name__
    return ""


def check_cluster(
    *,
    paths: Sequence[str] = (),
    storage: str = "",
    gpus_wanted: float = 0.0,
    timeout_s: float = _CHECK_TIMEOUT_S,
) -> list[NodeReport]:
    """Ask every node of the connected cluster what it is and what it sees; inside `connected`.

    Args:
        paths: files that every node must read (lists, a first video of each).
        storage: folder or URI (`s3://...`) that every node must read and write: the driver's own.
        gpus_wanted: GPUs that some job asks of one node. A node that offers Ray none is a problem only where
            no node offers enough: heads and CPU nodes may stand beside those with GPUs.

    Nodes that leave meanwhile are left out.
    """
    import ray
    from pyarrow.fs import FileSelector
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from vmae.experiments.storage import file_system

    with tempfile.TemporaryDirectory() as nowhere:
        place = storage or nowhere
        mark = uuid.uuid4().hex[:12]
        try:
            own_fs, own_root = file_system(place)
            own_fs.create_dir(own_root, recursive=True)
            with own_fs.open_output_stream(f"{own_root}/.check-{mark}") as f:
                f.write(b"driver")
        except Exception as e:
            raise InputError(f"expected storage that the driver can write, got {place}: {e}") from e
        own = node_facts(paths, place, mark)
        asked: list[tuple[dict[str, Any], Any]] = []
        for node in alive_nodes():
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(num_cpus=0, max_retries=0)(node_facts).options(scheduling_strategy=strategy)
            asked.append((node, task.remote(list(paths), place, mark)))
        answers: list[tuple[dict[str, Any], dict[str, Any] | str]] = []
        for node, promise in asked:
            try:
                answers.append((node, ray.get(promise, timeout=timeout_s)))
            except Exception as e:
                text = str(e).strip().splitlines()[-1][:160] if str(e).strip() else type(e).__name__
                if isinstance(e, TimeoutError):
                    text = f"no answer in {timeout_s:g} s (a firewall? docs/clusters.md names the ports)"
                answers.append((node, text))
        # Ray finds out some fifteen seconds later that a node is gone: one that left is no node to be fit.
        there = {n["NodeID"] for n in alive_nodes()}
        answers = [(n, a) for n, a in answers if isinstance(a, dict) or n["NodeID"] in there]
        enough = any(_offered(node) >= gpus_wanted for node, _ in answers)
        reports = []
        for node, answer in answers:
            name = node["NodeID"][:8]
            if isinstance(answer, str):
                host = str(node["NodeManagerHostname"])
                reports.append(NodeReport(node=name, host=host, problems={"python": answer}))
                continue
            wanted = 0.0 if enough and not _offered(node) else gpus_wanted
            reports.append(_judge(name, answer, own, paths, bool(storage), wanted))
        with contextlib.suppress(Exception):
            for left in own_fs.get_file_info(FileSelector(own_root)):
                if left.base_name.startswith(f".check-{mark}"):
                    own_fs.delete_file(left.path)
    return reports


def require_fit(
    *, paths: Sequence[str] = (), storage: str = "", gpus_wanted: float = 0.0
) -> list[NodeReport]:
    """`check_cluster`; raises ClusterUnfit where a node cannot do the work."""
    reports = check_cluster(paths=paths, storage=storage, gpus_wanted=gpus_wanted)
    if any(r.problems for r in reports):
        raise ClusterUnfit(reports)
    return reports


def _offered(node: dict[str, Any]) -> float:
    return float(node["Resources"].get("GPU", 0.0))


def _judge(
    node: str,
    facts: dict[str, Any],
    own: dict[str, Any],
    paths: Sequence[str],
    stored: bool,
    gpus_wanted: float,
) -> NodeReport:
    found, problems = {}, {}
    for name in ("python", "torch", "ray", "vmae"):
        found[name] = facts[name]
        here, there = own[name], facts[name]
        if name == "torch":
            # A GPU build and a CPU build of one version differ after the plus sign, and may.
            here, there = here.partition("+")[0], there.partition("+")[0]
        if here != there:
            problems[name] = f"expected {own[name]} as here, got {facts[name]}"
    found["GPUs"] = str(facts["gpus"])
    if gpus_wanted > facts["gpus"]:
        problems["GPUs"] = f"expected {gpus_wanted:g} per job, got {facts['gpus']}"
    found["data"] = f"{len(paths) - len(facts['unreadable'])}/{len(paths)}" if paths else "-"
    if facts["unreadable"]:
        problems["data"] = f"cannot read {'; '.join(facts['unreadable'][:3])}"
    found["storage"] = "-" if not stored else ("fails" if facts["storage"] else "ok")
    if stored and facts["storage"]:
        problems["storage"] = facts["storage"]
    return NodeReport(node=node, host=facts["host"], found=found, problems=problems)


def files_to_see(train_csv: str, val_csv: str, data_root: str = "") -> list[str]:
    """The lists and the first video of each: what every node must be able to read."""
    from vmae.core.video.annotations import read_annotations

    files = []
    for csv in (train_csv, val_csv):
        if csv:
            samples = read_annotations(csv, data_root or None)
            files += [str(Path(csv).absolute()), str(Path(samples[0].path).absolute())]
    return files


def is_uri(place: str) -> bool:
    """Whether a place is a URI (`s3://bucket/x`) and not a path."""
    return len(urlparse(place).scheme) > 1
