"""Starting Streamlit on the app, in this process."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

_INTERNET = (socket.AF_INET, socket.AF_INET6)
APP = Path(__file__).with_name("app.py")

# Light and dark follow the browser; the colours are the viewer's own.
_THEMES = {
    "theme.light.primaryColor": "#1f6feb",
    "theme.dark.primaryColor": "#58a6ff",
    "theme.dark.backgroundColor": "#0f1318",
    "theme.dark.secondaryBackgroundColor": "#1a2028",
    "theme.baseRadius": "6px",
}


def own_names(host: str) -> list[str]:
    """The hosts that a browser may ask for when the server listens on `host`, without ports, sorted.

    Any other name that leads here is of a page that had its own name point to this machine (DNS rebinding).
    """
    names = {host}
    if host in ("", "0.0.0.0", "::"):
        import psutil

        cards = psutil.net_if_addrs().values()
        names = {a.address.partition("%")[0] for card in cards for a in card if a.family in _INTERNET}
        names |= {socket.gethostname(), "127.0.0.1"}
    if names & {"localhost", "127.0.0.1", "::1"}:
        names |= {"localhost", "127.0.0.1", "::1"}
    return sorted(n.lower() for n in names)


def options(host: str, port: int, upload_mb: int) -> dict[str, str | int | bool]:
    """Streamlit's options: no calls to the outside, no traces of errors in the page, no watching of files."""
    return {
        "server.address": host,
        "server.port": port,
        "server.headless": True,
        "server.fileWatcherType": "none",
        "server.runOnSave": False,
        "server.maxUploadSize": upload_mb,
        "server.enableXsrfProtection": True,
        "server.enableCORS": True,
        "browser.gatherUsageStats": False,
        "browser.serverAddress": host,
        "client.toolbarMode": "viewer",
        "client.showErrorDetails": "type",
        "client.showSidebarNavigation": False,
        "logger.level": "warning",
        # Rich writes tracebacks of pages to standard output, which is closed (`serve`).
        "logger.enableRich": False,
        "logger.hideWelcomeMessage": True,
        **_THEMES,
    }


def arguments(host: str, port: int, upload_mb: int, allowed: Sequence[str] = ()) -> list[str]:
    """The command line of `streamlit run` with these options; `allowed` are more names of this machine."""
    given = [
        f"--{k}={str(v).lower() if isinstance(v, bool) else v}"
        for k, v in options(host, port, upload_mb).items()
    ]
    given += [f"--server.allowedHosts={name}" for name in (*own_names(host), *allowed)]
    return ["run", str(APP), *given]


def serve(*, host: str, port: int, upload_mb: int, allowed: Sequence[str] = ()) -> None:
    """Serve until Ctrl-C, under the names of this machine and `allowed`.

    Heavy imports start at once, so that the first page does not wait for them.
    """
    from streamlit import net_util
    from streamlit.web import cli

    # A page of another origin would make Streamlit ask a service on the internet for this machine's address.
    net_util._external_ip = "127.0.0.1"
    # Its farewell would fail where nobody reads any more, and the server stay.
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    threading.Thread(target=_warm_up, name="warm-up", daemon=True).start()
    cli.main(arguments(host, port, upload_mb, allowed), prog_name="streamlit", standalone_mode=False)


def _warm_up() -> None:
    import contextlib
    import gc

    with contextlib.suppress(Exception):
        # Whatever fails here fails again, and is shown, on the page that needs it.
        import av  # noqa: F401
        import cv2  # noqa: F401
        import matplotlib.colors  # noqa: F401
        import pandas  # noqa: F401
        from skimage.metrics import structural_similarity  # noqa: F401

        from vmae.dashboard.views import reconstruct as page_reconstruct  # noqa: F401
    # Streamlit collects garbage after every run of a page. Looking through torch's and pandas' objects each
    # time took 210 of the 280 ms from a slider to new pictures: they stay, so the collector may skip them.
    gc.collect()
    gc.freeze()
