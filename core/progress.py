"""Progress of anything that takes longer than two seconds: one interface, four ways to show it.

    with progress("pretrain", total=steps, unit="step") as p:
        for step in range(steps):
            ...
            p.update(1, loss=loss)

On a terminal it is a bar with the time left; elsewhere (a log file, CI) a plain line every few seconds;
inside tests and Ray workers nothing; with `callback` every update goes to a function of yours.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, TextIO

from vmae.core.errors import InputError, nearest

KINDS = ("auto", "bar", "lines", "silent")
Value = float | int | str


@dataclass(frozen=True, kw_only=True)
class ProgressUpdate:
    """What a `callback` receives after every update; times in seconds, `eta_s` None while unknown."""

    title: str
    done: float
    total: float | None
    elapsed_s: float
    eta_s: float | None
    fields: dict[str, Value]


class Progress(Protocol):
    """Something that counts up to `total` and can be told what it has reached."""

    def __enter__(self) -> Progress: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def update(self, n: float = 1, **fields: Any) -> None:
        """Count `n` more and show `fields` (floats, ints or short strings) beside the bar."""

    def note(self, text: str) -> None:
        """Print one line that stays (above the bar on a terminal)."""


def format_duration(seconds: float) -> str:
    """Seconds as `45s`, `3m 20s` or `2h 05m`; a negative or unknown time is `?`."""
    if not seconds >= 0 or seconds == float("inf"):
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def parse_duration(text: str, option: str) -> float:
    """`7d`, `4h`, `90m`, `1h30m`, `45s` as seconds; InputError (naming the option) for anything else."""
    number = r"(\d+(?:\.\d+)?)"
    match = re.fullmatch("".join(f"(?:{number}{unit})?" for unit in "dhms"), text.strip())
    seconds = (86400, 3600, 60, 1)
    total = sum(float(n) * s for n, s in zip(match.groups(), seconds, strict=True) if n) if match else 0
    if total <= 0:
        raise InputError(f"{option}: expected a time such as 4h, 90m or 1h30m, got '{text}'")
    return total


def format_value(value: Any) -> str:
    """A number with as many digits as a progress line can carry; anything else as `str`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return str(value)
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.1e}"
    return f"{value:.4g}"


