"""The error of the reconstruction on held-out videos, the same task for every trial."""

from __future__ import annotations

from vmae.experiments.stages.stage import Metric, Stage

ERROR = Metric(
    name="eval/loss",
    title="reconstruction error",
    column="error at {evaluation_ratio:g}",
    higher_is_better=False,
    digits=3,
    curve=True,
    where="on held-out videos",
)
STAGE = Stage(name="measure", metrics=(ERROR,), share=lambda config: 0.02 * config.train.epochs)
