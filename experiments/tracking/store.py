"""Where runs are recorded, and what a run sends there."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from vmae.core.errors import InputError
from vmae.experiments.layout import RunsDir
from vmae.experiments.storage import Storage, open_storage, scratch

SQLITE = "sqlite:///"
"""What the URI of a database file begins with; the path follows as it is (`client.as_url` escapes it)."""


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
        return Path(self.uri.removeprefix(SQLITE)) if self.uri.startswith(SQLITE) else None


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
    return replace(local_store(directory), uri=tracking) if tracking else local_store(directory)


def local_store(directory: Path) -> Store:
    """The store in SQLite in a run directory, whatever `$MLFLOW_TRACKING_URI` says."""
    return Store(uri=f"{SQLITE}{RunsDir(directory).database}", runs_dir=directory)
