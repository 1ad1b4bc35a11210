"""docs/config.md: every key of a configuration with its choices, its default and what it means.

    python -m vmae.experiments.config_page > docs/config.md

What a key means is the docstring under its field; a key without one is left without words here too.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import sys
import textwrap
import types
import typing
from typing import Any

from vmae.core.config import to_dict
from vmae.experiments.config import ExperimentConfig

_HEAD = """# Every key of a configuration

What `--set KEY=VALUE` takes, what `config.yaml` of a run holds, and what a sweep varies (`--param KEY=A,B`).
Written by `python -m vmae.experiments.config_page`; a test holds it to the code. An unknown key is refused
with the nearest one. None is written as `none`, a list as `32,32`. The defaults are those of a configuration
that starts from nothing; a recipe (`vmae recipes show NAME`) and what `vmae recommend` finds for a list have
their own.
"""


def page() -> str:
    """The page, in Markdown."""
    parts = [_HEAD, _section("", ExperimentConfig, ExperimentConfig())]
    parts += _sections("", ExperimentConfig, ExperimentConfig())
    return "\n".join(parts).rstrip() + "\n"


def _sections(prefix: str, cls: type, value: Any) -> list[str]:
    parts = []
    for name, inner in _nested(cls).items():
        path = f"{prefix}{name}."
        parts.append(_section(path, inner, getattr(value, name)))
        parts += _sections(path, inner, getattr(value, name))
    return parts


def _section(prefix: str, cls: type, value: Any) -> str:
    """A heading, what the section is, and a line a key that is no section of its own."""
    rows, nested, hints = [], _nested(cls), typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.name in nested:
            continue
        choices, default = _choices(hints[field.name]), _default(getattr(value, field.name))
        meaning = _cell(docs_of(cls).get(field.name, ""))
        rows.append(f"| `{prefix}{field.name}` | {_cell(choices)} | {default} | {meaning} |")
    if not rows:
        return ""
    title = f"## `{prefix.rstrip('.')}`" if prefix else "## The run"
    about = inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].replace("\n", " ")
    table = ["| key | choices | default | what it means |", "|---|---|---|---|", *rows]
    return "\n".join([title, "", about, "", *table, ""])


def _nested(cls: type) -> dict[str, type]:
    """The fields that are sections of their own."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if dataclasses.is_dataclass(hints[f.name])}


@functools.cache
def docs_of(cls: type) -> dict[str, str]:
    """Of a dataclass and those that it inherits from: the docstring under each field, on one line."""
    found: dict[str, str] = {}
    for part in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(part):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(part))).body
        assert isinstance(tree, ast.ClassDef)
        for field, after in zip(tree.body, tree.body[1:], strict=False):
            if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                continue
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                found[field.target.id] = " ".join(str(after.value.value).split())
    return found


def _choices(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_choices(a) for a in args)
    if origin is typing.Literal:
        return ", ".join(f"`{a}`" for a in args)
    if origin is tuple:
        inner = _choices(args[0])
        return f"a list: {inner}" if args[-1] is Ellipsis else ", ".join(_choices(a) for a in args)
    if origin is dict:
        return "a mapping"
    names = {
        int: "a whole number",
        float: "a number",
        bool: "`true`, `false`",
        str: "text",
        type(None): "`none`",
    }
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _default(value: Any) -> str:
    plain = to_dict(value) if dataclasses.is_dataclass(value) else value
    if plain is None:
        return "`none`"
    if isinstance(plain, bool):
        return f"`{str(plain).lower()}`"
    if isinstance(plain, tuple | list):
        return f"`{','.join(map(str, plain))}`" if plain else "empty"
    return f"`{plain}`" if plain != "" else "empty"


def _cell(text: str) -> str:
    return text.replace("|", "\\\\|")


if __name__ == "__main__":
    sys.stdout.write(page())
