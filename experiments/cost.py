"""What a whole run will cost: on GPUs from its FLOPs, on this machine's CPU from a few timed steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from vmae.core.errors import InputError, nearest
from vmae.core.plan import GIB, GPUS, training_bytes, training_flops
from vmae.core.video.samples import Sample
from vmae.experiments import stages
from vmae.experiments.advice import this_machine
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.recommend import Speed, predicted_s
from vmae.experiments.timing import time_loading, time_steps


@dataclass(frozen=True, kw_only=True)
class RunCost:
    """`memory` in bytes, of one device; `clips_per_s` of all together."""

    name: str
    clip: str
    training_flops: int
    """Of one clip, forward and backward."""
    memory: int
    clips_per_s: float
    steps: int
    epochs: int
    videos: int
    seconds: float
    assumed: str
    """What the numbers rest on, in words."""

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON types."""
        return asdict(self)


def run_cost(
    config: ExperimentConfig,
    *,
    videos: int,
    samples: Sequence[Sample] | None = None,
    gpu: str | None = None,
    gpus: int = 1,
    utilisation: float = 0.4,
) -> RunCost:
    """The cost of training `config` on `videos` videos an epoch: on `gpus` of a kind, or (None) on this CPU.

    With `samples` a few of them are decoded and cut too, where the CPU is timed. Raises InputError for an
    unknown GPU and for a step that this machine's memory cannot hold.
    """
    mask = config.mask if stages.STAGES[config.job].masked else None
    flops = training_flops(config.model, mask)
    micro = max(1, config.train.batch_size // (config.train.accumulate * gpus)) * config.data.repeats
    memory = training_bytes(config.model, mask, micro, half=gpu is not None)
    steps = videos // config.train.batch_size * config.train.epochs
    clips = videos * config.train.epochs * config.data.repeats
    if gpu is not None:
        if gpu not in GPUS:
            known = [*GPUS, "cpu"]
            raise InputError(f"expected a GPU among {', '.join(known)}; got {gpu!r}{nearest(gpu, known)}")
        rate = gpus * GPUS[gpu].tflops * 1e12 * utilisation / flops
        seconds = clips / rate
        assumed = (
            f"Assumed: {utilisation:.0%} of {GPUS[gpu].tflops:g} TFLOP/s dense bf16 on {gpus} x {gpu}; "
            "loading, communication and evaluation hidden."
        )
    else:
        rate, seconds, assumed = _on_this_cpu(config, videos, samples, memory)
    m = config.model
    return RunCost(
        name=config.recipe or config.name,
        clip=f"{m.frames}x{m.height}x{m.width}, {m.grid.describe()}",
        training_flops=flops,
        memory=memory,
        clips_per_s=rate,
        steps=steps,
        epochs=config.train.epochs,
        videos=videos,
        seconds=seconds,
        assumed=assumed,
    )


def _on_this_cpu(
    config: ExperimentConfig, videos: int, samples: Sequence[Sample] | None, memory: int
) -> tuple[float, float, str]:
    """(clips a second, seconds, what they rest on) from steps timed here."""
    device = torch.device("cpu")
    machine = this_machine(device)
    if memory > machine.memory:
        raise InputError(
            f"expected a step to fit into {machine.memory / GIB:.1f} GiB of free memory, "
            f"got about {memory / GIB:.1f} GiB: a smaller model, clip or batch"
        )
    steps = time_steps(config, 10, device=device, threads=sorted({1, machine.cores}))
    load = time_loading(samples, config.data) if samples else None
    speed = Speed(
        step_s=steps.step_s,
        decode_s=load.decode_s if load else 0.0,
        cut_s=load.cut_s if load else 0.0,
        threads=steps.threads,
    )
    alone = replace(config, data=replace(config.data, workers=0))
    seconds = predicted_s(config if load else alone, videos, 0, speed)
    loading = "with decoding and cutting of its videos" if load else "without loading (name a list: --data)"
    assumed = (
        f"Measured: steps on this CPU in {steps.threads} of {machine.cores} threads, the fastest of a few, "
        f"{loading}; evaluation is left out."
    )
    return config.data.repeats / (speed.step_s * config.data.repeats + speed.cut_s), seconds, assumed
