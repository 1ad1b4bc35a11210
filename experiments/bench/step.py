"""The whole pre-training step, timed: ours in every form against transformers' VideoMAE on the same GPU.

Forward, loss, backward, clipping and AdamW; random resident clips, so no loading is timed. Ours
reads uint8 clips; transformers' receives clips that are already normalised floats, which spares it work.
Variants of a case take turns; medians and quartiles stay.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vmae.core.model.masking import MaskConfig, TokenMask, sample_mask
from vmae.core.model.videomae import VideoMAE, VideoMAEConfig
from vmae.core.plan import make_plan
from vmae.core.train.graph import capture_step
from vmae.core.train.parallel import transformer_blocks
from vmae.experiments.bench.peers import peer_pixels, transformers_model
from vmae.kernels import use_kernels

LOSS_TOLERANCE = 1e-2  # relative difference of the first loss against our torch path, bfloat16


@dataclass(frozen=True, kw_only=True)
class StepCase:
    """One model size, mask ratio and batch."""

    size: str
    ratio: float
    batch: int

    @property
    def label(self) -> str:
        return f"{self.size} at {self.ratio}, batch {self.batch}"

    def config(self) -> VideoMAEConfig:
        return VideoMAEConfig.from_size(self.size)

    def flops_per_clip(self) -> int:
        """Of forward and backward, matrix products only, as `vmae plan` counts them."""
        mask = MaskConfig(type="tube", ratio=self.ratio)
        plan = make_plan(
            self.config(), mask, batch=1, gpu="h200", gpus=1, videos=1, epochs=1, utilisation=0.5
        )
        return plan.training_flops


# Most telling first: the suite stops taking new cases when its time is up, and says which it left out.
CASES = (
    StepCase(size="base", ratio=0.9, batch=64),
    StepCase(size="base", ratio=0.75, batch=64),
    StepCase(size="large", ratio=0.9, batch=32),
    StepCase(size="small", ratio=0.9, batch=64),
    StepCase(size="base", ratio=0.95, batch=64),
    StepCase(size="huge", ratio=0.9, batch=16),
    StepCase(size="large", ratio=0.75, batch=32),
    StepCase(size="large", ratio=0.95, batch=32),
    StepCase(size="small", ratio=0.75, batch=64),
    StepCase(size="small", ratio=0.95, batch=64),
)
TINY = (StepCase(size="tiny", ratio=0.75, batch=2),)


def cases(*, dry_run: bool) -> tuple[StepCase, ...]:
    """Return the cases, most telling first."""
    return TINY if dry_run else CASES


def _autocast(device: str) -> torch.autocast:
    return torch.autocast(device, dtype=torch.bfloat16, cache_enabled=False)


def _optimizer(model: nn.Module, device: str) -> torch.optim.AdamW:
    capturable = device == "cuda"
    rate: Any = torch.tensor(1.5e-4, device=device) if capturable else 1.5e-4
    return torch.optim.AdamW(
        model.parameters(),
        lr=rate,
        betas=(0.9, 0.95),
        weight_decay=0.05,
        fused=True,
        capturable=capturable,
    )


def _inputs(case: StepCase, device: str) -> tuple[Tensor, TokenMask]:
    grid = case.config().grid
    gen = torch.Generator(device).manual_seed(7)
    shape = (case.batch, grid.frames, grid.height, grid.width, grid.channels)
    clip = torch.randint(0, 256, shape, generator=gen, device=device, dtype=torch.uint8)
    mask = sample_mask("tube", case.ratio, grid, case.batch, gen, device)
    return clip.permute(0, 4, 1, 2, 3), mask


def our_step(
    case: StepCase,
    device: str,
    *,
    mode: str,
    compile_backend: str | None,
    graph: bool,
    by_block: bool = False,
) -> Callable[[], Tensor]:
    """Our whole step: `mode` torch, triton or auto, compiled (by block or whole), as a CUDA graph, or not."""
    torch.manual_seed(0)
    model = VideoMAE(case.config()).to(device).train()
    optimizer = _optimizer(model, device)
    video, mask = _inputs(case, device)

    def loss_of(video: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
        return model(video, TokenMask(visible, masked))

    forward = loss_of
    if by_block:
        for blocks in transformer_blocks(model):
            for block in blocks:
                block.compile(dynamic=False, backend=compile_backend or "inductor")
    elif compile_backend is not None:
        forward = torch.compile(loss_of, fullgraph=True, backend=compile_backend)

    def step(video: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with use_kernels(mode), _autocast(device):
            loss = forward(video, visible, masked)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        return loss.detach()

    run: Callable[..., Tensor] = step
    if graph:
        run = capture_step(step, (video, mask.visible, mask.masked), model=model, optimizer=optimizer)
    return lambda: run(video, mask.visible, mask.masked)


def transformers_step(case: StepCase, device: str, *, compile_backend: str | None) -> Callable[[], Tensor]:
    """transformers' VideoMAEForPreTraining with sdpa attention, same sizes, optimiser and precision."""
    torch.manual_seed(0)
    model = transformers_model(case.config()).to(device).train()
    optimizer = _optimizer(model, device)
    video, mask = _inputs(case, device)
    pixels, masked = peer_pixels(case.config(), video), mask.to_bool()
    forward = model if compile_backend is None else torch.compile(model, backend=compile_backend)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with _autocast(device):
            loss = forward(pixel_values=pixels, bool_masked_pos=masked).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        value: Tensor = loss.detach()
        return value

    return step


