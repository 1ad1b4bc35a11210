"""A configuration for a list of short videos, this machine and a budget of time, each choice with a reason.

`recommend` is a pure function of what the list is like (`ListFacts`), what the machine is (`Machine`), what
a clip takes (`speed`, a few timed steps) and the seconds there are. It starts from a recipe of `small_clips`
and changes what these decide; the rest stands in the recipe, beside its measurements.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from vmae.core.errors import InputError
from vmae.core.plan import training_bytes
from vmae.core.progress import format_duration
from vmae.core.video.facts import ListFacts
from vmae.experiments import stages
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.outlook import SHORT_S, require_classes
from vmae.experiments.recipes import small_clips

Flip = Literal["auto", "yes", "no"]
START_S = 15.0
"""Seconds that are not decoding, training or measuring: imports, lists, MLflow's store."""
STRETCH_S = 4.0
"""What a clip of a long video spans."""
KEY_FRAME_S = 2.0
"""What one around a key frame spans (AVA's recipes: 16 frames, every fourth of 30 a second)."""
BACKGROUND = "background"
"""What that choice is called."""
PRETRAINING = "pre-training first"
STILL = 0.5
"""`ListFacts.still` from which a scene is taken away. The two measured sets have 0.76 and 0.81."""
PROCESS_BYTES = 500 * 2**20
"""Python with torch, before a model."""
EPOCHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 70, 80, 100, 120, 150, 200, 250, 300, 400)
"""Coarse, so that timing steps again seldom gives another configuration."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a training may use; `memory` in bytes, `gpu` the device's name or empty."""

    cores: int
    memory: int
    gpu: str = ""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Seconds on this machine: a clip's share of a step, decoding a video whole, cutting a clip from it."""

    step_s: float
    decode_s: float
    cut_s: float
    threads: int = 1


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One line of the answer."""

    what: str
    value: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The configuration, why, and what it takes on a machine that is left alone; `memory` in bytes."""

    config: ExperimentConfig
    choices: tuple[Choice, ...]
    seconds: float
    memory: int
    speed: Speed
    """What was measured to find it."""
    undecided: bool = False
    """Whether the background is better tried (`tryout.try_backgrounds`) than told by the list's looks."""

    def with_background(self, value: str, reason: str) -> Recommendation:
        """The same with this background, which was tried."""
        config = replace(self.config, model=replace(self.config.model, background=value))
        found = self.with_choice(Choice(what=BACKGROUND, value=value, reason=reason))
        return replace(found, config=config, undecided=False)

    def with_choice(self, choice: Choice) -> Recommendation:
        """The same with another line for a choice."""
        return replace(self, choices=tuple(choice if c.what == choice.what else c for c in self.choices))


def default_budget_s(videos: int) -> float:
    """Two and a half minutes up to 400 videos, then in proportion to them, 20 minutes at most."""
    return min(1200.0, max(150.0, 150.0 * videos / 400))


def recommend(
    job: str,
    lists: ListFacts,
    machine: Machine,
    budget_s: float,
    speed: Callable[[ExperimentConfig], Speed],
    *,
    held_out: int = 0,
    flip: Flip = "auto",
    start: ExperimentConfig | None = None,
    keep_cut: bool = False,
    grouped: bool = False,
) -> Recommendation:
    """Choose clip, augmentation, batch and length of a training.

    `held_out` videos are measured at the end. `start` replaces the recipe to start from, its clip and model
    stay (an initial model's); `keep_cut`: which frames and crops it takes too. `speed` times a configuration,
    once. `grouped`: groups are known, so that a choice may be tried inside the list.

    Raises InputError for labels of one class in fine-tuning and a budget that is not above zero.
    """
    require_classes(job, lists.class_counts, lists.classes)
    if not budget_s > 0:
        raise InputError(f"--budget: expected more than 0 seconds, got {budget_s:g}")
    config, choices = start or recipe_for(job, gpu=bool(machine.gpu)), []
    cut = () if keep_cut else (_sampling, _crop)
    for decide in (_clip, _background, *cut, _batch):
        config, choice = decide(config, lists)
        choices.append(choice)
    config, choice = _mirror(config, lists, flip)
    choices.append(choice)
    measured = speed(config)
    undecided = grouped and _is_open(config, lists)
    if undecided:
        choices = [_to_be_tried(c) if c.what == BACKGROUND else c for c in choices]
    config, choice = _length(config, lists, budget_s, measured, held_out)
    choices += [choice, _threads(config, measured), *_pretraining(config)]
    seconds = predicted_s(config, lists.videos, held_out, measured)
    mask = config.mask if stages.STAGES[job].masked else None
    micro = config.train.batch_size // config.train.accumulate * config.data.repeats
    memory = PROCESS_BYTES + training_bytes(config.model, mask, micro, half=bool(machine.gpu))
    return Recommendation(
        config=config,
        choices=tuple(choices),
        seconds=seconds,
        memory=memory,
        speed=measured,
        undecided=undecided,
    )


