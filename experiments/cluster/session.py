"""Ray, started here or joined elsewhere, with this process's code on every node."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vmae.core.errors import InputError, VmaeError
from vmae.core.sockets import MOST_BYTES, socket_folder
from vmae.experiments.background import leave
from vmae.experiments.cluster.address import probe_address
from vmae.experiments.cluster.token import ask_for_token, known_token
from vmae.experiments.signals import ignored, interrupts
from vmae.experiments.tracking.origin import COMMAND_ENV, COMMIT_ENV, own_commit

_SOCKET = "/session_2026-01-01_00-00-00_123456_1234567/sockets/plasma_store.1"
"""The longest path of a socket below Ray's folder."""


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
    if address is None:
        ask_for_token()
    elif address != "auto":
        # Ray 2.5x and later start heads with a token and refuse a driver that says nothing of it.
        os.environ.setdefault("RAY_AUTH_MODE", "token" if known_token() else "disabled")


def shipped_code() -> dict[str, Any]:
    """The runtime environment that gives every worker this process's own `vmae`, installed there or not.

    With it goes what runs record of where the code came from, which no worker can see for itself: the command
    line and the commit.
    """
    import vmae

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
                _temp_dir=_folder(),
                **quiet,
            )
        else:
            ray.init(address=address, runtime_env=shipped_code(), **quiet)
    except InputError:
        raise
    except Exception as e:
        where = "on this machine" if address is None else f"at {address}"
        hint = ""
        if address is not None:
            hint = f" (RAY_AUTH_MODE is {os.environ.get('RAY_AUTH_MODE', 'not set')}; see docs/clusters.md)"
        raise VmaeError(f"expected Ray to start {where}, got: {str(e).splitlines()[0]}{hint}") from e
    try:
        # Ray answers SIGTERM with its stack, and leaves processes.
        interrupts()
        yield
    finally:
        # A second Ctrl-C while we clean up would leave processes behind.
        with ignored():
            ray.shutdown()


def _folder() -> str:
    """Where a Ray of this machine's own has its sessions: below TMPDIR, or where its sockets' paths fit."""
    given = os.environ.get("RAY_TMPDIR")
    if given is None:
        return os.path.join(socket_folder(f"/ray{_SOCKET}", "Ray"), "ray")
    folder = os.path.join(given, "ray")
    if len(os.fsencode(folder + _SOCKET)) > MOST_BYTES:
        raise InputError(
            f"RAY_TMPDIR: expected a folder of at most {MOST_BYTES - len(_SOCKET) - 4} bytes, as Ray has its "
            f"sockets below it, got {given}: set a shorter one"
        )
    return folder


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
        with ignored():
            self._end.set()
            if self._leave:
                leave(self._thread)
            else:
                self._thread.join()

    def wait(self) -> None:
        """Return when Ray is there; raises what `connected` raises."""
        self._leave = False
        self._ready.wait()
        interrupts()
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
