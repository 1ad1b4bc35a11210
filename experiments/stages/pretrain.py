"""Masked pre-training, the first stage of every trial."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from vmae.experiments.stages.probe import read_out
from vmae.experiments.stages.stage import SHARE, SPEED, Config, Context, Metric, Numbers, Stage, Watch
from vmae.experiments.tracking import tags

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from vmae.core.model.encoder import PretrainedModel
    from vmae.core.model.joint import JointEncoder
    from vmae.core.model.videomae import VideoMAE, VideoMAEConfig
    from vmae.core.train.task import TrainResult
    from vmae.core.video.clips import ClipDataset

LOSS = Metric(
    name="pretrain/loss",
    title="training loss",
    column="pre-training loss",
    higher_is_better=False,
    digits=3,
    curve=True,
    comparable=False,
)
ERROR = Metric(
    name="pretrain/val_loss",
    title="error during training",
    higher_is_better=False,
    digits=3,
    curve=True,
    where="on held-out videos",
)
"""By epoch, at `evaluation_ratio`. With normalised targets 1.0 is predicting each patch's mean."""
KNN = Metric(
    name="pretrain/knn_top1",
    title="nearest-neighbour accuracy inside the training list",
    unit=SHARE,
    curve=True,
)
"""Leave-one-out, so that it may decide which trials go on: the held-out list is not looked at."""
ON_THE_WAY = Metric(
    name="pretrain/probe_top1", title="probe on the way", unit=SHARE, where="on held-out videos"
)
"""After `pipeline.probe_at` epochs, in the middle of the schedule; nothing is chosen by it."""
RATE = Metric(name="pretrain/clips_per_s", title="clips/s", column="clips/s", unit=SPEED, digits=0)
SKIPPED = Metric(name="pretrain/skipped_steps", title="skipped steps", higher_is_better=False, digits=0)
MONITORS = (
    Metric(name="pretrain/monitor_rankme", title="RankMe, centred", digits=1, curve=True),
    Metric(name="pretrain/monitor_participation", title="participation ratio", digits=2, curve=True),
    Metric(name="pretrain/monitor_lidar", title="LiDAR over masks of a clip", digits=1, curve=True),
    Metric(
        name="pretrain/monitor_knn",
        title="nearest neighbours, leave-one-out",
        unit=SHARE,
        curve=True,
        where="on training videos",
    ),
    Metric(
        name="pretrain/monitor_linear",
        title="linear read-out, leave-one-out",
        unit=SHARE,
        curve=True,
        where="on training videos",
    ),
)
"""`vmae.core.measure.monitors` at the epochs that `monitor.share` pays for; `_random` beside each: the same
network before training."""
STOP_ON = {"loss": LOSS, "knn": KNN}
"""What trials can be stopped by, as `vmae sweep --stop-on` calls it."""


def check(config: Config) -> None:
    """Raise InputError for a mask that leaves nothing to see or to predict, or an unknown `train.best_by`."""
    from vmae.core.errors import InputError
    from vmae.core.model.masking import mask_counts
    from vmae.core.model.target import SIGREG
    from vmae.core.train.config import metric_of_best

    if config.model.target == SIGREG and config.data.repeats < 2:
        raise InputError(
            f"expected data.repeats of at least 2 with model.target={SIGREG} (views of each video; 4 are "
            f"usual), got {config.data.repeats}"
        )
    metric_of_best(config.train.best_by, _measured(config))
    mask_counts(config.mask.type, config.mask.ratio, config.model.grid)
    mask_counts("tube", config.evaluation_ratio, config.model.grid)


def ready(config: Config) -> None:
    """Raise InputError where masks or targets cannot be made."""
    from vmae.core.train.pretrain import check_objective

    check_objective(config.mask, config.model)


def flops(config: Config) -> float:
    """Of the encoder on visible tokens and the decoder."""
    from vmae.core.plan import training_flops

    return training_flops(config.model, config.mask)


def random_model(config: Config, model: VideoMAEConfig | None = None) -> VideoMAE | JointEncoder:
    """The model with weights drawn from the run's seed; torch's global generator is left as it was."""
    import torch

    from vmae.core.model.joint import pretraining_model
    from vmae.core.numerics import derive_seed

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.train.seed, "weights"))
        return pretraining_model(model or config.model)


