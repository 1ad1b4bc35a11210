"""What `core.numerics` says of a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vmae.core.numerics import peak_resident


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's /proc")
def test_a_childs_peak_is_its_own() -> None:
    """Forked from a process of a gigabyte, it reports what it took itself, and what it took at most."""
    ballast = bytearray(1 << 30)
    ballast[::4096] = b"\1" * (len(ballast) // 4096)
    code = (
        "from vmae.core.numerics import peak_resident; before = peak_resident();"
        "held = bytearray(200 << 20); held[::4096] = b'1' * (len(held) // 4096); del held;"
        "print(before, peak_resident())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        preexec_fn=os.getpid,  # fork, not vfork: with it a child's ru_maxrss starts at its parent's
    )  # fmt: skip
    before, after = map(int, done.stdout.split())
    assert peak_resident() > len(ballast) > before
    assert 150 << 20 < after - before < 250 << 20
