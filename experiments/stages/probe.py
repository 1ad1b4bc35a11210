"""Frozen features read out: by the probe that the configuration asks for, or by nearest neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vmae.experiments.stages.stage import SHARE, Config, Context, Metric, Numbers, Stage, accuracies

if TYPE_CHECKING:
    from vmae.core.measure.heads import Kind
    from vmae.core.measure.low_shot import LowShot
    from vmae.core.measure.probe import Features, ProbeResult
    from vmae.core.measure.target_probe import TargetResult
    from vmae.core.video.clips import ClipDataset
    from vmae.experiments.answers import Answer


def features_of(context: Context, dataset: ClipDataset) -> tuple[Features, list[dict[str, Any]]]:
    """The frozen features of every clip, as the configured probe reads them, and what could not be read."""
    from vmae.core.measure.probe import extract_features
    from vmae.core.model.encoder import PretrainedModel
    from vmae.core.weights.models import expect_model

    config, given = context.config, context.model()
    assert given is not None
    model = expect_model(given, PretrainedModel, config.init)
    model.to(context.device)
    pooling = "tokens" if config.probe.kind == "attentive" else config.probe.pooling
    how = {"pooling": pooling, "device": context.device, "precision": config.train.precision}
    failed: list[dict[str, Any]] = []
    return extract_features(model, dataset, failed=failed, **how), failed


def held_out_views(context: Context, val: ClipDataset) -> ClipDataset:
    """The held-out list with as many clips a video as the probe averages."""
    from vmae.core.video.clips import ClipDataset

    config, views = context.config, context.config.probe.views
    if views == 1:
        return val
    data = replace(config.data, segments=views, crops=1)
    return ClipDataset(val.samples, data, "test", config.train.seed, cache=val.cache)


def read_out(context: Context) -> tuple[ProbeResult, list[Answer]]:
    """Learn from frozen features of the training clips, measure on the held-out ones, with every answer."""
    from vmae.core.measure.probe import probe

    config, data = context.config, context.data()
    assert data.val is not None
    train, _ = features_of(context, data.train_plain)
    context.watch.part(0.5)
    val, failed = features_of(context, held_out_views(context, data.val))
    context.watch.part(0.7)
    result = probe(train, val, config.probe, data.num_classes, context.device)
    return result, answered(result, val, failed, seed=config.train.seed)


def read_out_low_shot(context: Context, shares: Sequence[float], seeds: int) -> list[LowShot]:
    """The probe on shares of the training list's labels, on features that are made once."""
    from vmae.core.measure.low_shot import low_shot

    config, data = context.config, context.data()
    assert data.val is not None
    train, _ = features_of(context, data.train_plain)
    val, _ = features_of(context, held_out_views(context, data.val))
    return low_shot(
        train, val, config.probe, data.num_classes, shares=shares, seeds=seeds, device=context.device
    )


def read_out_targets(context: Context, kind: Kind) -> TargetResult:
    """The numbers, or the several labels, of each video from frozen features; measured on the held-out list.

    Raises InputError for a list of another kind, or a held-out video that cannot be read.
    """
    from vmae.core.errors import InputError
    from vmae.core.measure.target_probe import probe_targets
    from vmae.core.train.heads import check_targets, num_outputs, targets_of

    config, data = context.config, context.data()
    assert data.val is not None
    outputs = num_outputs(data.train_plain.samples, kind)
    check_targets(data.train_plain.samples, kind, config.data.train_csv)
    check_targets(data.val.samples, kind, config.data.val_csv, outputs)
    train, failed = features_of(context, data.train_plain)
    val, unread = features_of(context, held_out_views(context, data.val))
    if unread:
        raise InputError(
            f"{config.data.val_csv}: expected videos that can be read, got {len(unread)} that cannot, first "
            f"{unread[0]['path']}"
        )
    bad = {f["index"] for f in failed}
    target = targets_of(data.train_plain.samples, kind, outputs)
    target = target[[k for k in range(len(target)) if k not in bad]]
    truth = targets_of(data.val.samples, kind, outputs)
    return probe_targets(train, val, target, truth, config.probe, kind, context.device)


def answered(
    result: ProbeResult, held_out: Features, failed: Sequence[dict[str, Any]], *, seed: int, fold: int = -1
) -> list[Answer]:
    """What a probe said of each clip that it was measured on; one that could not be read is wrong."""
    from vmae.experiments.answers import Answer

    said = zip(held_out.paths, held_out.labels.tolist(), result.predictions.tolist(), strict=True)
    unread = [(f["path"], f["label"], -1) for f in failed]
    return [
        Answer(path=path, label=label, predicted=given, correct=given == label, seed=seed, fold=fold)
        for path, label, given in [*said, *unread]
    ]


def _run(context: Context, stage: str) -> Numbers:
    from vmae.experiments.answers import write_answers

    result, answers = read_out(context)
    write_answers(context.home.answers, answers)
    return metrics_of(result, stage)


def metrics_of(result: ProbeResult, stage: str) -> Numbers:
    """A probe's result as metrics of a run, under a stage's name."""
    found = {
        "top1": result.top1,
        "top5": result.top5,
        "mean_class": result.mean_class,
        "chance": result.chance,
        "selection_top1": result.selection_top1,
    }
    # A probe with a single setting selects nothing.
    return {f"{stage}/{k}": v for k, v in found.items() if not math.isnan(v)}


def _selection(stage: str) -> Metric:
    return Metric(
        name=f"{stage}/selection_top1",
        title="accuracy in cross-validation",
        unit=SHARE,
        where="on training videos",
    )


def _by_neighbours(config: Config) -> Config:
    return replace(config, probe=replace(config.probe, kind="knn"))


PROBE = Stage(
    name="probe",
    metrics=(*accuracies("probe", "probe accuracy"), _selection("probe")),
    share=lambda config: 0.1 * config.train.epochs,
    run=lambda context: _run(context, "probe"),
)
KNN = Stage(
    name="knn",
    metrics=(*accuracies("knn", "kNN accuracy"), _selection("knn")),
    share=lambda config: 0.05 * config.train.epochs,
    settings=_by_neighbours,
    run=lambda context: _run(context, "knn"),
)
