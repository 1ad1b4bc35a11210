"""Before a run's first step: which kernels it calls, measured once on this machine, and what is used."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vmae.core.files import read_json, write_json
from vmae.core.numerics import autocast, resolve_precision
from vmae.core.train.config import TrainConfig
from vmae.core.train.parallel import World, transformer_blocks
from vmae.core.train.task import Report, StepContext, Task
from vmae.core.video.clips import ClipDataset
from vmae.core.video.loader import blank_batch
from vmae.kernels import calibrate, dispatch, sites, table
from vmae.kernels import device as devices

FILE = "kernels.json"
"""In a run's folder: what its kernels were chosen by, so that a resumed run computes as before."""
WORTH_S = 600.0
"""A shorter run takes what is known and measures nothing."""
BUDGET_S = {False: 30.0, True: 60.0}
"""For measuring, without and with compiled sites."""
FLOPS_PER_SM = 1e12
"""A second, in 16 bits, that a step reaches on a multiprocessor, to guess a run's length by (estimate: 40% of
what an RTX 4090 or an H200 claims is 0.5 to 3 times as much); a quarter of it in float32."""
LAYER = calibrate.CUDA
"""The device that is measured."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What else is known before the first step."""

    worth: bool = False
    """Whether the run is long enough to try how its step runs."""
    saved: dict[str, Any] | None = None
    """What a run that is resumed went by so far."""


def prepare_kernels(
    task: Task,
    model: nn.Module,
    dataset: ClipDataset,
    *,
    train: TrainConfig,
    steps: int,
    device: torch.device,
    run_dir: Path,
    resume: bool,
    report: Report,
) -> Prepared:
    """Choose each op's kernels for a run of `steps` steps: by the run's own table, the machine's, or now.

    Reports an event `kernels` (`lines`: one a site; `choices`; `fingerprint`; `seconds`; `measured`: how many
    now) and leaves `kernels.json` in `run_dir`. Whatever goes wrong costs a warning, and torch's way is
    taken. Nothing is done on a CPU, with VMAE_CALIBRATE=off, or where VMAE_KERNELS chooses.
    """
    wanted = calibrate.wish()
    if (device.type != "cuda" and LAYER == calibrate.CUDA) or wanted == "off" or dispatch.mode() != "auto":
        dispatch.install({})
        return Prepared()
    place, precision = run_dir / FILE, resolve_precision(train.precision, device)
    try:
        facts = devices.device_named(LAYER).facts()
        saved, worth = read_json(place) if resume else None, False
        if saved is not None and saved["fingerprint"] == table.fingerprint(facts) and wanted != "force":
            rows = table.from_json(saved["sites"])
            outcome = calibrate.Outcome(rows=rows, fingerprint=saved["fingerprint"])
            outcome.lines = [f"{key}: {row.choice}, as this run began" for key, row in rows.items()]
        else:
            rows_of_clips = train.batch_size // (World.current().size * train.accumulate)
            works = [
                find_work(
                    task,
                    model,
                    few_inputs(task, dataset),
                    rows=rows_of_clips * dataset.clips_per_video,
                    precision=precision,
                    compiled=compiled,
                )
                for compiled in _ways(train)
            ]
            rate = FLOPS_PER_SM * facts.get("multiprocessors", 1) / (4 if precision == "fp32" else 1)
            worth = works[0].flops * train.accumulate * steps / rate > WORTH_S or wanted == "force"
            outcome = calibrate.calibrate(
                {site: n for work in works for site, n in work.calls.items()},
                budget_s=BUDGET_S[True in _ways(train)] if worth else 0.0,
                only_known=not worth,
                force=wanted == "force",
                layer=LAYER,
            )
            if World.current().rank == 0:
                write_json(place, {"fingerprint": outcome.fingerprint, "sites": table.to_json(outcome.rows)})
    except Exception as e:
        dispatch.install({})
        text = (str(e).splitlines() or [""])[0]
        report(
            "warning", {"step": 0, "text": f"kernels not measured ({type(e).__name__}: {text}); torch's way"}
        )
        return Prepared()
    dispatch.install(outcome.rows)
    report(
        "kernels",
        {
            "lines": outcome.lines,
            "choices": {key: row.choice for key, row in outcome.rows.items()},
            "fingerprint": outcome.fingerprint,
            "seconds": outcome.seconds,
            "measured": outcome.measured,
        },
    )
    return Prepared(worth=worth, saved=saved)


