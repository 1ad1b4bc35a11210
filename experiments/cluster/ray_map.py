"""One function over many items as Ray tasks on all nodes of a cluster: the shape of `run_isolated`.

An item whose process dies or whose node leaves is run again elsewhere (three times, then it is reported as a
crash); one that takes too long is cancelled and reported; one that raises is reported. None is ever lost, and
none stops the others. What must be resumable keeps its own journal of finished items (`data optimize` does).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from vmae.core.video.isolate import Outcome

MAX_RETRIES = 3
_FRESH_S = 60.0


def ray_map(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    *,
    workers: int,
    limit_s: float,
    gpus: float = 0.0,
) -> Iterator[Outcome]:
    """Yield an `Outcome` for every item, in the order in which they end; inside `cluster.connected`.

    Args:
        function: importable on the nodes, as are items and results.
        workers: items under way at a time; 0: as many as the cluster has cores (and GPUs, where an item
            takes some), counted again as nodes come and go.
        limit_s: seconds for one item (60 s more for a worker's start).
        gpus: GPUs of one item, may be a fraction.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayTaskError, TaskCancelledError

    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=MAX_RETRIES, retry_exceptions=False)(_call)
    shared = ray.put(function)
    waiting = list(enumerate(items))[::-1]
    under_way: dict[Any, tuple[int, float]] = {}
    cores, counted = _slots(gpus), time.monotonic()
    try:
        while waiting or under_way:
            if time.monotonic() - counted > 2.0:
                now = _slots(gpus)
                if now < cores:
                    # A lost node's items begin again elsewhere: so do their clocks.
                    under_way = {k: (i, time.monotonic()) for k, (i, _) in under_way.items()}
                cores, counted = now, time.monotonic()
            while waiting and len(under_way) < (workers or cores):
                index, item = waiting.pop()
                under_way[task.remote(shared, item)] = (index, time.monotonic())
            ready, _ = ray.wait(list(under_way), num_returns=1, timeout=1.0)
            for promise in ready:
                index, _ = under_way.pop(promise)
                try:
                    yield Outcome(index=index, value=ray.get(promise, timeout=60.0))
                except RayTaskError as e:
                    cause = e.cause if isinstance(getattr(e, "cause", None), Exception) else e
                    detail = f"{type(cause).__name__}: {cause}"
                    yield Outcome(index=index, failure="error", detail=detail)
                except (TaskCancelledError, GetTimeoutError) as e:
                    yield Outcome(index=index, failure="timeout", detail=type(e).__name__)
                except Exception as e:
                    lost = f"its process or node was lost {MAX_RETRIES + 1} times ({type(e).__name__})"
                    yield Outcome(index=index, failure="crash", detail=lost)
            late = [p for p, (_, t) in under_way.items() if time.monotonic() - t > limit_s + _FRESH_S]
            for promise in late:
                index, _ = under_way.pop(promise)
                with contextlib.suppress(Exception):
                    ray.cancel(promise, force=True)
                yield Outcome(index=index, failure="timeout", detail=f"more than {limit_s:g} s")
    finally:
        for promise in under_way:
            with contextlib.suppress(Exception):
                ray.cancel(promise, force=True)


def _call(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)


def _slots(gpus: float) -> int:
    import ray

    there = ray.cluster_resources()
    slots = there.get("CPU", 1.0)
    if gpus:
        slots = min(slots, there.get("GPU", 0.0) / gpus + 1e-6)
    return max(1, int(slots))
