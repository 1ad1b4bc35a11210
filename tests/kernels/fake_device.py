"""A device that does what it is told: `FAKE_DEVICE` is JSON, {choice: what it does and how long it takes}.

Candidates run as they are, on the CPU (our ops compute their reference there); what a real device might do to
them is done here. {"ms": 1.0}; "noise": a share by which times vary from one to the next; "does": "wrong",
"spills", "raises", "hangs", "crashes", "differs", "unwritten", "loses the device", "compiles slowly"
("takes": for so many seconds).
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vmae.kernels.device import Device, Refused, Run
from vmae.kernels.sites import Site

LAYER = "fake_device:FakeDevice"


class FakeDevice(Device):
    device = "cpu"

    def __init__(self) -> None:
        self._told: dict[str, dict[str, Any]] = json.loads(os.environ["FAKE_DEVICE"])
        self._lost = False
        self._launched: dict[str, int] = {}

    def facts(self) -> dict[str, Any]:
        facts = {"gpu": "Fake 1000", "driver": self._told.get("driver", "1")}
        return facts | {"multiprocessors": self._told.get("multiprocessors", 1)}

    def family(self) -> int:
        return 90

    def _of(self, choice: str) -> dict[str, Any]:
        return self._told.get(choice, self._told.get("others", {"ms": 2.0}))

    def _log(self, what: str, choice: str) -> None:
        with Path(os.environ["FAKE_DEVICE_LOG"]).open("a") as f:
            f.write(f"{what} {choice}\n")

    def compile(self, run: Run, site: Site, choice: str, compiling: Callable[[bool], None]) -> None:
        self._log("compile", choice)
        does = self._of(choice).get("does")
        if does == "compiles slowly":
            compiling(True)
            time.sleep(self._of(choice)["takes"])
            compiling(False)
        if does == "spills":
            raise Refused("spills 64 in _short_fwd_kernel")
        if does == "raises":
            raise RuntimeError("out of resource: shared memory, Required: 118784, Hardware limit: 101376")

    def launch(self, run: Run, site: Site, choice: str) -> tuple[Tensor, ...]:
        self._log("launch", choice)
        does = self._of(choice).get("does")
        if does == "hangs":
            time.sleep(600)
        if does == "crashes":
            os.abort()
        if does == "loses the device":
            self._lost = True
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        out = run()
        times = self._launched[choice] = self._launched.get(choice, 0) + 1
        if does == "wrong":
            out = (*out[:-1], out[-1] * 1.01)
        if does == "differs" and times == 2:
            out = (torch.nextafter(out[0], out[0] + 1), *out[1:])
        if does == "unwritten":
            out = (torch.cat([out[0][:, :1], torch.empty_like(out[0][:, 1:])], dim=1), *out[1:])
        return out

    def clock(self, run: Run, site: Site, choice: str) -> Callable[[float], float]:
        told = self._of(choice)
        turns = itertools.cycle([1.0, 1 + told.get("noise", 0.01), 1 - told.get("noise", 0.01)])

        def measure(min_ms: float) -> float:
            self._log("clock", choice)
            return float(told["ms"]) * next(turns)

        return measure

    def synchronise(self) -> None:
        if self._lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
