"""Work that hangs, crashes or fails is reported for its item; the others are done."""

from __future__ import annotations

import math
import os
import threading
import time

import pytest

from vmae.core.errors import VideoError
from vmae.core.video.isolate import StuckRead, run_isolated, run_limited


def test_a_hang_is_killed_and_the_rest_goes_on() -> None:
    start = time.monotonic()
    items = [0.0, 0.0, 60.0, 0.0, 0.01]
    outcomes = {o.index: o for o in run_isolated(time.sleep, items, workers=1, limit_s=0.5)}
    assert sorted(outcomes) == [0, 1, 2, 3, 4]
    assert {i: o.failure for i, o in outcomes.items()} == {0: "", 1: "", 2: "timeout", 3: "", 4: ""}
    assert outcomes[2].detail == "more than 0.5 s"
    assert time.monotonic() - start < 30


def test_a_crash_is_one_items_failure() -> None:
    outcomes = sorted(run_isolated(os._exit, [3], workers=2, limit_s=5), key=lambda o: o.index)
    assert [(o.failure, o.detail) for o in outcomes] == [("crash", "the decoder's process ended with 3")]


def test_errors_and_values() -> None:
    outcomes = {o.index: o for o in run_isolated(math.sqrt, [4.0, -1.0, 9.0], workers=2, limit_s=5)}
    assert outcomes[0].value == 2
    assert outcomes[2].value == 3
    assert outcomes[1].failure == "error"
    assert outcomes[1].detail.startswith("ValueError: ")


def test_no_items() -> None:
    assert list(run_isolated(math.sqrt, [], workers=2, limit_s=5)) == []


def test_a_stuck_read_is_left_behind_once() -> None:
    release = threading.Event()
    try:
        with pytest.raises(StuckRead, match=r"stuck\.mp4: timeout: more than 0\.2 s inside one call"):
            run_limited(release.wait, "stuck.mp4", 0.2)
        called: list[str] = []
        with pytest.raises(VideoError, match=r"stuck\.mp4: timeout: more than 0\.2 s, given up earlier"):
            run_limited(lambda: called.append("again"), "stuck.mp4", 0.2)
        assert not called  # the second time it is refused at once
        assert sum(t.name == "vmae-read" for t in threading.enumerate()) == 1
    finally:
        release.set()


def test_values_and_errors_pass_through() -> None:
    assert run_limited(lambda: 5, "a.mp4", 1) == 5
    with pytest.raises(VideoError, match=r"a\.mp4: corrupt"):
        run_limited(lambda: (_ for _ in ()).throw(VideoError("a.mp4", "corrupt")), "a.mp4", 1)
