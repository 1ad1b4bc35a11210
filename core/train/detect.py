"""Fine-tuning an action detector on key frames (AVA), on the same loop as the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from vmae.core.errors import InputError
from vmae.core.measure.detect import People, detect, score_detections, true_people
from vmae.core.model.detector import VideoDetector, detection_loss
from vmae.core.model.end_to_end import EndToEndDetector, end_to_end_loss
from vmae.core.numerics import clip_to_video, derive_seed
from vmae.core.train.config import TrainConfig
from vmae.core.train.loop import Trainer
from vmae.core.train.optim import OptimConfig
from vmae.core.train.task import LabelledTask, StepContext, TrainResult, Where
from vmae.core.video.boxes import TEST_EXTENSION, TRAIN_JITTER, crop_boxes, has_area, jitter_boxes, to_pixels
from vmae.core.video.clips import ClipDataset
from vmae.core.video.samples import Sample
from vmae.core.video.whole import WholeFrames

VALIDATED = ("val/frame_map",)
"""What an epoch's validation measures that can say which epoch is best (`train.best_by`)."""


@dataclass(frozen=True, kw_only=True)
class DetectConfig:
    """What detection adds to the data, the optimiser and the loop. Defaults are the official repository's."""

    label_map: str = ""
    """AVA's `.pbtxt`: the actions' names, and which ids are evaluated; empty: all that the list has."""
    num_classes: int = 80
    """Action ids go from 1 to this."""
    proposals: str = ""
    """People that a detector found in the validation list (see `vmae.core.video.coco`); empty: the
    annotated boxes, which makes the mAP an upper bound."""
    min_score: float = 0.8
    """Proposals below it are left out."""
    jitter: tuple[float, float, float, float] = TRAIN_JITTER
    """Most that a training box's edges move out and in, in shares of its width, then of its height."""
    extension: tuple[float, float] = TEST_EXTENSION
    """Test boxes are so much wider and higher."""
    end_to_end: bool = False
    """Find the people too, in the tokens of the key frame (EVAD): no person detector, no proposals."""
    keep_rate: float = 1.0
    """End to end: share of the tokens that three blocks of the encoder keep each, the key frame's first."""
    key_weight: float = 1.0
    """End to end: how often what the key frame's tokens attend to counts in the choice of the others that
    stay (EVAD: 1 with its keep rate of 0.7, 4 with 0.6)."""
    queries: int = 100
    """End to end: people of a key frame at most."""
    context_depth: int = 2
    """End to end: blocks of attention over tokens and people."""
    roi_aligned: bool = True
    """See `VideoDetectorConfig`; the official models have False."""
    drop_path: float = 0.2
    """Stochastic depth of the last block; rises linearly from 0 at the first."""
    dropout: float = 0.0
    """Before the head."""
    init_scale: float = 0.001
    """The fresh head's weights are scaled by it."""
    eval_every: int = 1
    """Epochs between validations (the last epoch always has one); 0: only the last."""

    def __post_init__(self) -> None:
        for name, count in (("jitter", 4), ("extension", 2)):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            values = getattr(self, name)
            if len(values) != count or not all(0 <= v < 0.5 for v in values):
                raise InputError(f"expected {count} numbers in [0, 0.5) in detect.{name}; got {values}")
        if self.num_classes < 1:
            raise InputError(f"expected detect.num_classes >= 1; got {self.num_classes}")
        for name in ("drop_path", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"expected detect.{name} in [0, 1); got {getattr(self, name)}")
        if not 0 < self.keep_rate <= 1:
            raise InputError(f"expected detect.keep_rate in (0, 1]; got {self.keep_rate}")
        if self.end_to_end and self.proposals:
            raise InputError(
                "expected no detect.proposals with detect.end_to_end, which finds its people; got "
                f"{self.proposals}"
            )
        if self.keep_rate < 1 and not self.end_to_end:
            raise InputError(
                f"expected detect.end_to_end with a detect.keep_rate below 1; got {self.keep_rate} without"
            )
        if not 0 <= self.key_weight < math.inf:
            raise InputError(f"expected detect.key_weight of 0 or more; got {self.key_weight}")
        if self.key_weight != 1 and self.keep_rate == 1:
            raise InputError(
                "expected a detect.keep_rate below 1 with a detect.key_weight, which chooses the tokens that "
                f"stay; got a weight of {self.key_weight:g} and a rate of 1"
            )
        for name in ("queries", "context_depth"):
            if getattr(self, name) < 1:
                raise InputError(f"expected detect.{name} >= 1; got {getattr(self, name)}")
        if not 0 <= self.min_score <= 1:
            raise InputError(f"expected detect.min_score in [0, 1]; got {self.min_score}")
        if not self.init_scale > 0:
            raise InputError(f"expected detect.init_scale > 0; got {self.init_scale}")
        if self.eval_every < 0:
            raise InputError(f"expected detect.eval_every >= 0; got {self.eval_every}")


