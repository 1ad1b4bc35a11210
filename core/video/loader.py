"""Clips to uint8 batches, epoch after epoch: in which order, by which processes, what bad files do.

The order comes from `(seed, epoch)`, a clip's draws from `(seed, epoch, index)`; no global state. So a run
that stops and resumes, or uses other workers, sees the same clips. Bad files: never replaced by another clip
(see `ClipLoader`).
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import queue
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from vmae.core.errors import InputError, VideoError, VmaeError
from vmae.core.sockets import shorten_own_sockets
from vmae.core.video.clips import ClipDataset

T = TypeVar("T")
MOST_DEATHS = 3
"""Deaths of loader processes in an epoch that are made good."""
LIVING_S = 5
"""Seconds between looks at whether the loader's processes live, while none of them gives a batch."""
SHARED_MEMORY = Path("/dev/shm")
"""Where batches pass from the loader's processes to the training's."""
Prepare = Callable[[dict[str, Any]], dict[str, Any]]
"""What is done to a batch on the host, in the loader's thread: it gives another dictionary."""


class _Batches:
    """torch's `Dataset` protocol: whole batches of keys per call, so that a worker fills one array."""

    def __init__(self, dataset: ClipDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        return self.dataset.load_batch([key])

    def __getitems__(self, keys: list[tuple[int, int]]) -> dict[str, Any]:
        return self.dataset.load_batch(keys)


def _identity(batch: Any) -> Any:
    return batch


def read_ahead(source: Iterator[T], prepare: Callable[[T], T]) -> Iterator[T]:
    """Yield `prepare(item)` for every item, made in a thread one item ahead of the consumer.

    What `source` or `prepare` raises is raised to the consumer in its place; leaving the iteration ends the
    thread.
    """
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=1)
    stop = threading.Event()

    def put(entry: tuple[T | None, BaseException | None]) -> bool:
        while not stop.is_set():
            try:
                ready.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in source:
                if not put((prepare(item), None)):
                    return
            put((None, None))
        except BaseException as e:
            put((None, e))

    thread = threading.Thread(target=work, daemon=True, name="vmae-read-ahead")
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stop.set()
        thread.join()


def upload_ahead(
    source: Iterator[dict[str, Any]], device: torch.device, *, prepare: Prepare, quiet: threading.Lock
) -> Iterator[dict[str, Any]]:
    """Batches with their tensors on a CUDA device, prepared and copied one ahead on a stream of their own.

    The copy of the next batch runs beside the step on this one; the consumer's stream waits for its own
    batch's copy only. While someone holds `quiet` nothing is asked of the device.
    """
    if device.index is None:  # the copying thread does not inherit this thread's current device
        device = torch.device("cuda", torch.cuda.current_device())
    side = torch.cuda.Stream(device)

    def send(batch: dict[str, Any]) -> dict[str, Any]:
        sent = prepare(batch)
        with quiet, torch.cuda.device(device), torch.cuda.stream(side):
            for key, value in sent.items():
                if isinstance(value, torch.Tensor):
                    # Only page-locked memory is copied without holding up the host.
                    pinned = value if value.is_pinned() else value.pin_memory()
                    sent[key] = pinned.to(device, non_blocking=True)
            sent["_copied"] = side.record_event()
        return sent

    for batch in read_ahead(source, send):
        current = torch.cuda.current_stream(device)
        current.wait_event(batch.pop("_copied"))
        for value in batch.values():
            if isinstance(value, torch.Tensor):
                value.record_stream(current)
        yield batch