def _variants(
    case: StepCase, device: str, backend: str, *, every: bool
) -> Iterator[tuple[str, bool, Callable[..., Any]]]:
    """(name, CUDA graph, builder). Graphs exist on a GPU only; not `every`: those that a bar is about."""

    def ours(**kwargs: Any) -> Callable[[], Callable[[], Tensor]]:
        return lambda: our_step(case, device, **kwargs)

    def theirs(**kwargs: Any) -> Callable[[], Callable[[], Tensor]]:
        return lambda: transformers_step(case, device, **kwargs)

    yield "ours, torch path", False, ours(mode="torch", compile_backend=None, graph=False)
    if device == "cuda":
        yield "ours, kernels + compile", True, ours(mode="triton", compile_backend=backend, graph=True)
        yield "ours, torch path + compile", True, ours(mode="torch", compile_backend=backend, graph=True)
        yield "ours, best paths + compile", True, ours(mode="auto", compile_backend=backend, graph=True)
        by_block: dict[str, Any] = {"mode": "auto", "compile_backend": backend, "by_block": True}
        yield "ours, best paths + blocks compiled", True, ours(**by_block, graph=True)
        yield "ours, best paths + blocks compiled", False, ours(**by_block, graph=False)
        yield "ours, best paths", True, ours(mode="auto", compile_backend=None, graph=True)
        yield "ours, torch path", True, ours(mode="torch", compile_backend=None, graph=True)
    yield "transformers sdpa", False, theirs(compile_backend=None)
    yield "transformers sdpa + compile", False, theirs(compile_backend=backend)
    if device == "cuda":
        yield "ours, kernels", True, ours(mode="triton", compile_backend=None, graph=True)
    if every:
        yield "ours, kernels", False, ours(mode="triton", compile_backend=None, graph=False)
        yield "ours, best paths", False, ours(mode="auto", compile_backend=None, graph=False)
        yield "ours, kernels + compile", False, ours(mode="triton", compile_backend=backend, graph=False)
        yield "ours, torch path + compile", False, ours(mode="torch", compile_backend=backend, graph=False)


def warm_case(case: StepCase, device: str) -> None:
    """Compile what `run_case` compiles, into the compilers' caches; failures show there."""
    for build in (
        lambda: our_step(case, device, mode="triton", compile_backend="inductor", graph=False),
        lambda: our_step(case, device, mode="torch", compile_backend="inductor", graph=False),
        lambda: transformers_step(case, device, compile_backend="inductor"),
    ):
        with contextlib.suppress(Exception):
            build()()
        torch.compiler.reset()
        torch.cuda.empty_cache()


