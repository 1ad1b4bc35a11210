"""A configuration -> a finished run: data, pre-training, measurement, all tracked.

The stages here are what `vmae pretrain`, `vmae probe` and every sweep trial are made of.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vmae.core.errors import InputError, VideoError
from vmae.core.files import read_json, write_json, write_text
from vmae.core.measure.pictures import contact_sheet
from vmae.core.measure.probe import ProbeResult, evaluation_loss, extract_features, knn_probe, probe
from vmae.core.measure.reconstruct import reconstruct
from vmae.core.model.masking import MaskConfig, sample_mask
from vmae.core.model.videomae import VideoMAE
from vmae.core.numerics import clip_to_video, derive_seed, make_generator
from vmae.core.train.pretrain import pretrain
from vmae.core.train.state import list_states
from vmae.core.train.task import Report, TrainResult
from vmae.core.video.annotations import read_annotations
from vmae.core.video.cache import build_cache
from vmae.core.video.clips import ClipDataset
from vmae.core.video.config import DataConfig
from vmae.core.video.samples import Sample, num_classes, subset
from vmae.core.weights.checkpoint import CONFIG_NAME, load_matching
from vmae.core.weights.models import expect_model
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.layout import RunDir
from vmae.experiments.provenance import environment
from vmae.experiments.tracking import Tracker
from vmae.experiments.weights import initial_weights

CacheProgress = Callable[[int, int], None]
"""Called as decoded clips are put into the cache: (done, total)."""


@dataclass(frozen=True)
class Data:
    """The two lists of a run, ready to be read: clips to train on and held-out clips."""

    train: ClipDataset
    train_plain: ClipDataset
    """All training clips as validation reads them (centre crop, fixed frames), for probes."""
    val: ClipDataset | None
    num_classes: int


def default_device() -> torch.device:
    """The first CUDA device, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def open_data(
    config: ExperimentConfig,
    cache_dir: Path,
    progress: CacheProgress | None = None,
) -> Data:
    """Read the lists and, with `data.cache`, decode every video once into `cache_dir`.

    Raises:
        InputError: a list that is missing, empty or has a bad line.
        VideoError: a held-out video that cannot be decoded.
    """
    data = config.data
    train = read_list(data, data.train_csv)
    val = read_list(data, data.val_csv) if data.val_csv else []
    test = read_list(data, data.test_csv) if data.test_csv else []
    cache = build_cache(all_samples(data), data, cache_dir, progress=progress)
    if cache is not None:
        bad = [s.path for s in (*val, *test) if s.path in cache.errors]
        if bad and data.bad_eval == "error":
            # Known before anything is trained: a held-out video is never left out silently.
            raise VideoError(bad[0], *cache.errors[bad[0]])
    seed = config.train.seed
    return Data(
        train=ClipDataset(subset(train, data.train_share, seed), data, "train", seed, cache=cache),
        train_plain=ClipDataset(train, data, "val", seed, cache=cache),
        val=ClipDataset(val, data, "val", seed, cache=cache) if val else None,
        num_classes=num_classes([*train, *val, *test]),
    )


def all_samples(data: DataConfig) -> list[Sample]:
    """The videos of all lists of the data section, as one cache holds them."""
    return [s for csv in (data.train_csv, data.val_csv, data.test_csv) if csv for s in read_list(data, csv)]


def read_list(data: DataConfig, csv: str) -> list[Sample]:
    """A list of the data section, its paths rooted."""
    if not csv:
        raise InputError("data.train_csv: expected a list of training videos (--data FILE), got none")
    return read_annotations(csv, data.data_root or None, format=data.annotation_format)