class ClipLoader:
    """Batches of one epoch after another; iterate, then `set_epoch(next)`, and iterate again.

    Bad files. Training: the video is left out (the batch is smaller by its clips, empty where all are bad),
    counted in `skipped` (path -> reason, of all epochs), and reported once; over `config.max_bad_share` of
    the rank's epoch it stops with a VideoError that lists them. So it is with a training list that is read
    as validation reads one (`dataset.leave_out`). Validation and test: a VideoError
    at once, or with `config.bad_eval == "count"` the batch's `failed` names it and the caller counts it as
    wrong.

    A read that is stuck inside a decoder is given up after its limit and its file refused from then on; with
    workers the processes are replaced after that batch, which ends the stuck call (every decoder here works
    outside the interpreter lock, so the rest of its process goes on). The clips that follow are the same.

    `wait_s` is the time the consumer waited in `next()`; `step_s` all time between the first and the last
    batch: their quotient is `perf/data_wait_share`.
    """

    def __init__(
        self,
        dataset: ClipDataset,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        rank: int,
        world_size: int,
        drop_last: bool,
        device: torch.device | None,
        prepare: Callable[[dict[str, Any], int, int], dict[str, Any]] | None,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size: expected at least 1, got {batch_size}")
        if not 0 <= rank < world_size:
            raise InputError(f"rank: expected 0 <= rank < world_size, got {rank} of {world_size}")
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.drop_last = drop_last
        self.device = device
        self.prepare = prepare
        self.quiet = threading.Lock()
        """Hold it and the loader's thread leaves a CUDA device alone."""
        self.skipped: dict[str, str] = {}
        self.wait_s = 0.0
        self.step_s = 0.0
        self._keys: list[list[tuple[int, int]]] = []
        self._torch_loader: Any = None
        self.set_epoch(0)
        if dataset.mode == "train" and len(self) == 0:
            raise InputError(
                f"batch_size: expected at most {self._per_rank()} (the videos of one rank, with drop_last), "
                f"got {batch_size}"
            )

    def _per_rank(self) -> int:
        n = len(self.dataset)
        if self.dataset.mode == "train":
            return n // self.world_size
        return len(range(self.rank, n, self.world_size))

    def __len__(self) -> int:
        """Batches of a whole epoch (before `skip_batches`)."""
        n = self._per_rank()
        return n // self.batch_size if self.drop_last else math.ceil(n / self.batch_size)

    def set_epoch(self, epoch: int, skip_batches: int = 0) -> None:
        """The epoch that the next iteration yields, from its batch number `skip_batches`."""
        self.epoch = epoch
        self.skip_batches = skip_batches
        self.dataset.set_epoch(epoch)

    def batches(self, epoch: int) -> list[list[int]]:
        """Video numbers of this rank's batches in an epoch.

        Training ranks get equal shares (up to `world_size - 1` videos are left out, others each epoch);
        evaluation ranks get every video exactly once among them.
        """
        n = len(self.dataset)
        order = np.random.default_rng((self.seed, epoch)).permutation(n) if self.shuffle else np.arange(n)
        mine = order[self.rank :: self.world_size][: self._per_rank()].tolist()
        return [mine[b * self.batch_size : (b + 1) * self.batch_size] for b in range(len(self))]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        keys = [[(self.epoch, i) for i in b] for b in self.batches(self.epoch)][self.skip_batches :]
        self.wait_s = self.step_s = 0.0
        start = time.perf_counter()
        source = self._source(keys)
        numbers, epoch = itertools.count(self.skip_batches), self.epoch

        def prepare(batch: dict[str, Any]) -> dict[str, Any]:
            return dict(batch) if self.prepare is None else self.prepare(batch, epoch, next(numbers))

        if self.device is not None and self.device.type == "cuda":
            source = upload_ahead(source, self.device, prepare=prepare, quiet=self.quiet)
        elif self.prepare is not None or self.dataset.config.workers:
            # Workers are begun in a thread of ours: begun in the main one, torch would raise the death of one
            # of them there, wherever it is, in the middle of a step or of writing a file.
            source = read_ahead(source, prepare)
        bad_now = 0
        while True:
            asked = time.perf_counter()
            batch = next(source, None)
            now = time.perf_counter()
            self.wait_s += now - asked
            self.step_s = now - start
            if batch is None:
                return
            bad_now += len(batch["failed"])
            if batch["failed"]:
                self._handle(batch, bad_now)
            yield batch

    @property
    def data_wait_share(self) -> float:
        """Share of the time of this iteration that was spent waiting for data, in [0, 1]."""
        return self.wait_s / self.step_s if self.step_s > 0 else 0.0

    def _source(self, keys: list[list[tuple[int, int]]]) -> Iterator[dict[str, Any]]:
        if self.dataset.config.workers == 0:
            return iter(self.dataset.load_batch(k) for k in keys)
        return self._from_workers(keys)

    def _from_workers(self, keys: list[list[tuple[int, int]]]) -> Iterator[dict[str, Any]]:
        done, deaths = 0, 0
        while done < len(keys):
            batches: Iterator[dict[str, Any]] | None = None
            stuck: set[str] = set()
            while done < len(keys) and not stuck:
                try:
                    # Workers of the last epoch are asked to go on: they may have died since.
                    batches = iter(self._workers_for(keys[done:])) if batches is None else batches
                    batch = self._next(batches)
                except RuntimeError as e:
                    if "DataLoader worker" not in str(e) and "timed out" not in str(e):
                        raise
                    deaths += 1
                    self._replace_dead(deaths, e)
                    break
                done += 1
                stuck = {f["path"] for f in batch["failed"] if f["stuck"]}
                yield batch
            if stuck:
                self.dataset.given_up |= stuck
                self._stop_workers()

    def _next(self, batches: Iterator[dict[str, Any]]) -> dict[str, Any]:
        """The workers' next batch; RuntimeError that names one that died, VmaeError where none comes."""
        # Above what a batch of files at their own limit takes: only a stuck worker gets here.
        patience = 60 + (2 * self.dataset.config.timeout_s + 1) * self.batch_size
        until = time.monotonic() + patience
        while True:
            try:
                return next(batches)
            except RuntimeError as e:
                if "timed out" not in str(e):
                    raise
                if time.monotonic() > until:
                    raise VmaeError(f"expected a batch of clips within {patience:.0f} s, got none") from e

    def _replace_dead(self, deaths: int, error: RuntimeError) -> None:
        """New worker processes for ones that were killed, which read the same clips again; VmaeError where
        it goes on and on."""
        said = (str(error).splitlines() or [""])[0]
        if deaths > MOST_DEATHS:
            raise VmaeError(
                f"expected loader processes that live, got {deaths} deaths in one epoch, the last: {said}; "
                "out of memory? use fewer with data.workers, or data.workers=0"
            ) from error
        logging.getLogger("vmae").warning("a loader process died and is replaced: %s", said)
        self._stop_workers()

    def _stop_workers(self) -> None:
        """End the worker processes; the next batches come from new ones, which know what was given up."""
        iterator = None if self._torch_loader is None else self._torch_loader._iterator
        self._torch_loader = None
        if iterator is not None:
            iterator._shutdown_workers()  # asks, waits 5 s, then terminates

    def _workers_for(self, keys: list[list[tuple[int, int]]]) -> Any:
        from torch.utils.data import DataLoader

        self._keys[:] = keys
        if self._torch_loader is None:
            self._check_shared_memory()
            shorten_own_sockets()
            with warnings.catch_warnings():
                # Recipes name the workers of the machines that they were made on.
                warnings.filterwarnings("ignore", message="This DataLoader will create")
                self._torch_loader = DataLoader(
                    _Batches(self.dataset),  # type: ignore[arg-type]
                    batch_sampler=self._keys,
                    num_workers=self.dataset.config.workers,
                    collate_fn=_identity,
                    pin_memory=torch.cuda.is_available(),
                    prefetch_factor=self.dataset.config.prefetch,
                    persistent_workers=True,
                    timeout=LIVING_S,
                )
        return self._torch_loader

    def _check_shared_memory(self) -> None:
        """Raise InputError where the batches under way between processes do not fit: workers would die one
        after the other, without a word."""
        data, views = self.dataset.config, self.dataset.clips_per_video
        batch = self.batch_size * views * data.frames * data.size[0] * data.size[1] * data.channels
        needed = batch * (data.workers * data.prefetch + 1)
        with contextlib.suppress(OSError):
            found = os.statvfs(SHARED_MEMORY)
            free = found.f_bavail * found.f_frsize
            if needed > free:
                raise InputError(
                    f"expected {needed / 2**20:.1f} MiB of shared memory for {data.workers} loader processes "
                    f"(batches of {batch / 2**20:.1f} MiB), got {free / 2**20:.1f} free in {SHARED_MEMORY}; "
                    "give the container more (--shm-size), or use data.workers=0"
                )

    def _handle(self, batch: dict[str, Any], bad_now: int) -> None:
        config = self.dataset.config
        for f in batch["failed"]:
            if not self.dataset.leave_out and config.bad_eval == "error":
                raise VideoError(f["path"], f["reason"], f["detail"])
            if f["path"] not in self.skipped:
                self.skipped[f["path"]] = f["reason"]
                logging.getLogger("vmae").warning(
                    "bad video %s: %s (%s)",
                    "skipped" if self.dataset.leave_out else "not read",
                    f["path"],
                    f["reason"],
                )
        if not self.dataset.leave_out:
            return
        share = bad_now / max(1, self._per_rank())
        if share > config.max_bad_share:
            named = ", ".join(f"{p} ({r})" for p, r in list(self.skipped.items())[:20])
            raise VideoError(
                batch["failed"][-1]["path"],
                "too_many_bad_files",
                f"{bad_now} of {self._per_rank()} videos of this epoch are bad, more than "
                f"max_bad_share={config.max_bad_share:g}: {named}; see `vmae data check`",
            )


def blank_batch(dataset: ClipDataset) -> dict[str, Any]:
    """One video's worth of black clips of no video, for a process that has none where others have."""
    views, config = dataset.clips_per_video, dataset.config
    return {
        "clip": torch.zeros((views, config.frames, *config.size, config.channels), dtype=torch.uint8),
        "label": torch.zeros(views, dtype=torch.int64),
        "index": torch.zeros(0, dtype=torch.int64),
        "cut": [],
        "path": [],
    }


def build_loader(
    dataset: ClipDataset,
    batch_size: int,
    *,
    shuffle: bool | None = None,
    seed: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    drop_last: bool | None = None,
    device: torch.device | str | None = None,
    prepare: Callable[[dict[str, Any], int, int], dict[str, Any]] | None = None,
) -> ClipLoader:
    """A loader of uint8 batches, at epoch 0; see `ClipDataset.load_batch` for what a batch holds.

    Args:
        batch_size: videos per batch of this rank (times `clips_per_video` clips).
        shuffle: a new order each epoch; default: in training.
        seed: of the order; default: the dataset's.
        drop_last: leave out an incomplete last batch; default: in training.
        device: a CUDA device to copy batches to, one ahead, on a side stream; else batches stay in memory.
        prepare: `prepare(batch, epoch, number)` makes each batch into the one that is yielded, a batch ahead
            in a thread; `number` is its place in the epoch.
    """
    training = dataset.mode == "train"
    return ClipLoader(
        dataset,
        batch_size,
        shuffle=training if shuffle is None else shuffle,
        seed=dataset.seed if seed is None else seed,
        rank=rank,
        world_size=world_size,
        drop_last=training if drop_last is None else drop_last,
        device=None if device is None else torch.device(device),
        prepare=prepare,
    )
