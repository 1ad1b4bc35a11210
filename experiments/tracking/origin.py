"""What made a run: versions, host, command line and commit."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import vmae
from vmae.experiments.tracking import tags

COMMAND_ENV = "VMAE_COMMAND"
COMMIT_ENV = "VMAE_COMMIT"
"""What says a run's command line and commit where its process cannot know them (a worker's, an image's)."""


def environment_tags() -> dict[str, str]:
    """Tags that say what made a run: versions, host, command line and git commit (where there is one)."""
    from importlib.metadata import version

    own = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    found = {
        tags.VERSION: vmae.__version__,
        tags.TORCH: version("torch"),
        tags.PYTHON: sys.version.split()[0],
        tags.HOST: os.uname().nodename,
        # A Ray worker's own arguments say nothing: the command line that started it is handed down.
        tags.COMMAND: os.environ.get(COMMAND_ENV, own)[:4000],
        tags.USER: os.environ.get("USER", "unknown"),
    }
    commit = own_commit()
    if commit:
        found[tags.COMMIT] = commit
    return found


@functools.cache
def own_commit() -> str | None:
    """The commit of this code: the environment's word (of a worker, an image), or else git; None: unknown."""
    if said := os.environ.get(COMMIT_ENV):
        return said
    root = Path(vmae.__file__).resolve().parents[1]
    try:
        result = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
    except OSError:
        return None  # no git here
    return result.stdout.strip() if result.returncode == 0 else None
