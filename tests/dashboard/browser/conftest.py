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
import torch

from vmae.core.checkpoint import save_model
from vmae.core.videomae import VideoMAE, VideoMAEConfig
from vmae.dashboard.sources import short_id

ROOT = Path(__file__).resolve().parents[3]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@dataclass(frozen=True)
class Served:
    """A running dashboard. `tiny` is the address with a checkpoint of the demo's size, given as a file."""

    url: str
    pid: int
    tiny: str


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(scope="session")
def served(mini: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`vmae dashboard` on the miniature store."""
    port = free_port()
    log = tmp_path_factory.mktemp("served") / "log.txt"
    torch.manual_seed(0)
    model = save_model(log.parent / "tiny.safetensors", VideoMAE(VideoMAEConfig.from_size("tiny")))
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
    command += ["--checkpoint", str(model)]
    env = {**os.environ, "MLFLOW_TRACKING_URI": "", "TMPDIR": str(log.parent)}
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{url}_stcore/health", timeout=1)
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
        yield Served(url, process.pid, f"{url}?checkpoint={short_id(str(model))}")
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The system's Chromium, headless."""
    if CHROMIUM is None:
        pytest.skip("needs a Chromium on the PATH (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        found = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser: Any, served: Served) -> Iterator[Any]:
    """A page of its own; fails the test on an error in the browser or a call to the outside."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    opened = context.new_page()
    opened.set_default_timeout(20_000)
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
