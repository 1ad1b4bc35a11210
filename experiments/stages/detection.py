"""Action detection on key frames (AVA): what each person there does, trained end to end, by frame-mAP."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmae.experiments.stages.finetune import measured_on
from vmae.experiments.stages.stage import (
    SHARE,
    Config,
    Context,
    Measured,
    Metric,
    Numbers,
    Stage,
    Tested,
)
from vmae.experiments.tracking import tags

if TYPE_CHECKING:
    from vmae.core.measure.detect import Detections, People
    from vmae.core.measure.detection import DetectionResult
    from vmae.core.measure.statistics import Interval
    from vmae.core.model.detector import VideoDetector
    from vmae.core.model.encoder import VideoModel
    from vmae.core.model.end_to_end import EndToEndDetector
    from vmae.core.progress import Progress
    from vmae.core.train.task import TrainResult
    from vmae.core.video.coco import Proposals
    from vmae.core.video.samples import Sample

FRAME_MAP = Metric(
    name="detection/frame_map",
    title="frame-mAP at IoU 0.5",
    column="frame-mAP",
    unit=SHARE,
    score=True,
    where="on held-out key frames",
    chance="detection/chance",
)
END_TO_END = ("keep_rate", "key_weight", "queries", "context_depth")
"""Fields of the detect section that an end-to-end detector's configuration has too."""
SHOWN = 5
"""Actions of the highest and of the lowest average precision that are named."""


@dataclass(frozen=True, kw_only=True)
class Actions:
    """The classes of a configuration: `names` of ids 1 to C, and which ids count in the mean."""

    names: list[str]
    evaluated: tuple[int, ...]


def actions_of(config: Config) -> Actions:
    """From the label map; without one ids are names, and all count. InputError for ids beyond the classes."""
    from vmae.core.errors import InputError
    from vmae.core.video.ava import read_label_map

    count, file = config.detect.num_classes, config.detect.label_map
    named = read_label_map(file) if file else {i: str(i) for i in range(1, count + 1)}
    if max(named) > count:
        raise InputError(
            f"{file}: expected ids 1 to {count} (detect.num_classes), got {max(named)} '{named[max(named)]}'"
        )
    return Actions(names=[named.get(i, str(i)) for i in range(1, count + 1)], evaluated=tuple(sorted(named)))


def settings(config: Config) -> Config:
    """The pipeline's optimiser and loop, the whole training list, no augmentation that moves pixels out of
    boxes, and films decoded as they are read."""
    pipeline = config.pipeline
    return replace(
        config,
        job=STAGE.name,
        data=replace(config.data, train_share=1.0, cache=False, rand_augment=""),
        optim=pipeline.finetune_optim,
        train=replace(pipeline.finetune_train, seed=config.train.seed),
    )


def check(config: Config) -> None:
    """Raise InputError for an unknown `train.best_by`, and for pixels that leave their boxes."""
    from vmae.core.errors import InputError
    from vmae.core.train.config import metric_of_best
    from vmae.core.train.detect import VALIDATED

    metric_of_best(config.train.best_by, VALIDATED)
    if config.data.rand_augment:
        raise InputError(
            "data.rand_augment: expected none in detection (it moves pixels out of their boxes), got "
            f"'{config.data.rand_augment}'"
        )


def ready(config: Config) -> None:
    """Raise InputError for a label map, proposals or lists of excluded key frames that cannot be read."""
    from vmae.core.video.ava import read_excluded

    actions_of(config)
    for listed in config.data.excluded:
        read_excluded(listed)
    proposals_of(config, config.data.val_csv or config.data.test_csv)


def check_list(config: Config, samples: Sequence[Sample], listed: str) -> None:
    """Raise InputError for other than key frames, unknown actions, and proposals of other key frames."""
    from vmae.core.errors import InputError
    from vmae.core.train.detect import check_key_frames

    check_key_frames(samples, config.detect.num_classes, listed)
    if samples and listed != config.data.train_csv:
        found = proposals_of(config, listed)
        if found is not None and len(found.without(samples)) == len(samples):
            known = next(iter(found.people), None)
            first = f"the first is {known[0]} at {known[1]:g} s" if known else "the file has nobody at all"
            raise InputError(
                f"{config.detect.proposals}: expected people in the key frames of {listed}, such as "
                f"{Path(samples[0].path).stem} at {samples[0].time_s:g} s; got none of them ({first})"
            )


def proposals_of(config: Config, listed: str) -> Proposals | None:
    """The people that `detect.proposals` has for a list; None without such a file."""
    from vmae.core.video.coco import read_images, read_proposals

    file = config.detect.proposals
    if not file:
        return None
    images = read_images(listed) if listed.lower().endswith(".json") else None
    return read_proposals(file, images=images, min_score=config.detect.min_score)


def people_of(proposals: Proposals | None) -> People:
    """The proposals' people, or without any the annotated ones."""
    from vmae.core.measure.detect import proposed_people, true_people

    return true_people if proposals is None else proposed_people(proposals)


def flops(config: Config) -> float:
    """Of the encoder on all tokens."""
    from vmae.core.plan import training_flops

    return training_flops(config.model, None)


