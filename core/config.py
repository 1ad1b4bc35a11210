"""Frozen dataclasses to plain dictionaries and back, strictly; and typed overrides by dotted path.

A configuration is a tree of frozen, keyword-only dataclasses. These functions are all there is between that
tree and the outside (a YAML file, a checkpoint's JSON, `--set optim.base_lr=3e-4`, MLflow parameters): an
unknown key or a value of another type is an `InputError` that names what was expected and the nearest key.
"""

from __future__ import annotations

import ast
import dataclasses
import types
import typing
from typing import Any, TypeVar

from vmae.core.errors import InputError, nearest

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """The tree as nested dictionaries of JSON types (tuples become lists)."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, tuple | list):
            return [plain(v) for v in value]
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return value

    result: dict[str, Any] = plain(config)
    return result


def flatten(config: Any) -> dict[str, Any]:
    """The tree as one level of dotted keys: `{"optim.base_lr": 3e-4, ...}`."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        else:
            flat[prefix] = value

    walk("", to_dict(config))
    return flat


def from_dict(cls: type[T], data: Any, where: str = "") -> T:
    """Build `cls` from nested dictionaries.

    Args:
        cls: a frozen dataclass.
        data: a mapping with a subset of its fields (defaults fill the rest); keys that `cls.retired` lists,
            where the class has it, are of older configurations and left out.
        where: dotted path for messages.

    Raises:
        InputError: an unknown key (names the nearest), a value of another type, or what the class refuses.
    """
    label = where or cls.__name__
    if not isinstance(data, dict):
        raise InputError(f"{label}: expected a mapping, got {_describe(data)}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key in getattr(cls, "retired", ()):
            continue
        if key not in fields:
            raise InputError(
                f"{label}: unknown key '{key}'{nearest(str(key), list(fields))}; known: {', '.join(fields)}"
            )
        values[key] = convert(hints[key], value, f"{where}.{key}" if where else str(key))
    missing = [
        name
        for name, f in fields.items()
        if name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise InputError(f"{label}: expected a value for {', '.join(missing)}, got none")
    return cls(**values)


def override(config: T, assignments: dict[str, Any]) -> T:
    """A copy of the tree with the fields at dotted paths replaced.

    Args:
        config: the root dataclass.
        assignments: dotted path of a field, or of an entry of a field that is a mapping -> value; a string is
            read by the type of the field: `"3e-4"` for a float, `"none"` for an optional field, `"224,224"`
            or `"[224, 224]"` for a tuple, `"true"` or `"false"` and nothing else for a bool.

    Raises:
        InputError: unknown path (names the nearest), or a value that does not fit the field's type.
    """
    data = to_dict(config)
    for path, value in assignments.items():
        if not is_path(type(config), path):
            raise InputError(f"unknown key '{path}'{nearest(path, known_paths(type(config)))}")
        node = data
        *parents, leaf = path.split(".")
        for part in parents:
            if node[part] is None:
                node[part] = {}
            node = node[part]
        hint = _hint_at(type(config), path)
        node[leaf] = _parse(hint, value, path) if isinstance(value, str) else value
    return from_dict(type(config), data)


def parse_assignments(pairs: typing.Iterable[str]) -> dict[str, str]:
    """`["optim.base_lr=3e-4", ...]` -> dictionary; InputError where there is no `=`."""
    result: dict[str, str] = {}
    for pair in pairs:
        path, sign, value = pair.partition("=")
        if not sign or not path.strip():
            raise InputError(f"--set: expected KEY=VALUE (for example optim.base_lr=3e-4), got '{pair}'")
        result[path.strip()] = value.strip()
    return result


def known_paths(cls: type) -> list[str]:
    """All dotted leaf paths of a dataclass type."""
    paths: list[str] = []
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        inner = _dataclass_in(hints[f.name])
        paths += [f"{f.name}.{p}" for p in known_paths(inner)] if inner else [f.name]
    return paths


def is_path(cls: type, path: str) -> bool:
    """Whether a dotted path names a leaf of a dataclass type, or an entry of a leaf that is a mapping."""
    known, leaf = known_paths(cls), path.rpartition(".")[0]
    return path in known or (leaf in known and typing.get_origin(_hint_at(cls, leaf)) is dict)


def _hint_at(cls: type, path: str) -> Any:
    hint: Any = cls
    for part in path.split("."):
        if typing.get_origin(hint) is dict:
            return typing.get_args(hint)[1]
        hint = typing.get_type_hints(_dataclass_in(hint) or hint)[part]
    return hint


def _dataclass_in(hint: Any) -> type | None:
    """The dataclass a hint is, or contains as `X | None`."""
    for option in _options(hint):
        if dataclasses.is_dataclass(option):
            return option  # type: ignore[return-value]
    return None


def _options(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _parse(hint: Any, text: str, where: str) -> Any:
    """Read a command-line string as the field's type; leaves what it cannot read for `convert` to refuse."""
    options = _options(hint)
    if type(None) in options and text.lower() in ("none", "null", ""):
        return None
    if (bool in options or Any in options) and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for option in options:
        if option in (int, float):
            try:
                return option(text)
            except ValueError:
                continue
        if typing.get_origin(option) in (tuple, list):
            try:
                value = ast.literal_eval(text if text[:1] in "[(" else f"[{text},]")
            except (ValueError, SyntaxError):
                value = [part.strip() for part in text.strip("[]()").split(",") if part.strip()]
            return list(value) if isinstance(value, tuple | list) else [value]
        if option is Any or typing.get_origin(option) is dict:
            try:
                return ast.literal_eval(text)
            except (ValueError, SyntaxError):
                continue
    return text


def convert(hint: Any, value: Any, where: str) -> Any:
    """`value`, of JSON's types, as the type `hint`; InputError that begins with `where` where it is none."""
    options = _options(hint)
    for option in options:
        converted = _convert_one(option, value, where)
        if converted is not _NO:
            return converted
    raise InputError(f"{where}: expected {_name(hint)}, got {_describe(value)}")


_NO = object()


def _convert_one(option: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(option)
    if option is Any:
        return value
    if option is type(None):
        return None if value is None else _NO
    if dataclasses.is_dataclass(option) and isinstance(option, type):
        if isinstance(value, option):
            return value
        return from_dict(option, value, where) if isinstance(value, dict) else _NO
    if origin is typing.Literal:
        if value in typing.get_args(option):
            return value
        known = [str(a) for a in typing.get_args(option)]
        hint = nearest(value, known) if isinstance(value, str) else ""
        raise InputError(f"{where}: expected one of {', '.join(known)}, got {_describe(value)}{hint}")
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return _NO
        args = typing.get_args(option)
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(convert(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
        if len(args) != len(value):
            raise InputError(f"{where}: expected {len(args)} values, got {len(value)}")
        return tuple(convert(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))
    if origin is dict:
        return dict(value) if isinstance(value, dict) else _NO
    if option is float:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else _NO
    if option is int:
        if isinstance(value, bool):
            return _NO
        # YAML and JSON writers may turn 4 into 4.0; nothing is lost in reading it back.
        return int(value) if isinstance(value, int | float) and float(value).is_integer() else _NO
    if option is bool:
        return value if isinstance(value, bool) else _NO
    if option is str:
        return value if isinstance(value, str) else _NO
    return value if isinstance(option, type) and isinstance(value, option) else _NO


def _name(hint: Any) -> str:
    names = []
    for option in _options(hint):
        if option is type(None):
            names.append("none")
        elif typing.get_origin(option) is tuple:
            names.append("a list of values")
        elif option is bool:
            names.append("true or false")
        else:
            names.append(
                {int: "an integer", float: "a number", str: "text"}.get(
                    option, str(getattr(option, "__name__", option))
                )
            )
    return " or ".join(names)


def _describe(value: Any) -> str:
    return f"{value!r} ({type(value).__name__})"