def _is_open(config: ExperimentConfig, lists: ListFacts) -> bool:
    """Whether the list's looks leave the background open."""
    told = lists.scene >= (1 + lists.chance) / 2
    return stages.STAGES[config.job].labels and not config.init and not told


def _to_be_tried(choice: Choice) -> Choice:
    return replace(choice, reason=f"{choice.reason}; both are tried inside the training list first")


def cut_for(config: ExperimentConfig, lists: ListFacts) -> tuple[ExperimentConfig, tuple[Choice, ...]]:
    """How clips of the list are cut for a model that is there, by `config`'s shape; and why."""
    short = min(config.data.size) * 7 // 6
    config = replace(config, data=replace(config.data, short_side=short))
    config, sampling = _sampling(config, lists)
    config, crop = _crop(config, lists)
    return config, (sampling, crop)


def predicted_s(config: ExperimentConfig, videos: int, held_out: int, speed: Speed) -> float:
    """Seconds of the whole run on a machine that is left alone."""
    fixed, epoch = _fixed_s(config, videos, held_out, speed), epoch_s(config, videos, held_out, speed)
    return fixed + config.train.epochs * epoch


def _fixed_s(config: ExperimentConfig, videos: int, held_out: int, speed: Speed) -> float:
    """Start, decoding into the cache, and the held-out clips at the end."""
    return START_S + decoding_s(config, videos + held_out, speed) + test_s(config, held_out, speed)


def decoding_s(config: ExperimentConfig, videos: int, speed: Speed) -> float:
    """Seconds of decoding into the cache; none without one."""
    return videos * speed.decode_s / speed.threads if config.data.cache else 0.0


def test_s(config: ExperimentConfig, held_out: int, speed: Speed) -> float:
    """Seconds of the measurement at the end: a third of a step a clip, as there is no backward."""
    return held_out * stages.STAGES[config.job].views(config) * (speed.cut_s + speed.step_s / 3)


def epoch_s(config: ExperimentConfig, videos: int, held_out: int, speed: Speed) -> float:
    """Seconds of an epoch. Without worker processes a clip is cut, then trained on; with them the slower
    side counts."""
    data = config.data
    load = speed.cut_s + (0.0 if data.cache else speed.decode_s)
    step = speed.step_s * data.repeats
    training = load + step if data.workers == 0 else max(step, load / data.workers)
    every = stages.STAGES[config.job].watches(config)
    watched = held_out * (load + speed.step_s / 3) / every if every else 0.0
    return videos // config.train.batch_size * config.train.batch_size * training + watched


def recipe_for(job: str, *, gpu: bool) -> ExperimentConfig:
    """The recipe to start from."""
    cpu = small_clips.small_clips_finetune, small_clips.small_clips_pretrain
    large = small_clips.small_clips_gpu_finetune, small_clips.small_clips_gpu_pretrain
    return next(made for made in (make() for make in (large if gpu else cpu)) if made.job == job)