def build_detector(config: Config, init: VideoModel | None = None) -> VideoDetector | EndToEndDetector:
    """A detector (with `detect.end_to_end` one that finds its people) on `config.model`'s encoder, with
    `init`'s encoder weights where there are any.

    The head is drawn from the run's seed either way; torch's global generator is left as it was.
    """
    import torch

    from vmae.core.model.detector import VideoDetector, VideoDetectorConfig
    from vmae.core.model.end_to_end import EndToEndConfig, EndToEndDetector
    from vmae.core.numerics import derive_seed

    d = config.detect
    shared = ("drop_path", "dropout", "init_scale", "roi_aligned")
    changes = {name: getattr(d, name) for name in shared}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.train.seed, "weights"))
        model: VideoDetector | EndToEndDetector
        if d.end_to_end:
            own = {name: getattr(d, name) for name in END_TO_END}
            found = EndToEndConfig.from_encoder(config.model, **changes, **own)
            model = EndToEndDetector(found, d.num_classes)
        else:
            model = VideoDetector(VideoDetectorConfig.from_encoder(config.model, **changes), d.num_classes)
    if init is not None:
        model.load_encoder(init)
    return model


def train(context: Context) -> TrainResult:
    """Train a detector, or continue the one there, validated on the whole frames of the held-out list."""
    from vmae.core.train.detect import train_detector
    from vmae.core.video.whole import WholeFrames

    config, data, actions = context.config, context.data(), actions_of(context.config)
    val = None
    if data.val is not None:
        val = WholeFrames(data.val.samples, config.data, multiple=config.model.patch_size)
    return train_detector(
        model=build_detector(config, context.model()),
        config=config.detect,
        dataset=data.train,
        val=val,
        classes=actions.evaluated,
        people=people_of(proposals_of(config, config.data.val_csv)),
        labels=actions.names,
        **context.training(),
    )


def test(context: Context, place: Path, progress: Callable[[int], Progress] | None = None) -> Tested:
    """Frame-mAP of the detector at `place`, by class; predictions.csv (AVA's results) and metrics.json."""
    from contextlib import nullcontext

    from vmae.core.files import write_json
    from vmae.core.measure.detect import detect, films_of, score_detections, write_detections
    from vmae.core.measure.precision import map_interval
    from vmae.core.model.detector import VideoDetector
    from vmae.core.model.end_to_end import EndToEndDetector
    from vmae.core.train.detect import VALIDATED
    from vmae.core.video.whole import WholeFrames
    from vmae.core.weights.checkpoint import load_model
    from vmae.core.weights.models import expect_model
    from vmae.experiments.data import read_list

    config, actions = context.config, actions_of(context.config)
    kind: type[VideoDetector | EndToEndDetector] = VideoDetector
    if config.detect.end_to_end:
        kind = EndToEndDetector
    model = expect_model(load_model(place)[0], kind, place)
    on = measured_on(config, best=place.name == context.home.best.name, validated=VALIDATED)
    samples = read_list(config.data, on.listed)
    check_list(config, samples, on.listed)
    proposals = proposals_of(config, on.listed)
    with progress(len(samples)) if progress is not None else nullcontext() as shown:
        found = detect(
            model,
            WholeFrames(samples, config.data, multiple=model.config.patch_size),
            people_of(proposals),
            extension=config.detect.extension,
            device=context.device,
            precision=config.train.precision,
            progress=shown,
        )
    scored = score_detections(found, actions.evaluated)
    reached = _Reached(
        scored=scored,
        interval=map_interval(scored.mean_ap, scored.judged, films_of(found.samples)),
        chance=chance(found, actions.evaluated),
        found=found,
        proposals=proposals,
        end_to_end=config.detect.end_to_end,
        min_score=config.detect.min_score,
        actions=actions,
        on=on,
    )
    home = context.home.evaluation
    home.path.mkdir(parents=True, exist_ok=True)
    write_detections(home.predictions, found, actions.evaluated)
    write_json(home.metrics, {**reached.facts(), "data": _reading(config)})
    return Tested(
        numbers=reached.numbers(), files=[home.predictions, home.metrics], lines=reached.lines(), on=on
    )


def _reading(config: Config) -> dict[str, Any]:
    """How the list and its clips were read, so that they can be shown."""
    from vmae.core.config import to_dict

    kept = ("data_root", "annotation_format", "excluded", "time_origin_s", "frames", "sampling_rate")
    return {name: to_dict(config.data)[name] for name in kept}


def chance(found: Detections, classes: Sequence[int]) -> float:
    """Frame-mAP of random scores for the same people."""
    import numpy as np

    from vmae.core.measure.detect import score_detections

    random = np.random.default_rng(0).random(found.scores.shape).astype(np.float32)
    return score_detections(replace(found, scores=random), classes).mean_ap


def run(context: Context) -> Numbers:
    """The last weights, not those of the best epoch: that one was chosen on this list."""
    found = test(context, context.home.model)
    return {f"{STAGE.name}/{k}": v for k, v in found.numbers.items()}


def _word(name: str) -> str:
    """An action's name as a metric may be called."""
    return re.sub(r"[^0-9A-Za-z]+", "_", name).strip("_")


