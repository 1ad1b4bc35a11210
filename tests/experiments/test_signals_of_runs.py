"""Signals that ask a training to stop: it ends after its step, with its state saved."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from vmae.experiments.jobs import stop_on_signal


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_is_asked_to_stop(number: signal.Signals) -> None:
    with stop_on_signal() as should_stop:
        assert not should_stop()
        os.kill(os.getpid(), number)
        assert should_stop()
        # A terminal that closes sends more than one; only a second Ctrl-C means at once.
        for another in (signal.SIGHUP, signal.SIGTERM):
            os.kill(os.getpid(), another)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


def test_nohup_stays_in_force() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_on_signal() as should_stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not should_stop()
