"""The kernel sites of a recipe's step, and their calibration from the command line."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from vmae.core.train.calibration import Work, find_work
from vmae.core.train.finetune import Finetuning
from vmae.core.train.pretrain import Pretraining
from vmae.core.train.task import StepContext, Task
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.stages import pretrain
from vmae.experiments.stages.finetune import build_classifier
from vmae.experiments.stages.pretrain import random_model
from vmae.kernels.calibrate import CUDA, Outcome, Say, calibrate
from vmae.kernels.sites import Site

CLASSES = 400


def work_of(config: ExperimentConfig, *, rows: int, precision: str, compiled: bool) -> Work:
    """The sites of a pre-training or fine-tuning step of `rows` clips; the model's weights are nowhere."""
    c = config.model
    clip = torch.zeros(2, c.frames, c.height, c.width, c.channels, dtype=torch.uint8)
    task: Task
    model: nn.Module
    inputs: tuple[Tensor, ...]
    if config.job == pretrain.STAGE.name:
        with torch.device("meta"):
            model = random_model(config)
        task = Pretraining(model=model, mask=config.mask, optim=config.optim, train=config.train)
        place = {"seed": 0, "epoch": 0, "step": 0, "first_row": 0, "total_rows": 2}
        context = StepContext(**place, rows=torch.arange(2), device=torch.device("cpu"))
        batch = {"clip": clip, "path": []}
        inputs = task.inputs({**batch, **task.ahead(batch, context)}, context)
    else:
        # Its loss depends on nothing that the task is made with.
        task = Finetuning.__new__(Finetuning)
        with torch.device("meta"):
            model = build_classifier(config, CLASSES)
        inputs = (clip.permute(0, 4, 1, 2, 3), torch.full((2, CLASSES), 1 / CLASSES))
    return find_work(task, model, inputs, rows=rows, precision=precision, compiled=compiled)


def calibrate_recipe(
    config: ExperimentConfig, *, rows: int, precision: str, budget_s: float, say: Say, layer: str = CUDA
) -> Outcome:
    """Measure the sites of a recipe's step on this machine, eager and compiled, again if they are known."""
    calls: dict[Site, int] = {}
    for compiled in (False, True):
        calls |= work_of(config, rows=rows, precision=precision, compiled=compiled).calls
    return calibrate(calls, budget_s=budget_s, force=True, say=say, layer=layer)


def shallow(config: ExperimentConfig) -> ExperimentConfig:
    """The same with two blocks each: as many sites, found in a tenth of the time."""
    return replace(config, model=replace(config.model, depth=2, decoder_depth=2))