@dataclass(frozen=True, kw_only=True)
class _Reached:
    """A test's result, as it is logged, written and shown."""

    scored: DetectionResult
    interval: Interval | None
    """Of the mean, over films."""
    chance: float
    found: Detections
    proposals: Proposals | None
    end_to_end: bool
    min_score: float
    actions: Actions
    on: Measured

    @property
    def people(self) -> int:
        """Annotated, in all key frames."""
        return sum(len(s.boxes) for s in self.found.samples)

    def numbers(self) -> Numbers:
        """The mean, chance, and the average precision of every action."""
        by_action = {f"ap/{_word(self.name(c))}": ap for c, ap in self.scored.ap.items()}
        return {"frame_map": self.scored.mean_ap, "chance": self.chance, **by_action}

    def name(self, action: int) -> str:
        """Of an action id."""
        return self.actions.names[action - 1]

    def lines(self) -> list[str]:
        """To be shown."""
        from vmae.core.measure.statistics import share_text

        ap, proposals, listed = self.scored.ap, self.proposals, Path(self.on.listed).name
        given = "proposals" if proposals is not None else "annotated boxes (detect.proposals: found ones)"
        if self.end_to_end:
            given = "people that it found itself"
        lines = [
            f"frame-mAP at IoU 0.5 {share_text(self.scored.mean_ap, self.interval)} (random scores "
            f"{self.chance:.1%}) over {len(ap)} actions, {self.people} people in "
            f"{len(self.found.samples)} key frames of {listed}, on {given}"
        ]
        named = [f"{self.name(c)} {ap[c]:.1%}" for c in sorted(ap, key=lambda c: -ap[c])]
        if len(named) > 2 * SHOWN:
            named = [*named[:SHOWN], "...", *named[-SHOWN:]]
        lines.append(f"by action: {', '.join(named)}")
        if proposals is not None:
            lines.append(
                f"left out: {proposals.below} proposals below {self.min_score:g}, {proposals.empty} inverted "
                "or outside the frame"
            )
            if without := proposals.without(self.found.samples):
                missed = sum(len(s.boxes) for s in without)
                lines.append(
                    f"{len(without)} key frames have no proposal: their {missed} people count as missed"
                )
        if self.found.failed:
            lines.append(
                f"{len(self.found.failed)} key frames could not be read: their people count as missed"
            )
        if self.on.chose:
            lines.append(f"{listed} chose the epoch: data.test_csv measures on films that did not")
        return lines

    def facts(self) -> dict[str, Any]:
        """For metrics.json."""
        from vmae.core.measure.statistics import ends_of

        proposals = self.proposals
        return {
            "frame_map": self.scored.mean_ap,
            "interval": ends_of(self.interval),
            "chance": self.chance,
            "key_frames": len(self.found.samples),
            "people": self.people,
            "end_to_end": self.end_to_end,
            "unreadable": [f["path"] for f in self.found.failed],
            "proposals": None
            if proposals is None
            else {
                "below": proposals.below,
                "outside": proposals.empty,
                "key_frames_without": len(proposals.without(self.found.samples)),
            },
            "list": self.on.listed,
            "chose": self.on.chose,
            "without_truth": [self.name(c) for c in self.scored.without_truth],
            "names": [{"id": i, "name": name} for i, name in enumerate(self.actions.names, 1)],
            "classes": [
                {"id": c, "name": self.name(c), "ap": ap, "true_boxes": self.scored.true_boxes[c]}
                for c, ap in self.scored.ap.items()
            ],
        }


STAGE = Stage(
    name="detection",
    metrics=(
        FRAME_MAP,
        Metric(name="detection/chance", title="frame-mAP of random scores", unit=SHARE),
        Metric(
            name="detection/loss",
            title="detection loss",
            column="detection loss",
            higher_is_better=False,
            digits=3,
            curve=True,
        ),
        Metric(name="test/frame_map", title="test frame-mAP", unit=SHARE, score=True, where=FRAME_MAP.where),
        Metric(
            name="val/final_frame_map",
            title="frame-mAP of the chosen epoch",
            unit=SHARE,
            score=True,
            where="on the key frames that chose it",
        ),
        Metric(
            name="detection/val_frame_map",
            title="validation frame-mAP",
            unit=SHARE,
            score=True,
            curve=True,
            where=FRAME_MAP.where,
        ),
    ),
    share=lambda config: 2.0 * config.pipeline.finetune_train.epochs,
    train=train,
    run=run,
    section="pipeline.finetune_train",
    settings=settings,
    check=check,
    ready=ready,
    flops=flops,
    varies="detection (the number of people differs from step to step)",
    task="detection",
    recipe="demo_detection",
    watches=lambda config: int(config.detect.eval_every),
    check_list=check_list,
    test=test,
    unused=(
        "mask.",
        "pipeline.",
        "probe.",
        "monitor.",
        "finetune.",
        "localise.",
        "model.decoder_",
        "model.drop_path",
        "data.crops",
    ),
    model_tag=tags.CLASSIFIER,
    best_counts=True,
    baseline="trained from scratch",
)