def build_model(config: ExperimentConfig) -> VideoMAE:
    """The model with fresh weights drawn from the run's seed, or those of `config.init`.

    torch's global generator is left as it was. Raises InputError when `init` is not a pre-trained model.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.train.seed, "weights"))
        model = VideoMAE(config.model)
    if config.init:
        wanted = "a pre-trained model with a decoder"
        init = expect_model(initial_weights(config).model, VideoMAE, config.init, wanted=wanted)
        load_matching(model, init.state_dict(), config.init)
    return model


def reconstruction_picture(model: VideoMAE, dataset: ClipDataset, ratio: float, index: int = 0) -> np.ndarray:
    """A contact sheet of one held-out clip, its tube mask the same for every model and epoch."""
    clip = torch.as_tensor(dataset[index]["clip"])[None]
    device = next(model.parameters()).device
    mask = sample_mask("tube", ratio, model.config.grid, 1, make_generator(index, "picture")).to(device)
    return contact_sheet(reconstruct(model, clip_to_video(clip, device), mask))


def reporter(tracker: Tracker | None, then: Report | None = None, *, stage: str = "pretrain") -> Report:
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
        if tracker is not None:
            if event == "step":
                values = {f"{stage}/{of_step[k]}": v for k, v in data.items() if k in of_step}
                # Bad videos left out so far, whatever the stage.
                values |= {"data/skipped": data["skipped"]} if "skipped" in data else {}
                # How much of a step the model waited for clips.
                values |= {"perf/data_wait_share": data["data_wait"]} if "data_wait" in data else {}
                tracker.log_metrics(values, data["step"])
            elif event == "epoch":
                values = {k.replace("/", "_"): v for k, v in data.items() if k not in ("step", "epoch")}
                tracker.log_metrics({f"{stage}/{k}": v for k, v in values.items()}, int(data["epoch"]))
        if then is not None:
            then(event, data)

    return report


def pretrain_stage(
    config: ExperimentConfig,
    data: Data,
    run_dir: Path,
    *,
    device: torch.device,
    tracker: Tracker | None = None,
    report: Report | None = None,
    should_stop: Callable[[], bool] | None = None,
    resume: bool = True,
    picture: Callable[[np.ndarray, int], None] | None = None,
) -> tuple[VideoMAE, TrainResult]:
    """Pre-train a fresh model in `run_dir` (or continue the one there).

    Every `train.picture_every` epochs `picture(image, epoch)` gets a reconstruction (by default the tracker
    does), every `pipeline.measure_every` the epoch's metrics get `knn_top1`.
    """
    model = build_model(config)
    draw = config.train.picture_every if config.model.predicts_pixels else 0
    measure = config.pipeline.measure_every
    if picture is None and tracker is not None:

        def picture(image: np.ndarray, epoch: int) -> None:
            tracker.log_image(image, "reconstruction", epoch)

    def after_epoch(epoch: int, module: nn.Module) -> dict[str, float]:
        if picture is not None and data.val is not None and draw and epoch % draw == 0:
            picture(reconstruction_picture(model, data.val, config.evaluation_ratio), epoch)
        if measure and (epoch % measure == 0 or epoch == config.train.epochs):
            return {"knn_top1": knn_inside(model, config, data, device)}
        return {}

    result = pretrain(
        model=model,
        mask=config.mask,
        dataset=data.train,
        optim=config.optim,
        train=config.train,
        run_dir=run_dir,
        device=device,
        report=reporter(tracker, report),
        resume=resume,
        should_stop=should_stop,
        after_epoch=after_epoch,
        measured=("knn_top1",) if measure else (),
    )
    return model, result


def log_start(tracker: Tracker, home: RunDir) -> None:
    """Put the run's configuration (which can be run again) and its environment among the artifacts."""
    write_text(home.environment, environment())
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
        header = read_json(model / CONFIG_NAME)
        if header is not None:
            meta = {k: header["meta"][k] for k in ("epochs", "metrics") if k in header["meta"]}
            facts[model.name] = {**_place_of(model, where), **meta}
            upload.append(model)
    states = list_states(home.checkpoints)
    facts["training"] = [_place_of(path, where) for path in states]
    if stopped:
        upload += states[-1:]
    write_json(home.checkpoints_list, facts)
    tracker.log_artifact(home.checkpoints_list, place)
    for path in upload if how == "upload" else ():
        for file in sorted(path.iterdir()):
            tracker.log_artifact(file, f"{place}/{path.relative_to(home.path)}")


def _place_of(folder: Path, where: Callable[[Path], str]) -> dict[str, Any]:
    """Where a checkpoint's folder is, and the bytes in it."""
    return {"path": where(folder), "bytes": sum(f.stat().st_size for f in folder.iterdir())}


def measure_reconstruction(
    model: VideoMAE, config: ExperimentConfig, data: Data, device: torch.device
) -> float:
    """Mean loss on the held-out clips at the common evaluation ratio, with the same tube masks always."""
    assert data.val is not None
    mask = MaskConfig(type="tube", ratio=config.evaluation_ratio)
    return evaluation_loss(model, data.val, mask, device=device, precision=config.train.precision)


def knn_inside(model: VideoMAE, config: ExperimentConfig, data: Data, device: torch.device) -> float:
    """Leave-one-out accuracy of nearest neighbours on features of the training list, in [0, 1].

    The held-out list is not looked at, so this may decide which trials go on.
    """
    pooling = "time" if config.probe.pooling == "tokens" else config.probe.pooling
    precision = config.train.precision
    train = extract_features(model, data.train_plain, pooling=pooling, device=device, precision=precision)
    return knn_probe(train, train, config.probe, data.num_classes).selection_top1


def probe_stage(
    model: VideoMAE,
    config: ExperimentConfig,
    data: Data,
    *,
    device: torch.device,
    progress: Callable[[float], None] | None = None,
) -> ProbeResult:
    """Read out frozen features of the training clips, measure on the held-out clips."""
    assert data.val is not None
    pooling = "tokens" if config.probe.kind == "attentive" else config.probe.pooling
    precision = config.train.precision
    train = extract_features(model, data.train_plain, pooling=pooling, device=device, precision=precision)
    if progress is not None:
        progress(0.5)
    val = extract_features(model, data.val, pooling=pooling, device=device, precision=precision)
    if progress is not None:
        progress(0.7)
    return probe(train, val, config.probe, data.num_classes)


def probe_metrics(result: ProbeResult) -> dict[str, float]:
    """A probe's result as metrics of a run."""
    metrics = {
        "probe/top1": result.top1,
        "probe/top5": result.top5,
        "probe/mean_class": result.mean_class,
        "probe/chance": result.chance,
        "probe/selection_top1": result.selection_top1,
    }
    # A probe with a single setting selects nothing.
    return {k: v for k, v in metrics.items() if not math.isnan(v)}
