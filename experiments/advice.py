"""The recommendation for lists on disk: reads them, times this machine, and asks `recommend`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from vmae.core.video.annotations import read_annotations
from vmae.core.video.facts import ListFacts, list_facts
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.outlook import Outlook, outlook, shared_videos
from vmae.experiments.recommend import Flip, Machine, Recommendation, Speed, default_budget_s, recommend
from vmae.experiments.timing import time_loading, time_steps, usable_cores


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
) -> Advice:
    """What `job` on these lists should be, on this machine, in `budget_s` seconds (None: by its length).

    Opens some fifty videos, decodes three of them and runs a few steps: seconds. Raises InputError for lists
    that cannot be read, and as `recommend` does.
    """
    root = str(data_root) if data_root is not None else ""
    train = read_annotations(train_csv, root or None)
    val = read_annotations(val_csv, root or None) if val_csv is not None else []
    lists = list_facts(train, names_beside(train_csv))
    machine = this_machine(device)
    budget = default_budget_s(lists.videos) if budget_s is None else budget_s

    def speed(config: ExperimentConfig) -> Speed:
        threads = (1, machine.cores) if device.type == "cpu" and machine.cores > 1 else (0,)
        steps = time_steps(config, lists.classes, device=device, threads=threads)
        load = time_loading(train, config.data)
        return Speed(step_s=steps.step_s, decode_s=load.decode_s, cut_s=load.cut_s, threads=steps.threads)

    found = recommend(job, lists, machine, budget, speed, held_out=len(val), flip=flip, start=start)
    data = replace(found.config.data, train_csv=str(train_csv), val_csv=str(val_csv or ""), data_root=root)
    found = replace(found, config=replace(found.config, data=data))
    said = outlook(
        found.config, lists, seconds=found.seconds, budget_s=budget, shared=shared_videos(train, val)
    )
    return Advice(found=found, lists=lists, held_out=len(val), machine=machine, budget_s=budget, outlook=said)


def names_beside(listed: Path) -> list[str]:
    """The lines of `classes.txt` beside a list; none where there is no such file."""
    path = listed.with_name("classes.txt")
    if not path.is_file():
        return []
    return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def this_machine(device: torch.device) -> Machine:
    """Cores and memory that this process may use, and the GPU where `device` is one."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return Machine(cores=usable_cores(), memory=int(psutil.virtual_memory().available), gpu=gpu)
