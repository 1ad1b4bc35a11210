"""The recommendation for lists on disk: reads them, times this machine, and asks `recommend`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import psutil
import torch

from vmae.core.plan import training_flops
from vmae.core.video.annotations import AnnotationFormat, read_annotations
from vmae.core.video.classes import class_names
from vmae.core.video.facts import ListFacts, list_facts
from vmae.core.video.samples import Sample
from vmae.experiments import stages
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.data import read_list, read_training
from vmae.experiments.outlook import Outlook, outlook, require_classes, shared_videos
from vmae.experiments.recommend import (
    Flip,
    Machine,
    Recommendation,
    Speed,
    default_budget_s,
    predicted_s,
    recommend,
)
from vmae.experiments.timing import time_loading, time_steps, usable_cores
from vmae.experiments.tryout import Progress, groups_of, try_backgrounds

_TRIED_FLOPS = 3e10
"""Of a clip's step: on a CPU larger ones take seconds."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """A recommendation with what it was made from."""

    found: Recommendation
    lists: ListFacts
    held_out: int
    machine: Machine
    budget_s: float
    outlook: Outlook


def advise(
    job: str,
    train_csv: Path,
    val_csv: Path | None,
    *,
    device: torch.device,
    data_root: Path | None = None,
    budget_s: float | None = None,
    flip: Flip = "auto",
    start: ExperimentConfig | None = None,
    keep_cut: bool = False,
    annotation_format: AnnotationFormat = "auto",
) -> Advice:
    """What `job` on these lists should be, on this machine, in `budget_s` seconds (None: by its length).

    Opens some fifty videos, decodes three of them and runs a few steps: seconds. Raises InputError for lists
    that cannot be read, and as `recommend` does.
    """
    root = str(data_root) if data_root is not None else ""
    read = partial(read_annotations, data_root=root or None, format=annotation_format)
    train, val = read(train_csv), read(val_csv) if val_csv is not None else []
    lists = list_facts(train, class_names(train_csv))
    machine = this_machine(device)
    budget = default_budget_s(lists.videos) if budget_s is None else budget_s

    def speed(config: ExperimentConfig) -> Speed:
        ours = device.type == "cpu" and machine.cores > 1 and not os.environ.get("OMP_NUM_THREADS")
        threads = (1, machine.cores) if ours else (0,)
        return _speed(config, train, lists.classes, device, threads)

    found = recommend(
        job,
        lists,
        machine,
        budget,
        speed,
        held_out=len(val),
        flip=flip,
        start=start,
        keep_cut=keep_cut,
        grouped=groups_of(train_csv, train) is not None,
    )
    data = replace(found.config.data, train_csv=str(train_csv), val_csv=str(val_csv or ""), data_root=root)
    data = replace(data, annotation_format=annotation_format)
    found = replace(found, config=replace(found.config, data=data))
    said = outlook(
        found.config, lists, seconds=found.seconds, budget_s=budget, shared=shared_videos(train, val)
    )
    return Advice(found=found, lists=lists, held_out=len(val), machine=machine, budget_s=budget, outlook=said)


def tried(found: Recommendation, cache: Path, progress: Progress | None = None) -> Recommendation:
    """The recommendation with what it left undecided tried on its training list; `cache` as `tryout`'s."""
    if not found.undecided:
        return found
    outcome = try_backgrounds(found.config, cache, progress)
    if outcome is None:
        return replace(found, undecided=False)
    return found.with_background(outcome.value, outcome.reason)


def look_ahead(
    config: ExperimentConfig,
    device: torch.device,
    *,
    known: Speed | None = None,
) -> Outlook:
    """The line and the warnings of a training whose configuration is decided.

    A second or two: a few steps are run (`known`: they have been), unless one clip is too large to be tried
    on a CPU; then nothing is said of the time. Raises InputError as `outlook` does.
    """
    data = config.data
    train = read_training(data)
    held_out = data.val_csv or data.test_csv
    val = read_list(data, held_out) if held_out else []
    lists = list_facts(train, class_names(data.train_csv))
    require_classes(config.job, lists.class_counts, lists.classes)
    mask = config.mask if stages.STAGES[config.job].masked else None
    seconds = None
    if known is None and (device.type == "cuda" or training_flops(config.model, mask) < _TRIED_FLOPS):
        known = _speed(config, train, lists.classes, device, (0,), limit_s=0.4)
    if known is not None:
        seconds = predicted_s(config, lists.videos, len(val), known)
    return outlook(config, lists, seconds=seconds, shared=shared_videos(train, val))


def _speed(
    config: ExperimentConfig,
    train: Sequence[Sample],
    classes: int,
    device: torch.device,
    threads: Sequence[int],
    limit_s: float = 1.5,
) -> Speed:
    steps = time_steps(config, classes, device=device, threads=threads, limit_s=limit_s)
    load = time_loading(train, config.data)
    return Speed(step_s=steps.step_s, decode_s=load.decode_s, cut_s=load.cut_s, threads=steps.threads)


def this_machine(device: torch.device) -> Machine:
    """Cores and memory that this process may use, and the GPU where `device` is one."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return Machine(cores=usable_cores(), memory=int(psutil.virtual_memory().available), gpu=gpu)
