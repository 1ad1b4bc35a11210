"""The house: imports point one way and in no circle, names with an underscore stay at home, nothing is long.

A string that is a module's name (for `importlib.import_module`, `python -m`, the verbs' table) or holds code
with imports (for `python -c`) counts as an import; a module that a sentence mentions must exist. `ALLOWED`
lists what still offends, with what will end it; an entry that offends no longer fails.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = {
    "kernels": {"kernels"},
    "core": {"core", "kernels"},
    "experiments": {"experiments", "core", "kernels"},
    "cli": {"cli", "experiments", "core", "kernels"},
    "dashboard": {"dashboard", "experiments", "core", "kernels"},
}
HEAVY = {"ray", "mlflow", "streamlit", "click", "decord"}
PROGRAMS = {"vmae.dashboard"}
"""Packages with a `__main__`: to start one in a process of its own is no import of it."""
LONGEST_FUNCTION = {"experiments": 80}
LONGEST_FUNCTION_ELSEWHERE = 120
LONGEST_FILE = 500

ALLOWED: dict[str, dict[str, str]] = {
    "layer": {},
    "circle": {},
    "private": {},
    "long function": {},
    "long file": {},
}

_NAME = rf"vmae\.(?:{'|'.join(LAYERS)})(?:\.\w+)*"
_MENTIONED = re.compile(rf"\b{_NAME}")
_WHOLE = re.compile(rf"({_NAME})[.:]?(\w*)")
_CODE = re.compile(rf"\b(?:import|from) ({_NAME})(?: import ([\w, ]+))?")


class House:
    """The project's modules below a folder, and what offends against the rules there."""

    def __init__(self, root: Path) -> None:
        self.paths: dict[str, Path] = {}
        """Every module's file by its dotted name; a package stands for its `__init__`."""
        inside = (p for layer in LAYERS for p in (root / layer).rglob("*.py"))
        for path in [*(root / "vmae").glob("*.py"), *inside]:
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts if parts[0] == "vmae" else ("vmae", *parts))
            self.paths[name.removesuffix(".__init__")] = path
        self.trees = {m: ast.parse(p.read_text()) for m, p in self.paths.items()}
        self.places = {m: str(p.relative_to(root)) for m, p in self.paths.items()}
        self.allowed_circles: set[str] = set()

    def split(self, name: str) -> tuple[str, str]:
        """(module, what of it): `vmae.core.errors.InputError` is something that a module has."""
        module = name
        while module and module not in self.paths:
            module = module.rpartition(".")[0]
        return module, name[len(module) + 1 :] if module else name

    @cached_property
    def imports(self) -> dict[str, list[str]]:
        """Dotted names of everything of the project that each module imports, late and for typing too."""
        return {m: [n for n in self._imports(m) if n.partition(".")[0] == "vmae"] for m in self.paths}

    def _imports(self, module: str) -> Iterator[str]:
        for node in ast.walk(self.trees[module]):
            if isinstance(node, ast.Import):
                yield from (a.name for a in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{self.places[module]}:{node.lineno}: a relative import"
                yield from (f"{node.module}.{a.name}" for a in node.names)
        for text in self.strings(module):
            if text in PROGRAMS and f"{text}.__main__" in self.paths:
                continue
            if whole := _WHOLE.fullmatch(text):
                yield ".".join(w for w in whole.groups() if w)
            for owner, names in _CODE.findall(text):
                yield from (
                    (f"{owner}.{n.split()[0]}" for n in names.split(",") if n.strip()) if names else (owner,)
                )

    def strings(self, module: str) -> Iterator[str]:
        """The strings of a module but docstrings and the names of loggers."""
        quiet = set()
        for node in ast.walk(self.trees[module]):
            if isinstance(node, ast.Expr):
                quiet.add(id(node.value))
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "getLogger":
                quiet |= {id(a) for a in node.args}
        for node in ast.walk(self.trees[module]):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in quiet:
                yield node.value

    @cached_property
    def graph(self) -> dict[str, set[str]]:
        """Which modules each module imports; not the root, which every import of a module runs first."""
        return {m: {self.split(n)[0] for n in names} - {m, "", "vmae"} for m, names in self.imports.items()}

    @cached_property
    def defined(self) -> dict[str, set[str]]:
        """The names that each module has, submodules among them."""
        return {m: self._defined(m) for m in self.paths} | {"": set()}

    def _defined(self, module: str) -> set[str]:
        names = {m.rpartition(".")[2] for m in self.paths if m.rpartition(".")[0] == module}
        for node in ast.walk(self.trees[module]):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names |= {(a.asname or a.name).partition(".")[0] for a in node.names}
        return names

    # -- the rules: each finds what offends ------------------------------------------------------------

    def against_the_layers(self) -> Iterator[str]:
        """An import of a layer that lies above or beside the module's own."""
        for module, names in self.imports.items():
            for name in names:
                target = _layer(self.split(name)[0])
                if target and target not in LAYERS.get(_layer(module), LAYERS):
                    yield f"{self.places[module]} imports {name}"

    def names_of_nothing(self) -> Iterator[str]:
        """A module, or something of one, that is imported or mentioned and is not there."""
        for module in self.paths:
            mentioned = [name for text in self.strings(module) for name in _MENTIONED.findall(text)]
            for name in [*self.imports[module], *mentioned]:
                owner, rest = self.split(name)
                if rest and rest.partition(".")[0] not in self.defined[owner]:
                    yield f"{self.places[module]} names {name}"

    def circles(self) -> Iterator[str]:
        """One `a -> b` for each circle: the import that closes it."""
        graph = {
            a: {b for b in g if f"{a} -> {b}" not in self.allowed_circles} for a, g in self.graph.items()
        }
        state: dict[str, str] = {}

        def visit(module: str) -> Iterator[str]:
            state[module] = "open"
            for target in sorted(graph[module]):
                if state.get(target) == "open":
                    yield f"{module} -> {target}"
                elif target not in state:
                    yield from visit(target)
            state[module] = "done"

        for module in sorted(graph):
            if module not in state:
                yield from visit(module)
        for edge in self.allowed_circles:
            start, _, end = edge.partition(" -> ")
            if end in self.graph.get(start, ()) and start in self._reached(end):
                yield edge

    def _reached(self, start: str) -> set[str]:
        seen, todo = {start}, [start]
        while todo:
            new = self.graph[todo.pop()] - seen
            seen |= new
            todo += new
        return seen

    def private_names_taken(self) -> Iterator[str]:
        """A name with an underscore of another module, imported or reached through the module."""
        for module, tree in self.trees.items():
            aliases = {}
            for node in ast.walk(tree):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    source = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
                    aliases |= {a.asname or a.name: source + a.name for a in node.names}
            taken = list(self.imports[module])
            for node in ast.walk(tree):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    taken.append(f"{aliases.get(node.value.id, '')}.{node.attr}")
            for name in taken:
                owner, rest = self.split(name)
                # Triton's kernels are `_name_fwd_kernel` by custom; an op's library launches its own.
                at_home = owner in ("", module, f"{module.rpartition('.')[0]}.triton_kernels")
                if rest.startswith("_") and not rest.startswith("__") and not at_home:
                    yield f"{self.places[module]} takes {name}"

    def long_functions(self) -> Iterator[str]:
        """A function longer than its layer allows."""
        for module, tree in self.trees.items():
            most = LONGEST_FUNCTION.get(_layer(module), LONGEST_FUNCTION_ELSEWHERE)
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    assert node.end_lineno is not None
                    if node.end_lineno - node.lineno + 1 > most:
                        yield f"{self.places[module]} {node.name}"

    def long_files(self) -> Iterator[str]:
        """A file longer than allowed, but recipes and Triton kernels."""
        for module, path in self.paths.items():
            excepted = path.name == "triton_kernels.py" or path.parent.name == "recipes"
            if len(path.read_text().splitlines()) > LONGEST_FILE and not excepted:
                yield self.places[module]


def _layer(module: str) -> str:
    return [*module.split("."), ""][1]


RULES: dict[str, Callable[[House], Iterator[str]]] = {
    "layer": House.against_the_layers,
    "nothing": House.names_of_nothing,
    "circle": House.circles,
    "private": House.private_names_taken,
    "long function": House.long_functions,
    "long file": House.long_files,
}


@pytest.fixture(scope="module")
def house() -> House:
    found = House(ROOT)
    found.allowed_circles = set(ALLOWED["circle"])
    return found


@pytest.mark.parametrize("rule", RULES)
def test_the_house_rule_holds(rule: str, house: House) -> None:
    found, allowed = set(RULES[rule](house)), set(ALLOWED.get(rule, {}))
    assert not found - allowed, f"{rule}: {sorted(found - allowed)}"
    assert not allowed - found, f"{rule}: remove from ALLOWED, it offends no more: {sorted(allowed - found)}"


def test_each_rule_finds_its_offence(tmp_path: Path) -> None:
    files = {
        "core/a.py": "def f():\n    from vmae.core.b import g\n",
        "core/b.py": "import vmae.core.a as a\na._hidden\ndef g(): ...\n",
        "core/c.py": 'import importlib\nimportlib.import_module("vmae.cli.main")\n',
        "core/d.py": 'CODE = "from vmae.core.b import g, _h"\nSAY = "see vmae.core.gone for more"\n',
        "experiments/e.py": "def long():\n" + "    ...\n" * LONGEST_FUNCTION["experiments"],
        "experiments/f.py": "x = 1\n" * (LONGEST_FILE + 1),
        "cli/main.py": 'import logging\nVERBS = {"a": "vmae.cli.main", "b": "vmae.dashboard.app:run"}\n',
        "dashboard/app.py": '"""See vmae.core.nowhere."""\nlog = logging.getLogger("vmae.cli")\nrun = 1\n',
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    house = House(tmp_path)
    assert {rule: sorted(find(house)) for rule, find in RULES.items()} == {
        "layer": ["cli/main.py imports vmae.dashboard.app.run", "core/c.py imports vmae.cli.main"],
        "nothing": ["core/d.py names vmae.core.b._h", "core/d.py names vmae.core.gone"],
        "circle": ["vmae.core.b -> vmae.core.a"],
        "private": ["core/b.py takes vmae.core.a._hidden", "core/d.py takes vmae.core.b._h"],
        "long function": ["experiments/e.py long"],
        "long file": ["experiments/f.py"],
    }
    house.allowed_circles = {"vmae.core.b -> vmae.core.a", "vmae.core.c -> vmae.cli.main"}
    assert list(house.circles()) == ["vmae.core.b -> vmae.core.a"]


@pytest.mark.parametrize("layer", ["kernels", "core"])
def test_core_and_kernels_do_not_import_heavy_libraries(layer: str, house: House) -> None:
    for module, tree in house.trees.items():
        at_once = {n.split(".")[0] for n in _imported_at_once(tree)}
        assert _layer(module) != layer or not at_once & HEAVY, f"{house.places[module]}: {at_once & HEAVY}"


@pytest.mark.parametrize("layer", ["core", "kernels"])
def test_core_and_kernels_are_imported_with_little(layer: str, house: House) -> None:
    """They run from the source tree where little else is installed. PIL: what draws pictures."""
    of_python = {*sys.stdlib_module_names, "vmae", "torch", "triton", "numpy", "PIL"}
    for module in (m for m in house.paths if m.startswith(f"vmae.{layer}")):
        own = {name.partition(".")[0] for name in _imported_at_once(house.trees[module])}
        assert own <= of_python, f"{house.places[module]}: {own - of_python}"


def _imported_at_once(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_core_reaches_kernels_only_through_its_public_functions(house: House) -> None:
    for module, names in house.imports.items():
        for name in names if _layer(module) == "core" else ():
            assert not name.startswith("vmae.kernels.") or name.count(".") == 2, f"{module} imports {name}"


def test_every_package_is_listed(house: House) -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    assert listed == {m for m, path in house.paths.items() if path.name == "__init__.py"}