def run_case(
    case: StepCase,
    device: str,
    *,
    dry_run: bool = False,
    every_variant: bool = True,
    skip: Mapping[str, str] | None = None,
    announce: Callable[[str], None] = lambda name: None,
) -> list[dict[str, Any]]:
    """Build, check and time every variant of one case; one row each.

    skip: variants ("name" or "name + graph") that are not run, and why. announce is told a variant's name
    before anything of it runs. dry_run: without inductor, two rounds. Variants that fit into memory together
    are timed in turns.
    """
    rows: list[dict[str, Any]] = []
    ready: list[tuple[dict[str, Any], Callable[[], Tensor]]] = []
    expected: float | None = None
    backend, rounds = ("aot_eager", 2) if dry_run else ("inductor", 9)
    for name, graph, build in _variants(case, device, backend, every=every_variant):
        row: dict[str, Any] = {
            "size": case.size,
            "ratio": case.ratio,
            "batch": case.batch,
            "variant": name,
            "graph": graph,
            "flops_per_clip": case.flops_per_clip(),
        }
        rows.append(row)
        if skip and _full_name(row) in skip:
            row["refused"] = skip[_full_name(row)]
            continue
        announce(_full_name(row))
        begin = time.perf_counter()
        try:
            base = _memory_start(device)
            run = build()
            row["loss"] = float(run())
            for _ in range(2):
                run()
            row["peak_mem_gib"] = _memory_peak(device, base)
            row["prepare_s"] = round(time.perf_counter() - begin, 1)
        except Exception as e:  # a variant that cannot run is a row that says so
            row["refused"] = f"{type(e).__name__}: {str(e).splitlines()[0][:200] if str(e) else ''}"
            if device == "cuda":
                torch.cuda.synchronize()  # raises where the GPU is lost to this process: the worker ends
            continue
        if name.startswith("ours"):
            expected = row["loss"] if expected is None else expected
            off = abs(row["loss"] / expected - 1)
            if not off <= LOSS_TOLERANCE:
                row["refused"] = f"wrong loss: {row['loss']:.6g}, our torch path has {expected:.6g}"
                continue
        elif not 0 < row["loss"] < 100:
            row["refused"] = f"wrong loss: {row['loss']:.6g}"
            continue
        ready.append((row, run))
        del run
        if _memory_is_short(device):
            _time_in_turns(ready, case, device, rounds, announce)
            ready.clear()
            gc.collect()
    _time_in_turns(ready, case, device, rounds, announce)
    torch.compiler.reset()
    return rows


def _time_in_turns(
    ready: list[tuple[dict[str, Any], Callable[[], Tensor]]],
    case: StepCase,
    device: str,
    rounds: int,
    announce: Callable[[str], None],
) -> None:
    """Fill in the rows of the variants that are in memory together."""
    samples: list[list[float]] = [[] for _ in ready]
    for _ in range(rounds):
        for values, (row, run) in zip(samples, ready, strict=True):
            announce(_full_name(row))
            values.append(_time_ms(run, device, 2))
    for values, (row, _) in zip(samples, ready, strict=True):
        row["ms"] = statistics.median(values)
        row["ms_q1"], _, row["ms_q3"] = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
        row["clips_per_s"] = case.batch / (row["ms"] * 1e-3)
        row["flop_per_s"] = row["clips_per_s"] * row["flops_per_clip"]


def _memory_is_short(device: str) -> bool:
    """Whether another variant beside those in memory might not fit: models, optimisers and graphs stay."""
    if device != "cuda":
        return False
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return free < 0.45 * total


def _full_name(row: Mapping[str, Any]) -> str:
    return str(row["variant"]) + (" + graph" if row["graph"] else "")


def _memory_start(device: str) -> int:
    if device != "cuda":
        return 0
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _memory_peak(device: str, base: int) -> float | None:
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - base) / 2**30


def _time_ms(run: Callable[[], Tensor], device: str, steps: int) -> float:
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(steps):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / steps
    begin = time.perf_counter()
    for _ in range(steps):
        run()
    return (time.perf_counter() - begin) * 1e3 / steps


def profile_step(device: str, *, dry_run: bool) -> dict[str, Any]:
    """One step of ViT-B at 0.9 by the best paths, blocks compiled: name, calls, ms, largest first."""
    from torch.profiler import ProfilerActivity, profile

    case = TINY[0] if dry_run else CASES[0]
    best: dict[str, Any] = {"mode": "auto", "compile_backend": "aot_eager" if dry_run else "inductor"}
    run = our_step(case, device, **best, graph=False, by_block=True)
    for _ in range(3):
        run()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with profile(activities=activities) as trace:
        run()
        if device == "cuda":
            torch.cuda.synchronize()
    rows = []
    for event in trace.key_averages():
        us = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        if us > 0:
            rows.append({"kernel": event.key[:120], "calls": event.count, "ms": us / 1e3})
    rows.sort(key=lambda r: -float(str(r["ms"])))
    return {"size": case.size, "ratio": case.ratio, "batch": case.batch, "kernels": rows[:40]}
