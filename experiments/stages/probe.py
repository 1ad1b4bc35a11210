"""Frozen features read out: by the probe that the configuration asks for, or by nearest neighbours."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from vmae.experiments.stages.stage import SHARE, Config, Context, Metric, Numbers, Stage, accuracies

if TYPE_CHECKING:
    from vmae.core.measure.probe import ProbeResult


def read_out(context: Context) -> ProbeResult:
    """Learn from frozen features of the training clips, measure on the held-out clips."""
    from vmae.core.measure.probe import extract_features, probe
    from vmae.core.model.videomae import VideoMAE
    from vmae.core.weights.models import expect_model

    config, data = context.config, context.data()
    given = context.model()
    assert given is not None
    model = expect_model(given, VideoMAE, config.init)
    model.to(context.device)
    assert data.val is not None
    pooling = "tokens" if config.probe.kind == "attentive" else config.probe.pooling
    how = {"pooling": pooling, "device": context.device, "precision": config.train.precision}
    train = extract_features(model, data.train_plain, **how)
    context.watch.part(0.5)
    val = extract_features(model, data.val, **how)
    context.watch.part(0.7)
    return probe(train, val, config.probe, data.num_classes)


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
    run=lambda context: metrics_of(read_out(context), "probe"),
)
KNN = Stage(
    name="knn",
    metrics=(*accuracies("knn", "kNN accuracy"), _selection("knn")),
    share=lambda config: 0.05 * config.train.epochs,
    settings=_by_neighbours,
    run=lambda context: metrics_of(read_out(context), "knn"),
)
