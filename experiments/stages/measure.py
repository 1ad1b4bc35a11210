"""The error of the reconstruction on held-out videos, the same task for every trial."""

from __future__ import annotations

from vmae.experiments.stages.stage import Context, Metric, Numbers, Stage

ERROR = Metric(
    name="eval/loss",
    title="reconstruction error",
    column="error at {evaluation_ratio:g}",
    higher_is_better=False,
    digits=3,
    curve=True,
    where="on held-out videos",
)


def run(context: Context) -> Numbers:
    """Mean loss on the held-out clips (nothing where there are none) at the common evaluation ratio, with the
    same tube masks always."""
    from vmae.core.model.joint import JointEncoder
    from vmae.core.model.videomae import VideoMAE
    from vmae.core.weights.models import expect_model
    from vmae.core.weights.teacher import with_teacher
    from vmae.experiments.stages.pretrain import held_out_error

    config, data = context.config, context.data()
    given = context.model()
    assert given is not None
    if data.val is None or isinstance(given, JointEncoder):  # which reconstructs nothing
        return {}
    model = with_teacher(expect_model(given, VideoMAE, config.init))
    return {ERROR.name: held_out_error(model, data.val, config, context.device)}


STAGE = Stage(name="measure", metrics=(ERROR,), share=lambda config: 0.02 * config.train.epochs, run=run)