def fresh_model(context: Context) -> VideoMAE | JointEncoder:
    """The model with fresh weights drawn from the run's seed, or those of `config.init`.

    Raises InputError when `init` is not a pre-trained model.
    """
    from vmae.core.model.videomae import VideoMAE
    from vmae.core.weights.checkpoint import load_matching
    from vmae.core.weights.models import expect_model
    from vmae.core.weights.teacher import read_teacher, sized

    config = context.config
    teacher = read_teacher(config.model)
    model, init = random_model(config, sized(config.model, teacher)), context.initial()
    if init is not None:
        wanted = "a pre-trained model with a decoder" if isinstance(model, VideoMAE) else ""
        init = expect_model(init, type(model), config.init, wanted=wanted)
        load_matching(model, init.state_dict(), config.init)
    if teacher is not None and isinstance(model, VideoMAE):
        model.learn_from(teacher)
    return model


def train(context: Context) -> TrainResult:
    """Pre-train a fresh model, or continue the one there.

    Every `train.picture_every` epochs the watch gets a reconstruction; every `evaluation_every` the epoch's
    metrics get the error on held-out videos, every `pipeline.measure_every` `knn_top1`, after
    `pipeline.probe_at` `probe_top1`; `monitor` says at which epochs the monitors look.
    """
    from vmae.core.errors import VideoError
    from vmae.core.model.videomae import VideoMAE
    from vmae.core.train.pretrain import pretrain
    from vmae.core.train.watch import HELD_OUT

    config, data, watch = context.config, context.data(), context.watch
    model = fresh_model(context)
    draw = config.train.picture_every if config.model.predicts_pixels else 0
    draw = draw and max(draw, config.train.epochs // 20)
    measure, evaluate = config.pipeline.measure_every, config.evaluation_every
    if evaluate is None:
        evaluate = max(1, config.train.epochs // 10)
    monitors = Monitors(context)
    val = data.val
    decoding = model if isinstance(model, VideoMAE) and val is not None else None

    def after_epoch(epoch: int, module: nn.Module) -> dict[str, float]:
        if watch.picture is not None and val is not None and decoding and draw and epoch % draw == 0:
            # A video that cannot be read costs a picture, not the training.
            with contextlib.suppress(VideoError):
                watch.picture(reconstruction_picture(decoding, val, config.evaluation_ratio), epoch)
        found = monitors.look(model, epoch)
        due = evaluate and (epoch % evaluate == 0 or epoch == config.train.epochs)
        if due and val is not None and decoding:
            found[HELD_OUT] = held_out_error(decoding, val, config, context.device)
        if measure and (epoch % measure == 0 or epoch == config.train.epochs):
            found["knn_top1"] = knn_inside(model, context)
        if epoch == config.pipeline.probe_at and val is not None:
            found["probe_top1"] = read_out(replace(context, watch=Watch(), model=lambda: model))[0].top1
        return found

    return pretrain(
        model=model,
        mask=config.mask,
        dataset=data.train,
        **context.training(),
        after_epoch=after_epoch,
        measured=_measured(config),
    )


def _measured(config: Config) -> tuple[str, ...]:
    return ("knn_top1",) if config.pipeline.measure_every else ()


def reconstruction_picture(model: VideoMAE, dataset: ClipDataset, ratio: float, index: int = 0) -> np.ndarray:
    """A contact sheet of one held-out clip, its tube mask the same for every model and epoch."""
    import numpy as np
    import torch

    from vmae.core.measure.films import contact_sheet, film_rows
    from vmae.core.measure.reconstruct import FORMS, reconstruct
    from vmae.core.model.masking import sample_mask
    from vmae.core.numerics import clip_to_video, make_generator

    clip = torch.as_tensor(dataset[index]["clip"])[None]
    device = next(model.parameters()).device
    mask = sample_mask("tube", ratio, model.config.grid, 1, make_generator(index, "picture")).to(device)
    made = reconstruct(model, clip_to_video(clip, device), mask)
    rows = film_rows(made, FORMS[:1] if made.target == "raw" else FORMS)
    return np.asarray(contact_sheet(rows, max_columns=6, scale=112 / made.original.shape[2]))


def held_out_error(model: VideoMAE, dataset: ClipDataset, config: Config, device: torch.device) -> float:
    """Mean loss on held-out clips at the common evaluation ratio, with the same tube masks always."""
    from vmae.core.measure.probe import evaluation_loss
    from vmae.core.model.masking import MaskConfig

    mask = MaskConfig(type="tube", ratio=config.evaluation_ratio)
    return evaluation_loss(model, dataset, mask, device=device, precision=config.train.precision)


class Monitors:
    """`vmae.core.measure.monitors` during a pre-training, on some clips of its training list."""

    def __init__(self, context: Context) -> None:
        from vmae.core.measure.monitors import plan_monitors

        config, self._context = context.config, context
        self._random: dict[str, float] | None = None
        listed = context.data()
        self._plan = plan_monitors(
            config.monitor,
            config.model,
            config.mask,
            videos=len(listed.train_plain),
            clips_an_epoch=len(listed.train) * config.data.repeats,
            epochs=config.train.epochs,
        )

    def look(self, model: PretrainedModel, epoch: int) -> dict[str, float]:
        """The monitors where this epoch is looked at, with those of the same network before training."""
        if self._plan is None or epoch not in self._plan.epochs:
            return {}
        from vmae.core.errors import InputError
        from vmae.core.measure.monitors import against

        try:
            if self._random is None:  # once a process: a resumed run draws the same network again
                self._random = self._measure(random_model(self._context.config))
            found = against(self._measure(model), self._random)
        except InputError:  # none of these clips can be read: the training decides what that means
            return {}
        return {f"monitor_{name}": value for name, value in found.items()}

    def _measure(self, model: PretrainedModel) -> dict[str, float]:
        from vmae.core.measure.monitors import monitor
        from vmae.core.model.masking import MaskConfig

        assert self._plan is not None
        context, config = self._context, self._context.config
        masks = MaskConfig(type="tube", ratio=config.evaluation_ratio) if config.monitor.lidar else None
        return monitor(
            model,
            context.data().train_plain.some(self._plan.clips, config.train.seed),
            masks=masks,
            device=context.device,
            precision=config.train.precision,
        )


def knn_inside(model: PretrainedModel, context: Context) -> float:
    """Leave-one-out accuracy of nearest neighbours on features of the training list, in [0, 1].

    The held-out list is not looked at, so this may decide which trials go on.
    """
    from vmae.core.measure.probe import Pooling, extract_features, knn_probe

    config, data = context.config, context.data()
    pooling: Pooling = "time" if config.probe.pooling == "tokens" else config.probe.pooling
    found = extract_features(
        model, data.train_plain, pooling=pooling, device=context.device, precision=config.train.precision
    )
    return knn_probe(found, found, config.probe, data.num_classes).selection_top1


def numbers(result: TrainResult) -> Numbers:
    """Speed, steps left out, and nearest neighbours, the probe and monitors as measured last."""
    found = {RATE.name: result.clips_per_s, SKIPPED.name: float(result.skipped_steps)}
    for epoch in result.history:
        own = ("knn_top1", "probe_top1")
        looked = {k: v for k, v in epoch.items() if k in own or k.startswith("monitor_")}
        found |= {f"pretrain/{name}": value for name, value in looked.items()}
    return found


STAGE = Stage(
    name="pretrain",
    metrics=(LOSS, ERROR, KNN, ON_THE_WAY, *MONITORS, RATE, SKIPPED),
    share=lambda config: float(config.train.epochs),
    train=train,
    numbers=numbers,
    section="train",
    check=check,
    ready=ready,
    flops=flops,
    recipe="demo_pretrain",
    advised=True,
    masked=True,
    unused=("finetune.", "detect.", "localise.", "pipeline.then", "pipeline.finetune_", "pipeline.scratch"),
    model_tag=tags.CHECKPOINT,
    kept_as="pretrained",
)


def _keep_fresh(context: Context) -> Numbers:
    from vmae.core.weights.checkpoint import save_model

    save_model(context.home.model, fresh_model(context), {"job": "random weights"})
    return {}


BASELINE = Stage(
    name=STAGE.name,
    metrics=(),
    share=lambda config: 0.0,
    run=_keep_fresh,
    model_tag=STAGE.model_tag,
    kept_as=STAGE.kept_as,
)
"""What stands in its place in a trial that is not pre-trained."""