def _ways(train: TrainConfig) -> tuple[bool, ...]:
    """Whether blocks will be compiled: no, yes, or one of both."""
    return (train.compile,) if isinstance(train.compile, bool) else (False, True)


def few_inputs(task: Task, dataset: ClipDataset) -> tuple[Tensor, ...]:
    """What the loss of one video's black clips is made of, on the CPU."""
    batch = blank_batch(dataset)
    rows = torch.arange(dataset.clips_per_video)
    context = StepContext(
        seed=0, epoch=0, step=0, rows=rows, first_row=0, total_rows=len(rows), device=torch.device("cpu")
    )
    return task.inputs({**batch, **task.ahead(batch, context)}, context)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one forward and backward of a micro-batch calls, and how much there is of it."""

    calls: dict[sites.Site, int] = field(default_factory=dict)
    """How often a micro-batch calls each site."""
    flops: float = 0.0
    """Of its matrix products."""


def find_work(
    task: Task, model: nn.Module, inputs: Sequence[Tensor], *, rows: int, precision: str, compiled: bool
) -> Work:
    """Run forward and backward once on fake tensors: nothing is computed, the model is left alone.

    inputs: of a micro-batch with few clips, on the CPU; what is found is scaled to `rows`
    clips. precision: resolved (`fp32`, `bf16`, `fp16`). compiled: whether the transformer's blocks will be.
    """
    from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    few = len(inputs[0])
    # Constants that the model keeps beside its buffers may be real tensors.
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, sites.recorded() as found:
        unreal = _unreal(model)
        unreal.train()
        if compiled:
            _mark_compiled(unreal, found)
        given = [fake.from_tensor(x) for x in inputs]
        with FlopCounterMode(display=False) as counter:
            whole = 1.0
            try:
                with autocast(precision, torch.device("cpu")):
                    loss = task.loss(unreal, *given)
                loss.backward()
            except DataDependentOutputException:
                # A head that reads values (boxes) cannot be followed; the encoder before it was. Its backward
                # pass has twice the products of what was counted.
                whole = 3.0
    scale = rows / few
    calls: dict[sites.Site, int] = {}
    for few_clips, times in found.calls.items():
        site = few_clips.scaled(scale)
        calls[site] = calls.get(site, 0) + times
    attention = sum(n * _attention_flops(site) for site, n in calls.items())
    return Work(calls=calls, flops=counter.get_total_flops() * scale * whole + attention)


def _unreal(model: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers are fake, inside a FakeTensorMode."""
    memo: dict[int, Any] = {}
    for p in model.parameters():
        memo[id(p)] = nn.Parameter(torch.empty(p.shape, dtype=p.dtype), requires_grad=p.requires_grad)
    for b in model.buffers():
        memo[id(b)] = torch.empty(b.shape, dtype=b.dtype)
    return copy.deepcopy(model, memo)


def _mark_compiled(model: nn.Module, found: sites.Recorder) -> None:
    def enter(module: nn.Module, args: Any) -> None:
        found.compiled = True

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        found.compiled = False

    for blocks in transformer_blocks(model):
        for block in blocks:
            block.register_forward_pre_hook(enter)
            block.register_forward_hook(leave)


def _attention_flops(site: sites.Site) -> float:
    """Of the one op whose products the counter does not see; 2 products forward, 5 more backward."""
    if site.op != "fused_attention":
        return 0.0
    n, queries = site.size("N"), site.size("N") - site.size("first")
    width = site.size("H") * site.size("D")
    return 4.0 * site.batch * n * queries * width * (3.5 if site.grad else 1.0)
