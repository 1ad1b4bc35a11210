"""The pre-training step on a CPU, ours against others', in turns in one process.

Hugging Face transformers' with eager and sdpa attention, these and ours also under torch.compile (ours block
by block, as `train.compile` does), and the official code from a clone. Forward, backward and fused AdamW on
the same clips and masks. The others get their pixels normalised beforehand, ours normalises uint8 inside the
step. Beside every figure stands what the step's matrix products alone take (`cpu_ceiling`). Peak memory is
the growth of a fresh process's resident set over three steps (`python -m vmae.experiments.bench.cpu_step` is
such a process).
"""

from __future__ import annotations

import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vmae.core.errors import InputError
from vmae.core.model.masking import mask_counts, sample_mask
from vmae.core.model.videomae import VideoMAE, VideoMAEConfig
from vmae.core.numerics import peak_resident
from vmae.core.train.step import compile_blocks
from vmae.experiments.bench.cpu_ceiling import Others, ceiling_ms, products, too_busy
from vmae.experiments.bench.machine import cpu_name
from vmae.experiments.bench.peers import official_loss, official_model, peer_pixels, transformers_model

CONTENDERS = ("vmae", "hf-eager", "hf-sdpa")
COMPILED = ("vmae-compiled", "hf-eager-compiled", "hf-sdpa-compiled")
OURS = ("vmae", "vmae-compiled")
OFFICIAL = "official"
CELLS = ("16x112x112:2", "16x112x112:8", "16x224x224:2", "16x224x224:8")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One thing to measure: a model size, a clip batch, a precision ("fp32", or "bf16" autocast), a mask."""

    size: str
    frames: int
    height: int
    width: int
    batch: int
    precision: str
    mask_ratio: float
    clone: str = ""
    """Of the official code, for the contender of that name."""

    @property
    def name(self) -> str:
        return f"{self.frames}x{self.height}x{self.width} b{self.batch} {self.precision}"


def parse_shape(text: str) -> dict[str, int]:
    """Return frames, height, width and batch of "16x112x112:8". Raises InputError for anything else."""
    try:
        shape, batch = text.split(":")
        frames, height, width = (int(x) for x in shape.lower().split("x"))
        return {"frames": frames, "height": height, "width": width, "batch": int(batch)}
    except ValueError:
        raise InputError(f"expected a cell like 16x112x112:8 (TxHxW:batch), got {text!r}") from None


def stepper(contender: str, cell: Cell) -> Callable[[], float]:
    """A function that makes one training step and returns the loss."""
    config = VideoMAEConfig.from_size(cell.size, frames=cell.frames, height=cell.height, width=cell.width)
    generator = torch.Generator().manual_seed(0)
    shape = (cell.batch, *config.grid.clip_shape)
    video = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    mask = sample_mask("tube", cell.mask_ratio, config.grid, cell.batch, generator)
    torch.manual_seed(0)
    run: Callable[[], torch.Tensor]
    model: torch.nn.Module
    if contender in OURS:
        ours = VideoMAE(config)
        model = ours
        if contender != "vmae":
            compile_blocks(ours)

        def run() -> torch.Tensor:
            return ours(video, mask)
    elif contender == OFFICIAL:
        model = official_model(config, Path(cell.clone))
        run = official_loss(model, config, video, mask.to_bool())
    else:
        _, attention, *compiled = contender.split("-")
        model = transformers_model(config, attention)
        peer = torch.compile(model) if compiled else model
        pixels, positions = peer_pixels(config, video), mask.to_bool()

        def run() -> torch.Tensor:
            loss: torch.Tensor = peer(pixels, bool_masked_pos=positions).loss
            return loss

    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=True)

    def one() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=cell.precision == "bf16"):
            loss = run()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return one


def measure(
    cell: Cell, *, repeats: int, memory: bool, contenders: Sequence[str] = CONTENDERS
) -> dict[str, Any]:
    """One cell's result: milliseconds of every step (two warm-ups before), medians, the ratio, peak bytes.

    ceiling_ms: the step's products alone. others: cores that other processes used meanwhile; busy: too many.
    """
    config = VideoMAEConfig.from_size(cell.size, frames=cell.frames, height=cell.height, width=cell.width)
    steppers = {c: stepper(c, cell) for c in contenders}
    times: dict[str, list[float]] = {c: [] for c in contenders}
    for one in steppers.values():  # what is compiled is compiled before the others are counted
        one()
    visible, _ = mask_counts("tube", cell.mask_ratio, config.grid)
    dtype = torch.bfloat16 if cell.precision == "bf16" else torch.float32
    others = Others()
    ceiling = ceiling_ms(products(config, batch=cell.batch, visible=visible), dtype)
    for i in range(repeats + 1):
        for name, one in steppers.items():
            start = time.perf_counter()
            one()
            if i >= 1:
                times[name].append((time.perf_counter() - start) * 1e3)
    cores = others.cores()
    median = {c: statistics.median(times[c]) for c in contenders}
    result: dict[str, Any] = {"cell": cell.name, "ms": times, "ceiling_ms": ceiling, "others": cores}
    result["busy"] = too_busy(cores, torch.get_num_threads())
    if memory:
        result["peak_bytes"] = {c: _memory_of(c, cell) for c in contenders}
    own = min(ms for c, ms in median.items() if c in OURS)
    ratio = min(ms for c, ms in median.items() if c not in OURS) / own
    return result | {"median_ms": median, "ratio_to_faster_peer": ratio}


def geometric_mean(results: Sequence[dict[str, Any]]) -> float:
    """Of the cells' ratios."""
    return math.exp(statistics.fmean(math.log(r["ratio_to_faster_peer"]) for r in results))