def _clip(config: ExperimentConfig, lists: ListFacts) -> tuple[ExperimentConfig, Choice]:
    model = config.model
    value = f"{model.frames} frames, {model.height}x{model.width}, patch {model.patch_size}, tubelet "
    reason = "the measured default of this kind of machine (docs/start.md)"
    if config.init:
        reason = "as the initial weights have it"
    what = f"{model.grid.num_tokens} tokens for {model.depth} blocks of width {model.embed_dim}: {reason}"
    return config, Choice(what="clip, model", value=f"{value}{model.tubelet_size}", reason=what)


def _background(config: ExperimentConfig, lists: ListFacts) -> tuple[ExperimentConfig, Choice]:
    """Without the scene where the camera stands still; initial weights keep what they were trained on."""
    model, share = config.model, f"{lists.still:.0%} of what the pixels vary by is the mean frame's"
    if config.init:
        reason = "as the initial weights have it"
    elif not stages.STAGES[config.job].labels:
        reason = "the scene is part of what pre-training predicts"
    elif lists.scene >= (1 + lists.chance) / 2:
        model = replace(model, background="keep")
        reason = (
            f"the nearest picture is of the same class for {lists.scene:.0%} of the videos: the scene tells"
        )
    elif lists.still >= STILL:
        model = replace(model, background="subtract")
        reason = f"{share}: a still scene, by which so few videos would be learnt by heart"
    else:
        model = replace(model, background="keep")
        reason = f"{share}: the camera moves, there is no still scene to take away"
    return replace(config, model=model), Choice(what=BACKGROUND, value=model.background, reason=reason)


def _sampling(config: ExperimentConfig, lists: ListFacts) -> tuple[ExperimentConfig, Choice]:
    """Evenly over short videos, a stretch of long ones, the seconds around a key frame."""
    data, frames = config.data, config.data.frames
    if lists.key_frames:
        rate = max(1, round(KEY_FRAME_S * lists.fps / frames))
        data = replace(data, sampling="dense", sampling_rate=rate)
        reason = f"a clip shows the {frames * rate / lists.fps:.1f} s around its key frame"
        return replace(config, data=data), Choice(
            what="sampling", value=f"every {rate}th frame", reason=reason
        )
    if lists.seconds <= SHORT_S:
        reason = (
            f"the median video has {lists.seconds:.1f} s: one frame of each {frames}th of it covers it all"
        )
        data = replace(data, sampling="uniform")
        return replace(config, data=data), Choice(what="sampling", value="uniform", reason=reason)
    rate = max(1, round(STRETCH_S * lists.fps / frames))
    data = replace(data, sampling="dense", sampling_rate=rate, segments=max(5, data.segments))
    reason = (
        f"the median video has {lists.seconds:.0f} s: a clip shows {frames * rate / lists.fps:.1f} s of it, "
        f"{data.segments} clips are measured"
    )
    return replace(config, data=data), Choice(what="sampling", value=f"every {rate}th frame", reason=reason)


def _crop(config: ExperimentConfig, lists: ListFacts) -> tuple[ExperimentConfig, Choice]:
    """The recipe's crop, from videos that are not enlarged first."""
    data = config.data
    native = min(lists.height, lists.width)
    if native and data.short_side > native:
        data = replace(data, short_side=native)
    reason = f"decoded once with a short side of {data.decoded_short_side} of {native} pixels and kept"
    if lists.key_frames:
        data = replace(data, cache=False)
        reason = (
            f"with a short side of {data.decoded_short_side} of {native} pixels, decoded as they are read"
        )
    if data.rand_augment:
        reason += f"; then {data.rand_augment}"
    return replace(config, data=data), Choice(what="crop", value=data.augment, reason=reason)


def _batch(config: ExperimentConfig, lists: ListFacts) -> tuple[ExperimentConfig, Choice]:
    """The recipe's batch, less where an epoch would have fewer than four steps."""
    wanted = config.train.batch_size
    config = with_batch_for(config, lists.videos)
    batch = config.train.batch_size
    reason = f"{lists.videos // batch} steps an epoch: on short lists it is steps that count, not clips"
    if batch != wanted:
        reason += f" (the recipe has {wanted})"
    return config, Choice(what="batch", value=str(batch), reason=reason)


