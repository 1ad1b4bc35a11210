"""What `vmae dashboard` was started with, handed to the Streamlit script through one environment variable."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from vmae.experiments.tracking import Store, default_runs_dir, store_at

VARIABLE = "VMAE_DASHBOARD"
DEFAULT_UPLOAD_MB = 64


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Paths come from the command line only: nothing a browser sends becomes a path."""

    runs_dir: str = ""
    """The project's run directory; empty: `$VMAE_RUNS` or `./runs`."""
    checkpoints: tuple[str, ...] = ()
    """Checkpoint files, and folders with some, to offer besides those of the runs."""
    data: tuple[str, ...] = ()
    """csv files to offer besides the runs' validation lists."""
    data_root: str = ""
    """Folder that relative paths in `data` start from; empty: the csv's own."""
    annotation_format: str = "auto"
    """Of the lines of `data`."""
    mlflow_url: str = ""
    """Where `vmae ui` serves MLflow's own interface, for links; empty: no links."""
    upload_mb: int = DEFAULT_UPLOAD_MB
    """Largest video that may be uploaded, MiB."""

    @property
    def store(self) -> Store:
        """The store of the run directory."""
        return store_at(self.runs_dir or default_runs_dir())

    def to_env(self) -> str:
        """As the environment variable holds it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_env(cls) -> Settings:
        """The settings of this process; all defaults where the variable is absent."""
        values = json.loads(os.environ.get(VARIABLE) or "{}")
        for name in ("checkpoints", "data"):
            values[name] = tuple(values.get(name, ()))
        return cls(**values)

    def resolve(self, path: str) -> Path:
        """A path from a run's parameters: as it is, or beside the run directory where that is what exists."""
        found = Path(path)
        if not found.is_absolute() and not found.exists():
            beside = Path(self.runs_dir or default_runs_dir()).resolve().parent / found
            if beside.exists():
                return beside
        return found
