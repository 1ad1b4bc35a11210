"""`vmae ui`: MLflow's own web pages on the store."""

from __future__ import annotations

from pathlib import Path

import click

from vmae.cli.options import runs_dir_option


@click.command()
@click.option("--port", type=int, default=5000, show_default=True, help="Port to listen on.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@runs_dir_option
def ui(port: int, host: str, runs_dir: Path | None) -> None:
    """Open MLflow's own web UI on the runs (Ctrl-C ends it)."""
    import os
    import signal
    import subprocess
    import sys

    from vmae.cli.ports import check_port
    from vmae.experiments.signals import ignored, interrupts
    from vmae.experiments.tracking import create_store, store_at
    from vmae.experiments.tracking.client import as_url

    store = store_at(runs_dir)
    if store.sqlite_path is None:
        click.echo(f"the store is a tracking server, which has its own pages: {store.uri}")
        return
    check_port(host, port)
    create_store(store)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", as_url(store.uri)]
    command += ["--host", host, "--port", str(port), "--workers", "1"]
    # Without its job workers the server is two processes instead of ten.
    env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    click.echo(f"MLflow on {store.uri}: http://{host}:{port}  (ready in about ten seconds; Ctrl-C ends it)")
    interrupts()
    process = None
    try:
        process = subprocess.Popen(command, env=env, start_new_session=True)
        raise SystemExit(process.wait())
    except KeyboardInterrupt:
        pass
    finally:
        with ignored():
            if process is not None and process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
