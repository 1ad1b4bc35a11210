"""Objects of a user's own, named `module:object` in a configuration: a mask, a target, a stage."""

from __future__ import annotations

import importlib
import os
import re
import sys
from typing import Any

from vmae.core.errors import InputError, nearest

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_object_name(text: str) -> bool:
    """Whether `text` has the form `module:object`; nothing is imported."""
    return _NAME.fullmatch(text) is not None


def load_object(text: str, where: str) -> Any:
    """The object that `module:object` names; modules in the working directory are found too.

    Raises InputError, one line that begins with `where` (the configuration's key): not of this form, no such
    module, no such object in it (the nearest is named), or whatever the module raises when it is imported.
    """
    if not is_object_name(text):
        raise InputError(f"{where}: expected module:object, got '{text}'")
    name, _, attribute = text.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # as `python -m` has it; a console script and Ray's workers do not
    try:
        module = importlib.import_module(name)
    except Exception as e:
        said = (str(e).splitlines() or [""])[0]
        missing = isinstance(e, ModuleNotFoundError) and e.name in (name, name.partition(".")[0])
        hint = " (a module lies in the working directory or is installed)" if missing else ""
        raise InputError(
            f"{where}: expected a module that can be imported, got '{name}': {type(e).__name__}: {said}{hint}"
        ) from e
    if not hasattr(module, attribute):
        known = [n for n in vars(module) if not n.startswith("_")]
        raise InputError(
            f"{where}: expected an object of module {name}, got '{attribute}'{nearest(attribute, known)}"
        )
    return getattr(module, attribute)
