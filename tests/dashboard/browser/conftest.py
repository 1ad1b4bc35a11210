"""A served dashboard and a real browser; skipped with the reason where there is no browser."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


# A busy machine is slow, not broken: every wait is for a condition, and this long at most.
PATIENCE_S = 120


@dataclass(frozen=True)
class Served:
    """A running dashboard."""

    url: str
    pid: int


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(scope="session")
def served(mini: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`vmae dashboard` on the miniature store."""
    port = free_port()
    log = tmp_path_factory.mktemp("served") / "log.txt"
    command = [
        sys.executable,
        "-m",
        "vmae",
        "dashboard",
        "--runs-dir",
        str(mini.runs_dir),
        "--port",
        str(port),
    ]
    env = {**os.environ, "MLFLOW_TRACKING_URI": "", "TMPDIR": str(log.parent)}
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}/"
    try:
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                urllib.request.urlopen(f"{url}_stcore/health", timeout=5)
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.1)
        yield Served(url, process.pid)
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The system's Chromium, headless."""
    if CHROMIUM is None:
        pytest.skip("needs a Chromium on the PATH (apt-get install chromium)")
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as p:
        # Containers have a small /dev/shm, and root has no sandbox.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        try:
            found = p.chromium.launch(executable_path=CHROMIUM, args=arguments, timeout=1000 * PATIENCE_S)
        except Error as e:
            pytest.skip(f"{CHROMIUM} does not start: {str(e).splitlines()[0]}")
        yield found
        found.close()


@pytest.fixture
def page(browser: Any, served: Served) -> Iterator[Any]:
    """A page of its own; fails the test on an error in the browser or a call to the outside."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    opened = context.new_page()
    opened.set_default_timeout(1000 * PATIENCE_S)
    errors: list[str] = []
    hosts: set[str] = set()
    opened.on("pageerror", lambda e: errors.append(str(e)))
    opened.on("request", lambda r: hosts.add(r.url.split("/")[2]) if r.url.startswith("http") else None)
    opened.goto(served.url)
    opened.wait_for_selector('.viewer[data-ready="true"]')
    yield opened
    context.close()
    assert not errors
    assert hosts == {served.url.split("/")[2]}
