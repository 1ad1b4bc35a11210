"""A training step of the end-to-end detector at several keep rates, side by side: processor time a step.

`python -m vmae.experiments.bench.keep_rates`: the recipe `demo_end_to_end`, random clips, one thread.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from vmae.core.model.end_to_end import EndToEndDetector, end_to_end_loss
from vmae.experiments import recipes
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.stages.detection import build_detector

RATES = (1.0, 0.7, 0.5)


def step_seconds(
    config: ExperimentConfig, rates: tuple[float, ...] = RATES, *, rounds: int = 7
) -> dict[float, float]:
    """Processor seconds of forward, loss and backward by keep rate, the best of `rounds`, which alternate."""
    inputs = _batch(config)
    models = {rate: build_detector(_at(config, rate)).train() for rate in rates}
    best = dict.fromkeys(rates, float("inf"))
    for _ in range(rounds):
        for rate, model in models.items():
            assert isinstance(model, EndToEndDetector)
            model.zero_grad()
            began = time.process_time()
            end_to_end_loss(model(inputs[0]), *inputs[1:]).backward()
            best[rate] = min(best[rate], time.process_time() - began)
    return best


def _at(config: ExperimentConfig, rate: float) -> ExperimentConfig:
    return replace(config, detect=replace(config.detect, end_to_end=True, keep_rate=rate))


def _batch(config: ExperimentConfig) -> tuple[torch.Tensor, ...]:
    """Random clips with two people each: clips, boxes in shares, the clip of each, actions."""
    draw = torch.Generator().manual_seed(0)
    count, (height, width) = config.train.batch_size, config.data.size
    shape = (count, config.data.channels, config.data.frames, height, width)
    video = torch.randint(256, shape, dtype=torch.uint8, generator=draw)
    corner = torch.rand(2 * count, 2, generator=draw) * 0.6
    boxes = torch.cat((corner, corner + 0.3), 1)
    actions = (torch.rand(2 * count, config.detect.num_classes, generator=draw) > 0.8).float()
    return video, boxes, torch.arange(2 * count) % count, actions


def main() -> None:
    torch.set_num_threads(1)
    for rate, seconds in step_seconds(recipes.get("demo_end_to_end")).items():
        print(f"keep rate {rate:g}: {seconds:.3f} s a step")


if __name__ == "__main__":
    main()
