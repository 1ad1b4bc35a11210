"""`python -m vmae.dashboard`: the dashboard's server, as `vmae dashboard` starts it with checked options."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from vmae.dashboard.server import serve
from vmae.dashboard.settings import DEFAULT_UPLOAD_MB, VARIABLE, Settings


def main(argv: Sequence[str] | None = None) -> None:
    """Hand the settings to the Streamlit script through its environment variable, and serve until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m vmae.dashboard", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8501)
    parser.add_argument("--allow-host", action="append", default=[])
    parser.add_argument("--runs-dir", default="")
    parser.add_argument("--checkpoint", dest="checkpoints", action="append", default=[])
    parser.add_argument("--data", action="append", default=[])
    parser.add_argument("--data-root", default="")
    parser.add_argument("--format", dest="annotation_format", default="auto")
    parser.add_argument("--mlflow-url", default="")
    parser.add_argument("--upload-mb", type=int, default=DEFAULT_UPLOAD_MB)
    given = vars(parser.parse_args(argv))
    host, port, allowed = given.pop("host"), given.pop("port"), given.pop("allow_host")
    for several in ("checkpoints", "data"):
        given[several] = tuple(given[several])
    settings = Settings(**given)
    os.environ[VARIABLE] = settings.to_env()
    serve(host=host, port=port, upload_mb=settings.upload_mb, allowed=allowed)


if __name__ == "__main__":
    main()
