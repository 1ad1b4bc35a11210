"""Part (a) of the GPU suite: the kernel tests, small launches of every kernel, compute-sanitizer.

`python -m vmae.experiments.bench.gpu_tests DEVICE` makes the small launches.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vmae.kernels import use_kernels
from vmae.kernels.registry import OPS
from vmae.kernels.supervise import kill_group
from vmae.kernels.timing import TOLERANCE, relative_error

ROOT = Path(__file__).resolve().parents[2]
SANITIZERS = ("memcheck", "racecheck")
SANITIZER_LIMIT_S = 60.0
"""Each one's; they slow a program down a hundredfold and must not hold up the rest."""


def small_launches(device: str) -> float:
    """Launch every kernel once on small, awkward shapes; return the largest relative error."""
    with use_kernels("triton"):
        return max(
            relative_error(got.detach().cpu(), ref.detach().cpu())
            for op in OPS
            for got, ref in op.small_launches(device)
        )


def same_twice(device: str) -> bool:
    """Whether two runs of the small launches give the same bits; no kernel in them adds by atomics."""
    with use_kernels("triton"):
        runs = [[got for op in OPS for got, _ in op.small_launches(device)] for _ in range(2)]
    return all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def environment() -> dict[str, str]:
    """The environment of the suite's processes: this checkout, and compiled kernels where there is a GPU."""
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    if torch.cuda.is_available():
        env["TRITON_INTERPRET"] = "0"
    return env


@dataclass(kw_only=True)
class Background:
    """A process whose output goes to a file, so that one that is cut off leaves what it had said."""

    process: subprocess.Popen[bytes]
    log: Path
    until: float = float("inf")
    """Its own limit, time.monotonic."""

    @classmethod
    def start(cls, command: list[str], log: Path, *, limit_s: float = float("inf"), **env: str) -> Background:
        with log.open("wb") as f:
            process = subprocess.Popen(
                command, stdout=f, stderr=f, cwd=ROOT, env=environment() | env, start_new_session=True
            )
        return cls(process=process, log=log, until=time.monotonic() + limit_s)

    def result(self, until: float) -> dict[str, Any]:
        """Wait until `until` (time.monotonic) at most: exit code (None: cut off) and the last lines."""
        try:
            code: int | None = self.process.wait(timeout=max(0.1, min(until, self.until) - time.monotonic()))
        except subprocess.TimeoutExpired:
            kill_group(self.process)
            code = None
        tail = self.log.read_text(errors="replace").strip().splitlines()[-12:]
        return {"exit_code": code, "tail": tail} | ({} if code is not None else {"cut_off": True})


def start_tests(device: str, folder: Path) -> dict[str, Background | dict[str, Any]]:
    """Start the kernel tests, small launches of every kernel, and compute-sanitizer over those.

    What they print is kept in `folder`.
    """
    me = [sys.executable, "-m", "vmae.experiments.bench.gpu_tests", device]
    started: dict[str, Background | dict[str, Any]] = {}
    tests = ROOT / "tests" / "kernels" / "test_triton.py"
    if not tests.is_file():
        started["pytest"] = {"skipped": "the tests are not part of this installation"}
    elif importlib.util.find_spec("pytest") is None:
        started["pytest"] = {"skipped": "pytest is not installed"}
    else:
        command = [sys.executable, "-m", "pytest", str(tests), "-v", "--tb=short", "-W", "ignore"]
        command += ["-p", "no:cacheprovider"]
        if device == "cpu":
            command += ["-k", "decoder_tokens and dtype0"]
        elif importlib.util.find_spec("xdist") is not None:
            command += ["-n", "10", "--dist", "worksteal"]  # compiling is most of the time
        started["pytest"] = Background.start(command, folder / "pytest.log")
    started["small_launches"] = Background.start(me, folder / "small.log")
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    for tool in SANITIZERS:
        if device != "cuda" or not Path(sanitizer).exists():
            started[tool] = {"skipped": "no compute-sanitizer here"}
            continue
        command = [sanitizer, "--tool", tool, "--error-exitcode", "9", *me]
        started[tool] = Background.start(command, folder / f"{tool}.log", limit_s=SANITIZER_LIMIT_S)
    return started


def main(argv: list[str]) -> int:
    """Launch every kernel on the device named; return 1 where a result is wrong."""
    error = small_launches(argv[0])
    same = same_twice(argv[0])
    print(f"largest relative error {error:.2e}; two runs {'have the same bits' if same else 'DIFFER'}")
    return 0 if error < TOLERANCE and same else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
