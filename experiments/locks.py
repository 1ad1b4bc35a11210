"""Ownership between processes: names are claimed by making their folder, work on a folder is locked."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vmae.core.errors import InputError
from vmae.core.locks import locked

_LOOKS = 3


@contextlib.contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Inside, no other process is inside with the same file; raises InputError where one is.

    The lock of a process that was killed is free: the system lets go of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        for attempt in range(_LOOKS):
            try:
                stack.enter_context(locked(path, wait=False))
                break
            except BlockingIOError:
                if attempt + 1 == _LOOKS:
                    raise InputError(
                        f"expected {what} to be at rest, got another process at work on it (in {path.parent})"
                    ) from None
                time.sleep(0.05)  # perhaps it is only `is_held`, which looks
        yield


def is_held(path: Path) -> bool:
    """Whether a process is inside `held` or `locked` with this file, which has to be there."""
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(file, fcntl.LOCK_UN)
        except BlockingIOError:
            return True
    return False


def claim(folder: Path) -> bool:
    """Make a folder that is not there: whoever does has its name, and only one process can."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def claim_numbered(parent: Path, name: str, claimed: Callable[[Path], bool] = claim) -> str:
    """Claim `name-1`, or the first of `-2`, `-3`, ... that is free, by `claim` or the storage's."""
    number = 1
    while not claimed(parent / f"{name}-{number}"):
        number += 1
    return f"{name}-{number}"


@contextlib.contextmanager
def given_up(folder: Path, *locks: Path, above: int = 1) -> Iterator[None]:
    """Where the body fails before anything (but these locks) was put into a claimed folder, it goes again.

    So do so many folders above it, if they are empty then.
    """
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            if set(folder.iterdir()) <= set(locks):
                for lock in locks:
                    lock.unlink(missing_ok=True)
                folder.rmdir()
                for parent in folder.parents[:above]:
                    parent.rmdir()
        raise


def at_work(function: Callable[..., Any]) -> Callable[..., Any]:
    """Of a function of (configuration, store, ...): it alone works in the folder of the run of that name."""

    @functools.wraps(function)
    def alone(config: Any, store: Any, *args: Any, **how: Any) -> Any:
        home = store.layout.run(config.name)
        with held(home.working, f"run '{config.name}'"), given_up(home.path, home.working):
            return function(config, store, *args, **how)

    return alone


def check_name(option: str, name: str, reserved: tuple[str, ...] = ()) -> None:
    """Raise InputError for what is no plain name of a folder of its own."""
    plain = bool(name) and name == Path(name).name and not name.startswith(".") and name.isprintable()
    if not plain or name in reserved or len(name.encode()) > 200:
        raise InputError(
            f"{option}: expected a plain name (no /, no leading dot, at most 200 bytes"
            + (f", none of {', '.join(reserved)}" if reserved else "")
            + f"), got {name!r}"
        )
