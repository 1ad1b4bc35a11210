"""What training, measuring and showing have in common: seeds from words, precision, a clip on its device."""

from __future__ import annotations

import contextlib
import hashlib
import struct
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from integers and words; the same parts give the same seed on every machine."""
    packed = b"".join(struct.pack("<q", p) if isinstance(p, int) else p.encode() + b"\0" for p in parts)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1


def make_generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by `derive_seed(*parts)`."""
    generator = torch.Generator()
    generator.manual_seed(derive_seed(*parts))
    return generator


def resolve_precision(precision: str, device: torch.device) -> str:
    """`auto` becomes bf16 on a GPU that has it and fp32 elsewhere; anything else stays."""
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(False) else "fp32"


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The autocast region of a resolved precision (nothing for fp32)."""
    if precision == "fp32":
        return contextlib.nullcontext()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return torch.autocast(device.type, dtype=dtype)


def clip_to_video(clip: Tensor, device: torch.device) -> Tensor:
    """A loader's uint8 `[B, T, H, W, C]` as `[B, C, T, H, W]` on the device.

    A permuted view: bytes move once, and pixels stay uint8.
    """
    return clip.to(device, non_blocking=True).permute(0, 4, 1, 2, 3)


def peak_memory(device: torch.device) -> dict[str, float]:
    """`peak_mem_gib`, so far: the device's, or the process's on a CPU."""
    if device.type == "cuda":
        return {"peak_mem_gib": torch.cuda.max_memory_allocated(device) / 2**30}
    return {"peak_mem_gib": peak_resident() / 2**30}


def peak_resident() -> int:
    """The largest resident set of this process so far, in bytes.

    Linux: VmHWM. Not getrusage, whose ru_maxrss in a child starts at what its parent had when it forked.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
