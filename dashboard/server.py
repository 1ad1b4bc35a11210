"""Starting Streamlit on the app, in this process."""

from __future__ import annotations

import threading
from pathlib import Path

APP = Path(__file__).with_name("app.py")

# Light and dark follow the browser; the colours are the viewer's own.
_THEMES = {
    "theme.light.primaryColor": "#1f6feb",
    "theme.dark.primaryColor": "#58a6ff",
    "theme.dark.backgroundColor": "#0f1318",
    "theme.dark.secondaryBackgroundColor": "#1a2028",
    "theme.baseRadius": "6px",
}


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
        "logger.hideWelcomeMessage": True,
        **_THEMES,
    }


def arguments(host: str, port: int, upload_mb: int) -> list[str]:
    """The command line of `streamlit run` with these options."""
    given = [
        f"--{k}={str(v).lower() if isinstance(v, bool) else v}"
        for k, v in options(host, port, upload_mb).items()
    ]
    return ["run", str(APP), *given]


def serve(*, host: str, port: int, upload_mb: int) -> None:
    """Serve until Ctrl-C. Heavy imports start at once, so that the first page does not wait for them."""
    from streamlit.web import cli

    threading.Thread(target=_warm_up, name="warm-up", daemon=True).start()
    cli.main(arguments(host, port, upload_mb), prog_name="streamlit", standalone_mode=False)


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
