"""What every training run and trial tells the store: its events, its start and its checkpoints."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vmae.core.files import read_record, write_json, write_text
from vmae.core.train.state import list_states
from vmae.core.train.task import Report
from vmae.core.weights.checkpoint import CONFIG_NAME
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.layout import RunDir
from vmae.experiments.provenance import environment
from vmae.experiments.stages.stage import Stage, Watch
from vmae.experiments.tracking import Tracker, tags

_log = logging.getLogger("vmae")


def default_device() -> torch.device:
    """The first CUDA device, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def metric_of_epoch(stage: str, name: str) -> str:
    """In MLflow, the name of what the loop's `epoch` event calls `name`: `val/top1` is
    `finetune/val_top1`."""
    return f"{stage}/{name.replace('/', '_')}"


def reporter(tracker: Tracker, stage: str, then: Report | None = None) -> Report:
    """Turn the training loop's events into metrics of the run, and pass them on.

    Names start with the stage, so that one run can hold several: `pretrain/step_loss` and the like at every
    logged step (step: optimiser steps), with `perf/data_wait_share` and `data/skipped` beside them;
    `pretrain/loss` and what was validated (`finetune/val_top1`) once an epoch (step: epochs).
    """
    of_step = {
        "loss": "step_loss",
        "lr": "lr",
        "grad_norm": "grad_norm",
        "clips_per_s": "step_clips_per_s",
        "effective_epoch": "effective_epoch",
        "peak_mem_gib": "peak_mem_gib",
    }

    def report(event: str, data: dict[str, Any]) -> None:
        if event == "step":
            values = {f"{stage}/{of_step[k]}": v for k, v in data.items() if k in of_step}
            # Bad videos left out so far, whatever the stage.
            values |= {"data/skipped": data["skipped"]} if "skipped" in data else {}
            # How much of a step the model waited for clips.
            values |= {"perf/data_wait_share": data["data_wait"]} if "data_wait" in data else {}
            tracker.log_metrics(values, data["step"])
        elif event == "epoch":
            values = {metric_of_epoch(stage, k): v for k, v in data.items() if k not in ("step", "epoch")}
            tracker.log_metrics(values, int(data["epoch"]))
        elif event == "kernels":
            ways: dict[str, set[str]] = {}
            for key, choice in data["choices"].items():
                ways.setdefault(key.split(" ")[0], set()).add(choice.split(" ")[0])
            found = {f"{tags.KERNELS}.{op}": ", ".join(sorted(names)) for op, names in ways.items()}
            tracker.set_tags({**found, tags.KERNELS: data["fingerprint"]})
        elif event == "mode":
            tracker.set_tags({f"{tags.KERNELS}.step": data["mode"]})
        if then is not None:
            then(event, data)

    return report


def tracked(
    tracker: Tracker,
    stage: Stage,
    then: Report | None = None,
    *,
    should_stop: Callable[[], bool] | None = None,
    decides: bool = False,
) -> Watch:
    """Who listens to a stage's training: the tracker, and `then`."""
    return Watch(
        report=reporter(tracker, stage.name, then),
        picture=lambda image, epoch: tracker.log_image(image, "reconstruction", epoch),
        should_stop=should_stop,
        decides=decides,
    )


def log_start(tracker: Tracker, home: RunDir) -> None:
    """Put the run's configuration (which can be run again) and its environment among the artifacts."""
    try:
        write_text(home.environment, environment())
    except OSError as e:
        _log.warning("%s NOT written: %s", home.environment, e)
    for path in (home.config, home.environment):
        tracker.log_artifact(path)


def log_checkpoints(
    tracker: Tracker,
    config: ExperimentConfig,
    home: RunDir,
    *,
    stopped: bool = False,
    under: str = "",
    where: Callable[[Path], str] = lambda path: str(path.resolve()),
) -> None:
    """Put the checkpoints of a training in `home` among the run's artifacts, as `config.tracking` says.

    The artifact `checkpoints/[under/]checkpoints.json` has each one's place, size and epoch; uploaded files
    lie beside it under the names they have in `home`. `where` says where a folder is found later.
    """
    how = config.tracking.checkpoints
    if how == "none":
        return
    place = "/".join(filter(None, ("checkpoints", under)))
    facts: dict[str, Any] = {"host": os.uname().nodename, "uploaded": how == "upload"}
    upload: list[Path] = []
    for model in (home.model, home.best):
        header = read_record(model / CONFIG_NAME, "meta")
        if header is not None:
            meta = {k: header["meta"][k] for k in ("epochs", "metrics") if k in header["meta"]}
            facts[model.name] = {**_place_of(model, where), **meta}
            upload.append(model)
    states = list_states(home.checkpoints)
    facts["training"] = [_place_of(path, where) for path in states]
    if stopped:
        upload += states[-1:]
    try:
        write_json(home.checkpoints_list, facts)
    except OSError as e:
        _log.warning("%s NOT written: %s", home.checkpoints_list, e)
    tracker.log_artifact(home.checkpoints_list, place)
    for path in upload if how == "upload" else ():
        for file in sorted(path.iterdir()):
            tracker.log_artifact(file, f"{place}/{path.relative_to(home.path)}")


def _place_of(folder: Path, where: Callable[[Path], str]) -> dict[str, Any]:
    """Where a checkpoint's folder is, and the bytes in it."""
    return {"path": where(folder), "bytes": sum(f.stat().st_size for f in folder.iterdir())}