class _Printer:
    """The counting and the three printed forms; `progress` chooses which."""

    def __init__(
        self,
        title: str,
        *,
        total: float | None,
        unit: str,
        kind: str,
        stream: TextIO,
        every_s: float,
        callback: Callable[[ProgressUpdate], None] | None,
        initial: float,
    ) -> None:
        self.title, self.total, self.unit, self.kind, self.stream = title, total, unit, kind, stream
        self.done, self._initial = initial, initial
        self.fields: dict[str, Value] = {}
        # A bar is redrawn at most ten times a second: drawing must not cost the work its time.
        self._every_s = 0.1 if kind == "bar" else every_s
        self._callback = callback
        self._start = time.monotonic()
        self._shown_at = self._start if kind == "lines" else 0.0
        self._line_open = False

    def __enter__(self) -> _Printer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.kind == "silent":
            return
        elapsed = time.monotonic() - self._start
        if self.kind == "bar":
            self._draw()
            self._write("\n")
        elif kind is None and (elapsed > 2 or self.fields):
            whole = self.total is None or self.done >= self.total
            said = "done in" if whole else f"stopped at {self._count()} after"
            self._write(f"{self.title}: {said} {format_duration(elapsed)}{self._fields_text()}\n")

    @property
    def eta_s(self) -> float | None:
        elapsed, done = time.monotonic() - self._start, self.done - self._initial
        if not self.total or done <= 0:
            return None
        return max(0.0, (self.total - self.done) * elapsed / done)

    def update(self, n: float = 1, **fields: Any) -> None:
        self.done += n
        # What is said now stands first, in its order.
        self.fields = {**fields, **{k: v for k, v in self.fields.items() if k not in fields}}
        if self._callback is not None:
            elapsed = time.monotonic() - self._start
            self._callback(
                ProgressUpdate(
                    title=self.title,
                    done=self.done,
                    total=self.total,
                    elapsed_s=elapsed,
                    eta_s=self.eta_s,
                    fields=dict(self.fields),
                )
            )
        if self.kind == "silent":
            return
        now = time.monotonic()
        if now - self._shown_at < self._every_s:
            return
        self._shown_at = now
        if self.kind == "bar":
            self._draw()
        else:
            self._write(self._line() + "\n")

    def note(self, text: str) -> None:
        if self.kind == "silent":
            return
        self._write(("\r\x1b[K" if self._line_open else "") + text + "\n")
        if self.kind == "bar":
            self._draw()

    def _write(self, text: str) -> None:
        """What only informs ends no work: a full disk, a reader that has gone, a stream that was closed."""
        # RuntimeError: a signal's handler writes while a line is being written.
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            self.stream.write(text)
            self.stream.flush()

    def _count(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        if self.total is None:
            return f"{self.done:g}{unit}"
        return f"{self.done:g}/{self.total:g}{unit}"

    def _fields_text(self) -> str:
        return "".join(f"  {k} {format_value(v)}" for k, v in self.fields.items())

    def _head(self) -> str:
        """How far it is, and how long it takes yet."""
        percent = f" {100 * self.done / self.total:3.0f}%" if self.total else ""
        eta = self.eta_s
        return percent + ("" if eta is None else f"  {format_duration(eta)} left")

    def _line(self) -> str:
        return f"{self.title}:{self._head()}  {self._count()}{self._fields_text()}"

    def _fitted(self, width: int) -> str:
        """The line in `width` characters: time left and count always, then whole fields, in their order, as
        there is room; of what remains a bar."""
        title = self.title
        most = max(8, width // 4)
        if len(title) > most:
            title = f"{title[: most - 6]}…{title[-5:]}"
        text = f"{self._head()}  {self._count()}"
        for name, value in self.fields.items():
            part = f"  {name} {format_value(value)}"
            if len(title) + 1 + len(text) + len(part) > width:
                break
            text += part
        cells = min(24, width - len(title) - 1 - len(text)) if self.total else 0
        if cells < 6 or not self.total:
            return f"{title}:{text}"[:width]
        full = round(cells * min(1.0, self.done / self.total))
        return f"{title} {'█' * full}{'░' * (cells - full)}{text}"

    def _draw(self) -> None:
        try:
            width = os.get_terminal_size(self.stream.fileno()).columns
        except (OSError, ValueError):
            width = 100
        self._write("\r\x1b[K" + self._fitted(width - 1))
        self._line_open = True


def progress(
    title: str,
    total: float | None = None,
    *,
    unit: str = "",
    kind: str = "auto",
    initial: float = 0,
    every_s: float = 5.0,
    stream: TextIO | None = None,
    callback: Callable[[ProgressUpdate], None] | None = None,
) -> Progress:
    """Start counting towards `total` (None: unknown); use it as a context manager.

    `kind` is `auto` (a bar on a terminal, else `lines`; the environment variable VMAE_PROGRESS
    overrides it), `bar`, `lines` (one line every `every_s` seconds) or `silent`. `initial` is what was
    already done before this process (a resumed run): it counts in the bar, not in the speed.
    `callback` is called after every update, whatever the kind. Prints to stderr unless `stream` is given.
    Raises InputError for an unknown kind.
    """
    # A process whose standard error is closed has none.
    stream = (sys.stderr or io.StringIO()) if stream is None else stream
    if kind == "auto":
        kind = os.environ.get("VMAE_PROGRESS", "auto")
    if kind not in KINDS:
        raise InputError(
            f"expected a progress kind of {', '.join(KINDS)}; got '{kind}'{nearest(kind, KINDS)}"
        )
    if kind == "auto":
        kind = "bar" if stream.isatty() else "lines"
    return _Printer(
        title,
        total=total,
        unit=unit,
        kind=kind,
        stream=stream,
        every_s=every_s,
        callback=callback,
        initial=initial,
    )
