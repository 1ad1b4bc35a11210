"""Reading in threads is left at once."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from vmae.core.video.cache import DecodedCache
from vmae.core.video.container import Deadline
from vmae.core.video.isolate import run_limited
from vmae.core.video.samples import Sample
from vmae.core.video.threads import reading_threads


def test_results_come_in_the_order_of_the_items() -> None:
    with reading_threads(4) as in_threads:
        assert list(in_threads(lambda n: (time.sleep(0.01 * (5 - n)), n)[1], range(5))) == [0, 1, 2, 3, 4]


def test_leaving_ends_what_is_under_way_and_drops_the_rest() -> None:
    begun: list[int] = []
    ended = threading.Event()

    def read(number: int) -> None:
        begun.append(number)
        deadline = Deadline("video.mp4", None)

        def decode() -> None:
            while True:
                deadline.check()
                time.sleep(0.01)

        try:
            run_limited(decode, "video.mp4", 60)
        finally:
            ended.set()

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), reading_threads(2) as in_threads:
        in_threads(read, range(100))
        while not begun:
            time.sleep(0.01)
        raise KeyboardInterrupt
    assert time.monotonic() - start < 2
    assert ended.is_set() and len(begun) <= 2


def test_a_deadline_outside_of_such_threads_goes_on() -> None:
    with pytest.raises(KeyboardInterrupt), reading_threads(1):
        raise KeyboardInterrupt
    Deadline("video.mp4", None).check()


def test_a_cache_that_is_left_off_ends_soon_and_leaves_nothing(tmp_path: Path) -> None:
    videos = []
    for number in range(40):
        videos.append(tmp_path / f"{number}.npy")
        np.save(videos[-1], np.full((4, 16, 16, 3), number, np.uint8))

    seen: list[int] = []

    def interrupt(done: int, total: int) -> None:
        seen.append(done)
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        samples = [Sample(path=str(v), label=0) for v in videos]
        DecodedCache.build(samples, tmp_path / "cache", 16, workers=1, progress=interrupt)
    assert seen == [0, 1, 2, 3], "it says at once that it has begun"
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".lock"]
