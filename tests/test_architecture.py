"""Imports point one way, heavy libraries are imported late, and the package list is complete."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = {
    "kernels": {"kernels"},
    "core": {"core", "kernels"},
    "experiments": {"experiments", "core", "kernels"},
    "cli": {"cli", "experiments", "core", "kernels", "dashboard"},
    "dashboard": {"dashboard", "experiments", "core", "kernels"},
}
HEAVY = {"ray", "mlflow", "streamlit", "click", "decord"}


def _imports(path: Path, module_level_only: bool) -> list[str]:
    tree = ast.parse(path.read_text())
    names: list[str] = []
    nodes = ast.walk(tree)
    if module_level_only:
        nodes = iter([n for stmt in tree.body for n in ([stmt] if not _is_def(stmt) else [])])
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module] + [f"{node.module}.{a.name}" for a in node.names]
    return names


def _is_def(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef | ast.If)


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_one_way(layer: str) -> None:
    for path in (ROOT / layer).rglob("*.py"):
        for name in _imports(path, module_level_only=False):
            if name.startswith("vmae."):
                target = name.split(".")[1]
                if target in LAYERS:
                    assert target in LAYERS[layer], f"{path} imports {name}"


@pytest.mark.parametrize("layer", ["kernels", "core"])
def test_core_and_kernels_do_not_import_heavy_libraries(layer: str) -> None:
    for path in (ROOT / layer).rglob("*.py"):
        heavy = {n.split(".")[0] for n in _imports(path, module_level_only=True)} & HEAVY
        if layer == "kernels" and path.name in {"gpu_suite.py", "bench.py"}:
            heavy -= {"click"}
        assert not heavy, f"{path} imports {heavy} at module level"


def test_core_reaches_kernels_only_through_its_public_functions() -> None:
    for path in (ROOT / "core").rglob("*.py"):
        for name in _imports(path, module_level_only=False):
            assert not name.startswith("vmae.kernels.") or name.count(".") == 2, f"{path} imports {name}"


def test_every_package_is_listed() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {"vmae"}
    for layer in LAYERS:
        for init in (ROOT / layer).rglob("__init__.py"):
            found.add("vmae." + ".".join(init.parent.relative_to(ROOT).parts))
    assert listed == found
