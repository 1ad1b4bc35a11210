"""Frozen features read out: by the probe that the configuration asks for, or by nearest neighbours."""

from __future__ import annotations

from vmae.experiments.stages.stage import SHARE, Metric, Stage, accuracies


def _selection(stage: str) -> Metric:
    return Metric(
        name=f"{stage}/selection_top1",
        title="accuracy in cross-validation",
        unit=SHARE,
        where="on training videos",
    )


PROBE = Stage(
    name="probe",
    metrics=(*accuracies("probe", "probe accuracy"), _selection("probe")),
    share=lambda config: 0.1 * config.train.epochs,
)
KNN = Stage(
    name="knn",
    metrics=(*accuracies("knn", "kNN accuracy"), _selection("knn")),
    share=lambda config: 0.05 * config.train.epochs,
)
