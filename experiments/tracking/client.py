"""MLflow's client, and the experiment that holds every run."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlparse

from vmae.core.errors import VmaeError
from vmae.core.locks import locked
from vmae.experiments.layout import RunsDir
from vmae.experiments.tracking import tags
from vmae.experiments.tracking.store import SQLITE, Store

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

EXPERIMENT = "vmae"


def create_store(store: Store) -> None:
    """Make the database and the experiment where they are missing; safe to call from several processes.

    Raises VmaeError where the tracking server does not answer, or refuses.
    """
    store.runs_dir.mkdir(parents=True, exist_ok=True)
    with reachable(store) as client, locked(store.layout.making):
        experiment_id(store, client)


@contextlib.contextmanager
def reachable(store: Store) -> Iterator[MlflowClient]:
    """A client of the store; VmaeError names the store where it cannot be used or does not answer inside."""
    try:
        client = mlflow_client(store.uri)
    except Exception as e:
        # A scheme that MLflow does not know, a damaged file: each has an error of its own.
        raise VmaeError(f"expected a store of runs at {store.uri}, got: {first_line(e)}") from e
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
            f"expected the tracking server {store.uri} to answer, got: {first_line(e)}{hint}"
        ) from e


def quieten_mlflow() -> None:
    """MLflow without its own bars, addresses and telemetry, and soon told that a store is away."""
    # A store that is away must answer soon: the spool is what waits, not the caller.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # A server's client would print where to see each run that ends, into what may be JSON.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")


@functools.lru_cache(maxsize=8)
def mlflow_client(uri: str) -> MlflowClient:
    """A client of the store, its database migrated.

    Making a client of a fresh SQLite file migrates it, and two processes that do so at once corrupt it: so
    a client is made under a file lock.
    """
    quieten_mlflow()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow.tracking import MlflowClient
    for name in ("alembic", "mlflow", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if not uri.startswith(SQLITE):
        return MlflowClient(uri)
    folder = Path(uri.removeprefix(SQLITE)).parent
    folder.mkdir(parents=True, exist_ok=True)
    with locked(RunsDir(folder).making):
        return MlflowClient(as_url(uri))


def as_url(uri: str) -> str:
    """A store's URI as MLflow reads it: of an SQLite file the path has its odd characters escaped.

    SQLAlchemy unescapes a path from 2.1 on; before, it cuts it at a question mark and leaves the rest as it
    is, but SQLite unescapes a name that begins with `file:`. The driver is named because MLflow would make
    the folder of a bare `sqlite:` URI, escapes and all.
    """
    path = uri.removeprefix(SQLITE)
    if path == uri or quote(path) == path:
        return uri
    from sqlalchemy.engine import make_url

    escaped = f"sqlite+pysqlite:///{quote(path)}"
    if make_url(escaped).database == path:
        return escaped
    return f"sqlite+pysqlite:///file:{quote(path)}?uri=true"


def experiment_id(store: Store, client: MlflowClient) -> str:
    """The id of the experiment, which is made where it is missing."""
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    # MLflow unescapes a plain path too.
    location = str(store.layout.artifacts).replace("%", "%25") if store.sqlite_path else None
    # Without this tag MLflow's own UI opens in its GenAI mode.
    kind = {"mlflow.experimentKind": "custom_model_development"}
    return str(client.create_experiment(EXPERIMENT, artifact_location=location, tags=kind))


def find_run(client: MlflowClient, experiment_id: str, key: str) -> str | None:
    """The id of the run with this key, or None; the key may have any characters."""
    # MLflow's filters have no escapes, but two kinds of quotes; with both in a key, `_` stands for one.
    mark = '"' if "'" in key else "'"
    op, asked = ("LIKE", key.replace('"', "_")) if "'" in key and '"' in key else ("=", key)
    found = client.search_runs([experiment_id], f"tags.`{tags.KEY}` {op} {mark}{asked}{mark}")
    return next((str(r.info.run_id) for r in found if r.data.tags.get(tags.KEY) == key), None)


def http_status(error: Exception) -> int | None:
    """What a server answered, or the code that MLflow gives to its own refusals; None without an answer."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return int(error.get_http_status_code())
    return getattr(getattr(error, "response", None), "status_code", None)


def first_line(error: Exception) -> str:
    """What an error says, in one line of at most 200 characters."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
