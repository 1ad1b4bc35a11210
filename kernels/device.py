"""What a trial asks of a device: facts, compile, launch, clock, synchronise. The real one is CUDA's.

A layer as thin as this one, so that everything above it runs against another in the tests: one whose kernels
win, lose, lie, hang or crash as they are told.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vmae.kernels.dispatch import family
from vmae.kernels.sites import Site
from vmae.kernels.table import digest_of_kernels
from vmae.kernels.timing import Clock

Run = Callable[[], tuple[Tensor, ...]]


class Refused(Exception):
    """A candidate that must not be chosen, and why."""


class Device:
    """The current CUDA device."""

    device = "cuda"

    def facts(self) -> dict[str, Any]:
        """What a measurement depends on: its fingerprint is made of it."""
        p = torch.cuda.get_device_properties(torch.cuda.current_device())
        return {
            "gpu": p.name,
            "capability": f"{p.major}.{p.minor}",
            "multiprocessors": p.multi_processor_count,
            "driver": _driver(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "triton": _version("triton"),
            "flash_attn": _version("flash_attn"),
            "kernels": digest_of_kernels(),
        }

    def family(self) -> int:
        """Of the GPU, as configurations name it."""
        return family()

    def compile(self, run: Run, site: Site, choice: str, compiling: Callable[[bool], None]) -> None:
        """Run once, so that all is compiled; raises Refused where a kernel then keeps registers in memory.

        compiling is told True before and False after everything that is compiled: only the time between says
        nothing about a hang.
        """
        before = _spills()
        with _told_of_compilations(compiling):
            run()
            self.synchronise()
        spilt = {name: n for name, n in _spills().items() if n and before.get(name) != n}
        if spilt:
            raise Refused("spills " + ", ".join(f"{n} in {name}" for name, n in spilt.items()))

    def launch(self, run: Run, site: Site, choice: str) -> tuple[Tensor, ...]:
        """Its results, computed."""
        out = run()
        self.synchronise()
        return out

    def clock(self, run: Run, site: Site, choice: str) -> Callable[[float], float]:
        """A function (at least so many ms of work) -> ms per call.

        Of a compiled site by replay of a CUDA graph, for launches do not count there; of an eager one by
        the host's clock, for they do.
        """
        if site.compiled:
            return Clock(run, 1, self.device).measure
        return lambda min_ms: self._wall(run, min_ms)

    def _wall(self, run: Run, min_ms: float) -> float:
        repeats = 1
        while True:
            self.synchronise()
            begin = time.perf_counter()
            for _ in range(repeats):
                run()
            self.synchronise()
            took = (time.perf_counter() - begin) * 1e3
            if took >= min_ms or repeats >= 1 << 14:
                return took / repeats
            repeats = min(1 << 14, max(2 * repeats, int(repeats * min_ms / max(took, 1e-3))))

    def synchronise(self) -> None:
        """Wait for all that was launched; raises where something of it went wrong."""
        torch.cuda.synchronize()


class Host(Device):
    """The CPU, for a dry run: no choice of it means anything."""

    device = "cpu"

    def facts(self) -> dict[str, Any]:
        return {"gpu": "none", "torch": torch.__version__, "kernels": digest_of_kernels()}

    def clock(self, run: Run, site: Site, choice: str) -> Callable[[float], float]:
        begin = time.perf_counter()
        run()
        took = (time.perf_counter() - begin) * 1e3
        return lambda min_ms: took  # once is enough

    def synchronise(self) -> None:
        """Nothing is queued."""


def device_named(layer: str) -> Device:
    """The device of a layer, `module:class`."""
    module, _, name = layer.partition(":")
    made: Device = getattr(importlib.import_module(module), name)()
    return made


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Inside, memory that torch allocates is NaN (or its integers' largest) until somebody writes it."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@contextlib.contextmanager
def _told_of_compilations(compiling: Callable[[bool], None]) -> Iterator[None]:
    """Inside, `compiling` hears of the beginning and the end of each of Triton's compilations."""
    if importlib.util.find_spec("triton") is None:
        yield
        return
    from triton import knobs

    def begins(**kernel: Any) -> bool:
        compiling(True)
        return False  # True: do not compile

    def ends(**kernel: Any) -> bool:
        compiling(False)
        return False

    hooks: Any = knobs.runtime
    before = hooks.jit_cache_hook, hooks.jit_post_compile_hook
    hooks.jit_cache_hook, hooks.jit_post_compile_hook = begins, ends
    try:
        yield
    finally:
        hooks.jit_cache_hook, hooks.jit_post_compile_hook = before


def _spills() -> dict[str, int]:
    """Registers spilt by each Triton kernel of ours that this process has compiled."""
    found: dict[str, int] = {}
    for name, module in list(sys.modules.items()):
        if not (name.startswith(f"{__package__}.") and name.endswith(".triton_kernels")):
            continue
        for kernel in vars(module).values():
            for cache in getattr(kernel, "device_caches", {}).values():
                compiled = cache[0] if isinstance(cache, tuple) else cache
                for key, entry in compiled.items() if isinstance(compiled, dict) else ():
                    label = f"{getattr(kernel, '__name__', 'kernel')} {hash(str(key)) & 0xFFFF:04x}"
                    found[label] = int(getattr(entry, "n_spills", 0) or 0)
    return found


def _driver() -> str:
    text = Path("/proc/driver/nvidia/version")
    found = re.search(r"\b\d{3}\.\d+(?:\.\d+)?\b", text.read_text()) if text.is_file() else None
    return found[0] if found else "unknown"


def _version(package: str) -> str:
    if importlib.util.find_spec(package) is None:
        return "none"
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
