"""What ran a benchmark: the processor or GPU as it reports itself, and the versions that matter."""

from __future__ import annotations

import importlib.util
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """The GPU where there is one, and the versions of what decides a kernel's speed."""
    facts: dict[str, Any] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu_count": os.cpu_count(),
    }
    for name in ("triton", "transformers", "numpy"):
        if importlib.util.find_spec(name) is not None:
            try:
                facts[name] = version(name)
            except PackageNotFoundError:
                facts[name] = "unknown"
    if torch.cuda.is_available():
        p = torch.cuda.get_device_properties(0)
        facts |= {
            "gpu": p.name,
            "capability": f"{p.major}.{p.minor}",
            "multiprocessors": p.multi_processor_count,
            "memory_gib": round(p.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return facts


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
