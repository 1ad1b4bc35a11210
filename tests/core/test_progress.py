"""The four ways to show progress, and the numbers they show."""

from __future__ import annotations

import io
import os
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
        p.update(5)
    first, _, last = out.getvalue().splitlines()
    assert re.fullmatch(r"pretrain:  50%  \d+s left  5/10 step  loss 0.1235  lr 1.5e-05", first)
    assert last.startswith("pretrain: done in 0s  loss 0.1235")


def test_what_ended_early_is_not_called_done() -> None:
    out = io.StringIO()
    with progress("pretrain", total=10, unit="step", stream=out, kind="lines") as p:
        p.update(4, loss=0.5)
    assert out.getvalue() == "pretrain: stopped at 4/10 step after 0s  loss 0.5\n"


class Narrow(io.StringIO):
    """A terminal of some columns."""

    def __init__(self, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        monkeypatch.setattr("os.get_terminal_size", lambda number: os.terminal_size((columns, 24)))

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 1


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 200])
def test_a_bar_fits_the_terminal_and_says_the_time_left_first(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Narrow(columns, monkeypatch)
    fields = {"clips/s": 180, "loss": 0.81234, "held-out": 0.91, "epoch": 12.4, "wait": "12%", "lr": 1.5e-4}
    with progress("small_clips_pretrain-12", total=4200, unit="step", stream=out) as p:
        p.update(1234, **fields)
    last = out.getvalue().rstrip("\n").split("\x1b[K")[-1]
    assert len(last) < columns
    assert "left" in last and "29%" in last
    assert ("clips/s 180" in last) == (columns >= 60)
    assert ("lr" in last) == (columns >= 200)
    # Fields are shown whole or not at all.
    shown = last.split("step")[1].split("  ")[1:] if "step" in last else []
    assert all(len(part.split()) == 2 for part in shown), shown


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