def train_detector(
    *,
    model: VideoDetector | EndToEndDetector,
    config: DetectConfig,
    dataset: ClipDataset,
    val: WholeFrames | None,
    optim: OptimConfig,
    train: TrainConfig,
    classes: Sequence[int],
    people: People = true_people,
    resume: bool = True,
    should_stop: Callable[[], bool] | None = None,
    labels: list[str] | None = None,
    **where: Unpack[Where],
) -> TrainResult:
    """Train `model` (already with pre-trained weights and drop path) on the key frames of `dataset`.

    Boxes follow each clip's crop, resize and flip, those of which nothing is left are dropped, the others are
    jittered (end to end, where boxes are what is learnt, they are not). Every `config.eval_every` epochs the
    model is measured on `val`'s whole frames with `people`, by frame-mAP over the action ids `classes`.
    `labels` are the names of ids 1 to C, kept with the weights.

    Raises InputError for lists without boxes, ids that the model has no class for, or augmentation that
    moves pixels out of boxes, and as `pretrain` does.
    """
    for name, part in (("the training list", dataset), ("the validation list", val)):
        if part is not None:
            check_key_frames(part.samples, model.num_classes, name)
    if dataset.config.rand_augment:
        raise InputError("expected no data.rand_augment in detection: it moves pixels out of their boxes")
    kind = Finding if isinstance(model, EndToEndDetector) else Detecting
    own: dict[str, Any] = {"optim": optim, "train": train, "device": where.get("device", "cpu")}
    task = kind(dataset, classes, people, model=model, config=config, val=val, labels=labels, **own)
    trainer = Trainer(task, model, dataset, optim=optim, train=train, **where)
    return trainer.run(resume=resume, should_stop=should_stop)


class Detecting(LabelledTask):
    """The task: what each person of the key frame does."""

    name = "detection"
    varies = "detection (the number of people differs from step to step)"
    validated = VALIDATED
    section = "detect"
    _model: VideoDetector | EndToEndDetector
    _config: DetectConfig

    def __init__(self, dataset: ClipDataset, classes: Sequence[int], people: People, **given: Any) -> None:
        super().__init__(**given)
        self._samples, self._size = dataset.samples, dataset.config.size
        self._classes, self._people = classes, people

    def ahead(self, batch: dict[str, Any], context: StepContext) -> dict[str, Any]:
        """Of every box: its place [K, 4] in pixels, its clip [K], its actions [K, C]."""
        places, clips, targets = [], [], []
        for k, (index, cut) in enumerate(zip(batch["index"].tolist(), batch["cut"], strict=True)):
            own = self._samples[index].boxes
            boxes = to_pixels(np.array([b.box for b in own]), cut.height, cut.width)
            boxes = crop_boxes(boxes, cut.region, self._size, flip=cut.flip)
            row = int(context.rows[k])
            rng = np.random.default_rng(derive_seed(context.seed, context.epoch, context.step, row, "boxes"))
            kept = np.flatnonzero(has_area(boxes))
            places.append(self._jittered(boxes[kept], rng))
            clips += [k] * len(kept)
            for b in kept:
                target = np.zeros(self._model.num_classes, np.float32)
                target[np.array(own[b].actions) - 1] = 1
                targets.append(target)
        table = np.array(targets, np.float32).reshape(-1, self._model.num_classes)
        return {
            "boxes": torch.from_numpy(np.concatenate([np.empty((0, 4)), *places])).float(),
            "clips": torch.tensor(clips, dtype=torch.int64),
            "actions": torch.from_numpy(table),
        }

    def _jittered(self, boxes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = self._size
        return jitter_boxes(boxes, height, width, rng, self._config.jitter)

    def inputs(self, batch: dict[str, Any], context: StepContext) -> tuple[Tensor, ...]:
        given = (batch[name].to(context.device) for name in ("boxes", "clips", "actions"))
        return clip_to_video(batch["clip"], context.device), *given

    def loss(self, module: nn.Module, *inputs: Tensor) -> Tensor:
        video, boxes, clips, targets = inputs
        return detection_loss(module(video, boxes, clips), targets)

    def validate(self, val: WholeFrames) -> dict[str, float]:
        found = detect(
            self._model,
            val,
            self._people,
            extension=self._config.extension,
            device=self._device,
            precision=self._train.precision,
        )
        return {"frame_map": score_detections(found, self._classes).mean_ap}


class Finding(Detecting):
    """The task of a detector that finds its people: who is in the key frame, and what they do."""

    def _jittered(self, boxes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return boxes

    def loss(self, module: nn.Module, *inputs: Tensor) -> Tensor:
        video, boxes, clips, targets = inputs
        height, width = self._size
        shares = boxes / boxes.new_tensor([width, height, width, height])
        return end_to_end_loss(module(video), shares, clips, targets)


def check_key_frames(samples: Sequence[Sample], num_classes: int, where: str) -> None:
    """Raise InputError for samples that are no key frames, or have action ids beyond the classes."""
    for sample in samples:
        if sample.time_s is None:
            raise InputError(f"{where}: expected key frames with boxes (AVA), got {sample.path} without")
        worst = max((a for b in sample.boxes for a in b.actions), default=1)
        if worst > num_classes:
            raise InputError(
                f"{where}: expected action ids 1 to {num_classes} (detect.num_classes), got {worst} in "
                f"{sample.path} at {sample.time_s:g} s"
            )
