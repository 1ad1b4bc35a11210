"""The four ways to show progress, and the numbers they show."""

from __future__ import annotations

import io
import re

import pytest

from vmae.core.errors import InputError
from vmae.core.progress import ProgressUpdate, format_duration, format_value, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        raise OSError("no file")


def test_lines_say_count_fields_and_time_left() -> None:
    out = io.StringIO()
    with progress("pretrain", total=10, unit="step", stream=out, every_s=0.0, kind="auto") as p:
        p.update(5, loss=0.123456, lr=1.5e-5)
    first, last = out.getvalue().splitlines()
    assert re.fullmatch(r"pretrain:  50% 5/10 step  loss 0.1235  lr 1.5e-05  \d+s left", first)
    assert last.startswith("pretrain: done in 0s  loss 0.1235")


def test_lines_are_rare() -> None:
    out = io.StringIO()
    with progress("x", total=1000, stream=out, kind="lines", every_s=1000) as p:
        for _ in range(1000):
            p.update()
    assert out.getvalue() == ""


def test_a_terminal_gets_a_bar_on_one_line() -> None:
    out = Terminal()
    with progress("decode", total=4, stream=out) as p:
        p.update(2)
        p.note("one file is broken")
    text = out.getvalue()
    assert "█" in text and "░" in text and "decode" in text
    assert "\r\x1b[Kone file is broken\n" in text
    assert text.count("\n") == 2


def test_silent_prints_nothing_and_the_callback_gets_every_update() -> None:
    out, seen = io.StringIO(), []
    with progress("x", total=8, initial=4, stream=out, kind="silent", callback=seen.append) as p:
        p.update(2, loss=1.0)
        p.note("hello")
    assert out.getvalue() == ""
    (update,) = seen
    assert isinstance(update, ProgressUpdate)
    assert (update.done, update.total, update.fields) == (6, 8, {"loss": 1.0})
    # 2 of the remaining 4 are done by this process: as long again.
    assert update.eta_s == pytest.approx(update.elapsed_s, rel=0.2, abs=1e-3)


def test_the_environment_chooses_for_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMAE_PROGRESS", "silent")
    out = Terminal()
    with progress("x", total=1, stream=out) as p:
        p.update()
    assert out.getvalue() == ""


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(InputError, match=r"auto, bar, lines, silent; got 'line' \(did you mean 'lines'"):
        progress("x", kind="line")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.4, "59s"), (200, "3m 20s"), (7500, "2h 05m"), (float("inf"), "?"), (float("nan"), "?")],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(3, "3"), (0.0, "0"), (1e-4, "1.0e-04"), (123.456, "123.5"), ("a", "a"), (True, "True")],
)
def test_values(value: object, text: str) -> None:
    assert format_value(value) == text
