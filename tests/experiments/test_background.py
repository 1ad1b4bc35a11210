"""A thread beside a body: it repeats, ends with the body, and its error is not lost."""

from __future__ import annotations

import threading

import pytest

from vmae.experiments.background import repeated


def test_work_is_repeated_until_the_body_ends() -> None:
    often, calls = threading.Event(), []

    def work() -> None:
        calls.append(threading.current_thread().name)
        if len(calls) == 3:
            often.set()

    with repeated(work, 0.01, "clock"):
        assert not calls
        assert often.wait(10)
    ended = len(calls)
    assert set(calls) == {"clock"}
    assert "clock" not in {t.name for t in threading.enumerate()}
    assert len(calls) == ended


def test_what_the_work_raises_comes_out_after_the_body() -> None:
    failed, reached = threading.Event(), False

    def work() -> None:
        failed.set()
        raise ValueError("no room")

    with pytest.raises(ValueError, match="no room"), repeated(work, 0.01, "clock"):
        assert failed.wait(10)
        reached = True
    assert reached
    # An error of the body's own comes first.
    with pytest.raises(KeyError), repeated(work, 0.01, "clock"):
        raise KeyError
