"""What features are worth where there are no labels: by how many directions they use, on training videos."""

from __future__ import annotations

from vmae.experiments.stages.stage import SHARE, Context, Metric, Numbers, Stage

_ON = "on training videos"
PARTICIPATION = Metric(
    name="monitor/participation",
    title="participation ratio",
    column="participation ratio",
    digits=2,
    score=True,
    where=_ON,
)
"""It ranks: of the monitors without labels the one that agreed best with probes (docs/monitors.md)."""


def run(context: Context) -> Numbers:
    """The monitors of the model, on up to 1,024 clips of the training list (labels may be absent)."""
    from vmae.core.measure.monitors import monitor
    from vmae.core.model.encoder import PretrainedModel
    from vmae.core.model.masking import MaskConfig
    from vmae.core.weights.models import expect_model

    config = context.config
    given = context.model()
    assert given is not None
    model = expect_model(given, PretrainedModel, config.init)
    masks = MaskConfig(type="tube", ratio=config.evaluation_ratio) if config.monitor.lidar else None
    found = monitor(
        model,
        context.data().train_plain.some(1024, config.train.seed),
        masks=masks,
        device=context.device,
        precision=config.train.precision,
    )
    return {f"monitor/{name}": value for name, value in found.items()}


STAGE = Stage(
    name="monitor",
    metrics=(
        PARTICIPATION,
        Metric(name="monitor/rankme", title="RankMe, centred", column="RankMe", digits=1, where=_ON),
        Metric(name="monitor/lidar", title="LiDAR over masks of a clip", digits=1, where=_ON),
        Metric(name="monitor/knn", title="nearest neighbours, leave-one-out", unit=SHARE, where=_ON),
        Metric(name="monitor/linear", title="linear read-out, leave-one-out", unit=SHARE, where=_ON),
    ),
    share=lambda config: 0.05 * config.train.epochs,
    run=run,
    held_out=False,
)
