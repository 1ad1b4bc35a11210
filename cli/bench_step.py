"""`vmae bench step`: the CPU pre-training step, ours against Hugging Face transformers', in one run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

CONTENDERS = ("vmae", "hf-eager", "hf-sdpa")
CELLS = ("16x112x112:2", "16x112x112:8", "16x224x224:2", "16x224x224:8")


@click.command()
@click.option("--size", default="small", show_default=True, help="Named model size.")
@click.option("--cell", "cells", multiple=True, metavar="TxHxW:B", help="Clip shape and batch; repeatable.  "
              "[default: 16 frames of 112 and 224 pixels, batches 2 and 8]")  # fmt: skip
@click.option("--precision", "precisions", multiple=True, type=click.Choice(["fp32", "bf16"]),
              help="fp32, or bf16 autocast; repeatable.  [default: both]")  # fmt: skip
@click.option("--repeats", default=7, show_default=True, help="Timed steps of each contender.")
@click.option("--threads", type=int, help="CPU threads.  [default: torch's]")
@click.option("--mask-ratio", default=0.9, show_default=True, help="Tube mask.")
@click.option(
    "--memory/--no-memory", default=True, show_default=True, help="Also peak memory, in fresh processes."
)
@click.option("--json", "json_path", type=click.Path(), help="Write every number to this file.")
@click.option("--worker", hidden=True, help="One contender's peak memory (used by --memory).")
def step(
    *,
    size: str,
    cells: tuple[str, ...],
    precisions: tuple[str, ...],
    repeats: int,
    threads: int | None,
    mask_ratio: float,
    memory: bool,
    json_path: str | None,
    worker: str | None,
) -> None:
    """Forward, backward and fused AdamW of pre-training, against transformers with eager and sdpa attention.

    The three take turns step by step in one process; medians are compared. They train on the same clips and
    masks; transformers gets its pixels normalised beforehand, ours normalises uint8 inside the step. Peak
    memory is the growth of a fresh process's resident set over three steps.
    """
    import json
    import platform

    import torch

    from vmae.cli.tables import format_table
    from vmae.core.errors import InputError

    if threads is not None:
        torch.set_num_threads(threads)
    parsed = [_parse_cell(c) for c in cells or CELLS]
    if worker is not None:
        (cell,), (precision,) = parsed, precisions
        click.echo(json.dumps({"peak_bytes": _peak_memory(worker, size, cell, precision, mask_ratio)}))
        return
    if repeats < 1:
        raise InputError(f"expected repeats of at least 1, got {repeats}")
    results = []
    for frames, height, width, batch in parsed:
        for precision in precisions or ("fp32", "bf16"):
            cell = (frames, height, width, batch)
            name = f"{frames}x{height}x{width} b{batch} {precision}"
            click.echo(f"{name} ...", err=True)
            times = _interleaved(size, cell, precision, mask_ratio, repeats)
            result: dict[str, Any] = {"cell": name, "ms": times}
            if memory:
                result["peak_bytes"] = {
                    c: _memory_of(c, size, cell, precision, mask_ratio, torch.get_num_threads())
                    for c in CONTENDERS
                }
            results.append(result)
    rows, ratios = [], []
    for r in results:
        median = {c: _median(r["ms"][c]) for c in CONTENDERS}
        ratio = min(median["hf-eager"], median["hf-sdpa"]) / median["vmae"]
        r["median_ms"], r["ratio_to_faster_peer"] = median, ratio
        ratios.append(ratio)
        low, high = min(r["ms"]["vmae"]), max(r["ms"]["vmae"])
        row = [r["cell"], *(f"{median[c]:.0f}" for c in CONTENDERS), f"{low:.0f}-{high:.0f}", f"{ratio:.2f}x"]
        if memory:
            row += [f"{r['peak_bytes'][c] / 2**20:.0f}" for c in CONTENDERS]
        rows.append(row)
    header = ["cell", "vmae ms", "hf eager ms", "hf sdpa ms", "vmae range", "speed-up"]
    header += ["vmae MiB", "hf eager MiB", "hf sdpa MiB"] if memory else []
    click.echo(format_table(header, rows))
    product = 1.0
    for x in ratios:
        product *= x
    mean = product ** (1 / len(ratios))
    click.echo(f"\nspeed-up over the faster peer, geometric mean of {len(ratios)} cells: {mean:.2f}x")
    if json_path:
        import transformers

        machine = {
            "cpu": _cpu_name(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        }
        document = {
            "machine": machine,
            "size": size,
            "repeats": repeats,
            "mask_ratio": mask_ratio,
            "geometric_mean": mean,
            "cells": results,
        }
        with open(json_path, "w") as f:
            json.dump(document, f, indent=1)


def _parse_cell(text: str) -> tuple[int, int, int, int]:
    from vmae.core.errors import InputError

    try:
        shape, batch = text.split(":")
        frames, height, width = (int(x) for x in shape.lower().split("x"))
        return frames, height, width, int(batch)
    except ValueError:
        raise InputError(f"expected a cell like 16x112x112:8 (TxHxW:batch), got {text!r}") from None


def _stepper(
    contender: str, size: str, cell: tuple[int, int, int, int], precision: str, mask_ratio: float
) -> Callable[[], float]:
    """A function that makes one training step and returns the loss."""
    import torch

    from vmae.core.model.masking import sample_mask
    from vmae.core.model.videomae import VideoMAE, VideoMAEConfig

    frames, height, width, batch = cell
    config = VideoMAEConfig.from_size(size, frames=frames, height=height, width=width)
    generator = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (batch, *config.grid.clip_shape), dtype=torch.uint8, generator=generator)
    mask = sample_mask("tube", mask_ratio, config.grid, batch, generator)
    torch.manual_seed(0)
    run: Callable[[], torch.Tensor]
    model: torch.nn.Module
    if contender == "vmae":
        ours = VideoMAE(config)
        model = ours

        def run() -> torch.Tensor:
            return ours(video, mask)
    else:
        peer = _peer(config, contender.removeprefix("hf-"))
        model = peer
        mean = torch.tensor(config.mean).view(3, 1, 1, 1)
        std = torch.tensor(config.std).view(3, 1, 1, 1)
        pixels = ((video.float() / 255 - mean) / std).transpose(1, 2).contiguous()  # [B, T, C, H, W]
        positions = mask.to_bool()

        def run() -> torch.Tensor:
            loss: torch.Tensor = peer(pixels, bool_masked_pos=positions).loss
            return loss

    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=True)

    def one() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = run()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return one


def _peer(config: Any, attention: str) -> Any:
    """The same architecture in transformers, random weights."""
    try:
        from transformers import VideoMAEConfig as PeerConfig
        from transformers import VideoMAEForPreTraining
    except ImportError as e:
        from vmae.core.errors import InputError

        raise InputError("vmae bench step compares with transformers, which is not installed") from e
    return VideoMAEForPreTraining(
        PeerConfig(
            image_size=[config.height, config.width],
            patch_size=config.patch_size,
            num_channels=config.channels,
            num_frames=config.frames,
            tubelet_size=config.tubelet_size,
            hidden_size=config.embed_dim,
            num_hidden_layers=config.depth,
            num_attention_heads=config.num_heads,
            intermediate_size=config.mlp_dim,
            decoder_hidden_size=config.decoder_embed_dim,
            decoder_num_hidden_layers=config.decoder_depth,
            decoder_num_attention_heads=config.decoder_num_heads,
            decoder_intermediate_size=config.decoder_mlp_dim,
            use_mean_pooling=False,
            layer_norm_eps=config.norm_eps,
            attn_implementation=attention,  # type: ignore[call-arg]
        )
    )


def _interleaved(
    size: str, cell: tuple[int, int, int, int], precision: str, mask_ratio: float, repeats: int
) -> dict[str, list[float]]:
    """Milliseconds of each step of each contender, taking turns after two warm-up steps each."""
    import time

    steppers = {c: _stepper(c, size, cell, precision, mask_ratio) for c in CONTENDERS}
    times: dict[str, list[float]] = {c: [] for c in CONTENDERS}
    for i in range(repeats + 2):
        for name, one in steppers.items():
            start = time.perf_counter()
            one()
            if i >= 2:
                times[name].append((time.perf_counter() - start) * 1e3)
    return times


def _peak_memory(
    contender: str, size: str, cell: tuple[int, int, int, int], precision: str, mask_ratio: float
) -> int:
    """Growth of this process's resident set, peak over three steps against before the model was built."""
    import psutil

    if contender != "vmae":
        pass
    import vmae.core.model.videomae  # noqa: F401

    before = psutil.Process().memory_info().rss
    one = _stepper(contender, size, cell, precision, mask_ratio)
    for _ in range(3):
        one()
    return _high_water() - before


def _high_water() -> int:
    """The largest resident set of this process so far, in bytes."""
    from pathlib import Path

    status = Path("/proc/self/status")
    if status.is_file():
        # Not getrusage: a child's ru_maxrss starts at what its parent had when it forked.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _memory_of(
    contender: str,
    size: str,
    cell: tuple[int, int, int, int],
    precision: str,
    mask_ratio: float,
    threads: int,
) -> int:
    import json
    import subprocess
    import sys

    frames, height, width, batch = cell
    command = [sys.executable, "-m", "vmae", "bench", "step", "--worker", contender, "--size", size]
    command += ["--cell", f"{frames}x{height}x{width}:{batch}", "--precision", precision]
    command += ["--mask-ratio", str(mask_ratio), "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1])["peak_bytes"])


def _median(values: list[float]) -> float:
    import statistics

    return statistics.median(values)


def _cpu_name() -> str:
    import platform
    from pathlib import Path

    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