def table(results: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: medians and the share of each that its products alone take, our range, the speed-up
    over the fastest peer, what others used, peak memory where measured."""
    names = list(results[0]["median_ms"])
    memory = "peak_bytes" in results[0]
    header = ["cell", *(f"{c.replace('-', ' ')} ms" for c in names), "products ms", "vmae range", "speed-up"]
    header += ["others' cores"]
    header += [f"{c.replace('-', ' ')} MiB" for c in names] if memory else []
    rows = []
    for r in results:
        low, high = min(r["ms"]["vmae"]), max(r["ms"]["vmae"])
        row = [r["cell"], *(f"{ms:.0f} ({r['ceiling_ms'] / ms:.0%})" for ms in r["median_ms"].values())]
        row += [f"{r['ceiling_ms']:.0f}", f"{low:.0f}-{high:.0f}", f"{r['ratio_to_faster_peer']:.2f}x"]
        row += ["?" if r["others"] is None else f"{r['others']:.1f}" + (" BUSY" if r["busy"] else "")]
        row += [f"{r['peak_bytes'][c] / 2**20:.0f}" for c in names] if memory else []
        rows.append(row)
    return header, rows


def document(
    results: Sequence[dict[str, Any]], *, size: str, repeats: int, mask_ratio: float
) -> dict[str, Any]:
    """What `--json` writes and the dashboard reads."""
    import transformers

    return {
        "machine": {
            "cpu": cpu_name(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "size": size,
        "repeats": repeats,
        "mask_ratio": mask_ratio,
        "geometric_mean": geometric_mean(results),
        "cells": list(results),
    }


def peak_memory(contender: str, cell: Cell) -> int:
    """Growth of this process's resident set, peak over three steps against before the model was built."""
    import psutil

    before = psutil.Process().memory_info().rss
    one = stepper(contender, cell)
    for _ in range(3):
        one()
    return peak_resident() - before


def _memory_of(contender: str, cell: Cell) -> int:
    task = json.dumps({"contender": contender, "cell": asdict(cell), "threads": torch.get_num_threads()})
    command = [sys.executable, "-m", "vmae.experiments.bench.cpu_step", task]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1])["peak_bytes"])


def main(argv: list[str]) -> int:
    """Print one contender's peak memory; the task is JSON: contender, cell, threads."""
    task = json.loads(argv[0])
    torch.set_num_threads(task["threads"])
    print(json.dumps({"peak_bytes": peak_memory(task["contender"], Cell(**task["cell"]))}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
