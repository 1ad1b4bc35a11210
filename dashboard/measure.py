"""`python -m vmae.dashboard.measure RUNS`: how fast the dashboard feels, measured in a real browser.

Starts the dashboard on the run directory and a headless Chromium (playwright, of the `test` extra), and
prints: the time from opening the page to its first pictures, for the first viewer of a server and for later
ones; from letting go of the ratio slider to new pictures on the screen; and what 200 further interactions
add to the server's memory.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vmae.core.errors import InputError

READY = '.viewer[data-ready="true"]'
_WATCH = """() => {
  const roots = [...document.querySelectorAll('*')].map((e) => e.shadowRoot).filter((r) => r);
  const view = roots.map((r) => r.querySelector('.viewer')).find((v) => v);
  window.took = [];
  let start = 0;
  document.addEventListener('pointerup', () => { start ||= performance.now(); }, true);
  const seen = () => { if (start) window.took.push(performance.now() - start); start = 0; };
  new MutationObserver(seen).observe(view, { attributes: true, attributeFilter: ['data-version'] });
}"""


@contextmanager
def served(runs_dir: str) -> Iterator[tuple[str, int]]:
    """A dashboard of its own on the run directory: its address and process id."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "vmae.dashboard", "--runs-dir", runs_dir, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=5)
                break
            except OSError:
                if process.poll() is not None:
                    raise InputError(f"expected a dashboard on {runs_dir}; it ended at once") from None
                time.sleep(0.02)
        yield f"http://127.0.0.1:{port}/", process.pid
    finally:
        process.terminate()
        process.wait()


def opening(browser: Any, url: str) -> tuple[float, Any]:
    """Seconds from opening the page, nothing of it cached, to its first pictures; and the page."""
    page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
    page.set_default_timeout(60_000)
    start = time.perf_counter()
    page.goto(url)
    page.wait_for_selector(READY)
    return time.perf_counter() - start, page


def slider(page: Any, moves: int) -> list[float]:
    """Milliseconds from letting go of the ratio slider to new pictures, `moves` times to other places."""
    page.evaluate(_WATCH)
    thumb = page.get_by_role("slider", name="Mask ratio").locator("xpath=..")
    track = page.locator(".stSlider").first.bounding_box()
    for i in range(moves):
        seen = page.evaluate("window.took.length")
        box = thumb.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.mouse.down()
        place = 0.3 + 0.55 * ((i * 7) % 16) / 16
        page.mouse.move(track["x"] + track["width"] * place, box["y"] + box["height"] / 2, steps=4)
        page.mouse.up()
        page.wait_for_function(f"window.took.length > {seen}")
        page.wait_for_timeout(400)  # what the move set off has ended before the next is timed
    took: list[float] = page.evaluate("window.took")
    return took


def growth(page: Any, pid: int, *, before: int, interactions: int) -> float:
    """MiB that the server's memory grows by over some interactions, after `before` that fill its caches."""
    import psutil

    process = psutil.Process(pid)
    button = page.get_by_role("button", name="Another mask")

    def interact(times: int) -> int:
        for _ in range(times):
            version = page.locator(".viewer").get_attribute("data-version")
            button.click()
            page.wait_for_selector(f'{READY}:not([data-version="{version}"])')
        rss: int = process.memory_info().rss
        return rss

    return -(interact(before) - interact(interactions)) / 2**20


def main() -> None:
    """See the module."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise InputError('expected playwright, which is not installed: pip install "vmae[test]"') from None
    parser = argparse.ArgumentParser(prog="python -m vmae.dashboard.measure", description=__doc__)
    parser.add_argument("runs_dir", nargs="?", default="runs")
    parser.add_argument("--moves", type=int, default=20)
    parser.add_argument("--interactions", type=int, default=200)
    given = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        raise InputError("expected a Chromium on the PATH, got none: apt-get install chromium")
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with served(given.runs_dir) as (url, pid), sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        first, page = opening(browser, url)
        page.context.close()
        later = []
        for _ in range(3):
            seconds, page = opening(browser, url)
            later.append(seconds)
            page.context.close()
        _, page = opening(browser, url)
        print(f"opening: {first:.2f} s in a new server, then {statistics.median(later):.2f} s")
        took = slider(page, given.moves)
        print(f"slider to pictures: median {statistics.median(took):.0f} ms, slowest {max(took):.0f} ms")
        if given.interactions:
            grown = growth(page, pid, before=100, interactions=given.interactions)
            print(f"memory: {grown:+.1f} MiB over {given.interactions} interactions")
        browser.close()


if __name__ == "__main__":
    from vmae.core.errors import VmaeError

    try:
        main()
    except VmaeError as e:
        sys.exit(str(e))