def with_batch_for(config: ExperimentConfig, videos: int) -> ExperimentConfig:
    """The configuration with its batch halved until an epoch of so many videos has four steps."""
    batch, wanted = config.train.batch_size, config.train.batch_size
    while batch > 1 and videos < 4 * batch:
        batch //= 2
    if batch == wanted:
        return config
    # The rate of a step is base_lr * batch / 256: with the root of the batch it falls half as fast.
    optim = replace(config.optim, base_lr=config.optim.base_lr * math.sqrt(wanted / batch))
    return replace(config, train=replace(config.train, batch_size=batch), optim=optim)


def _mirror(config: ExperimentConfig, lists: ListFacts, flip: Flip) -> tuple[ExperimentConfig, Choice]:
    """Mirrored clips only on request, and never without a word where the classes' names speak of sides."""
    sided = lists.sided()
    named = ", ".join(sided[:4])
    reason = "nobody said that a mirrored video keeps its class (--flip yes says so)"
    if sided and flip == "yes":
        reason = f"--flip yes, although a mirror may turn {named} into another class"
    elif flip != "auto":
        reason = f"--flip {flip}"
    elif sided:
        reason = f"a mirror may turn {named} into another class"
    elif not stages.STAGES[config.job].labels:
        reason = "as the published scripts"
    data = replace(config.data, flip=flip == "yes")
    value = "on" if data.flip else "off"
    return replace(config, data=data), Choice(what="flip", value=value, reason=reason)


def _length(
    config: ExperimentConfig, lists: ListFacts, budget_s: float, speed: Speed, held_out: int
) -> tuple[ExperimentConfig, Choice]:
    """As many epochs as end in the budget, and no more than are of use."""
    budget, videos = format_duration(budget_s), lists.videos
    most = most_epochs(config.job, videos)
    for epochs in reversed([e for e in EPOCHS if e <= most]):
        longer = with_epochs(config, epochs)
        if predicted_s(longer, videos, held_out, speed) <= budget_s:
            break
    reason = f"what ends in {budget}"
    if epochs == 1 and predicted_s(longer, videos, held_out, speed) > budget_s:
        reason = f"not even one ends in {budget}"
    elif epochs == max(e for e in EPOCHS if e <= most):
        reason = f"more are of little use on {videos} videos; it ends before {budget}"
    return longer, Choice(what="epochs", value=str(epochs), reason=reason)


def with_epochs(config: ExperimentConfig, epochs: int) -> ExperimentConfig:
    """So many epochs: saved and measured ten times, the first tenth warm-up."""
    every = max(1, epochs // 10)
    return replace(
        config,
        train=replace(config.train, epochs=epochs, checkpoint_every=every),
        optim=replace(config.optim, warmup_epochs=max(1.0, epochs / 10)),
        finetune=replace(config.finetune, eval_every=every),
    )


def most_epochs(job: str, videos: int) -> int:
    """Epochs above which a training is left to those who ask for it: fewer on longer lists."""
    scale = 200 if stages.STAGES[job].labels else 400
    return round(min(scale, max(scale / 8, scale * math.sqrt(200 / videos))))


def _pretraining(config: ExperimentConfig) -> list[Choice]:
    """What is said of pre-training on the same list first, which is offered only where it was tried."""
    if not stages.STAGES[config.job].labels or config.init:
        return []
    reason = "not offered: not tried on this list (vmae recommend LIST --try-pretraining tries it)"
    return [Choice(what=PRETRAINING, value="no", reason=reason)]


def _threads(config: ExperimentConfig, speed: Speed) -> Choice:
    reason = f"{speed.step_s * 1e3:.1f} ms a clip, the fastest of what was timed"
    if config.data.workers == 0:
        took, what = (
            (speed.cut_s, "cutting") if config.data.cache else (speed.cut_s + speed.decode_s, "reading")
        )
        said = ", too little for a process of its own" if config.data.cache else " (data.workers shares it)"
        reason += f"; {what} a clip takes {took * 1e3:.1f} ms{said}"
    value = f"{speed.threads}, {config.data.workers}"
    return Choice(what="threads, loader workers", value=value, reason=reason)
