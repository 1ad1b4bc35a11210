"""The notebooks of docs/notebooks run from their first cell to their last."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))


def cells(path: Path) -> list[str]:
    """The source of the code cells."""
    return ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]


def as_python(source: str) -> str:
    """A cell as IPython reads it: `!command` is the shell's, with the names in braces filled in."""
    return re.sub(r"^(\s*)!(.*)$", lambda m: f"{m[1]}_shell({m[2]!r})", source, flags=re.M)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_kept_without_outputs_and_of_the_format(path: Path) -> None:
    notebook = json.loads(path.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [c["id"] for c in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in notebook["cells"]:
        assert cell["cell_type"] in ("markdown", "code") and isinstance(cell["source"], list)
        assert not cell.get("outputs") and cell.get("execution_count") is None
    for source in cells(path):
        ast.parse(as_python(source))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("VMAE_RUNS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    names: dict[str, Any] = {}

    def shell(line: str) -> None:
        for name in re.findall(r"\{(\w+)\}", line):
            line = line.replace(f"{{{name}}}", str(names[name]))
        done = subprocess.run(line, shell=True, text=True, capture_output=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"

    names["_shell"] = shell
    for number, source in enumerate(cells(path)):
        exec(compile(as_python(source), f"{path.name}[{number}]", "exec"), names)
    if path.stem == "own_videos":
        assert len(names["answers"]) > 20
    else:
        assert (tmp_path / "reconstruction.png").stat().st_size > 1000 and names["x"].ndim == 2
