"""A detector over key frames: what it says of each person there, and how well."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vmae.core.files import replacing
from vmae.core.measure.detection import DetectionResult, frame_map
from vmae.core.measure.precision import Instances
from vmae.core.model.detector import VideoDetector
from vmae.core.model.end_to_end import EndToEndDetector, Guesses
from vmae.core.numerics import autocast, clip_to_video, resolve_precision
from vmae.core.progress import Progress
from vmae.core.video.boxes import TEST_EXTENSION, extend_boxes, to_pixels
from vmae.core.video.coco import Proposals
from vmae.core.video.loader import build_loader
from vmae.core.video.samples import Sample
from vmae.core.video.whole import WholeFrames

People = Callable[[Sample], np.ndarray]
"""The people of a key frame: float64 [K, 5], `x1, y1, x2, y2` in shares of the frame and a score."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Detections:
    """What a detector says of the people of key frames, a row each."""

    samples: list[Sample]
    """The key frames, those without people or with a bad file too."""
    frame: np.ndarray
    """int64 [K]: the number of the row's key frame."""
    box: np.ndarray
    """float64 [K, 4]: the person's box as given, in shares of the frame."""
    scores: np.ndarray
    """float32 [K, C]: sigmoid times the person's own score, of action ids 1 to C."""
    failed: list[dict[str, Any]]
    """Key frames whose clip could not be read (`index`, `path`, `reason`, `detail`)."""


def films_of(samples: Sequence[Sample]) -> np.ndarray:
    """The number of each key frame's film (its file or folder), int64 [S]."""
    return np.unique([s.path for s in samples], return_inverse=True)[1]


def true_people(sample: Sample) -> np.ndarray:
    """The annotated boxes, each with a score of 1."""
    return np.array([[*b.box, 1.0] for b in sample.boxes], np.float64).reshape(-1, 5)


def proposed_people(proposals: Proposals) -> People:
    """The boxes that a person detector found; none in key frames it does not know."""

    def people(sample: Sample) -> np.ndarray:
        found = proposals.of(sample)
        return np.empty((0, 5)) if found is None else found

    return people


Rows = tuple[np.ndarray, np.ndarray, np.ndarray]
"""People of a few clips: the clip of each [K], boxes in shares of the frame [K, 4], scores [K, C]."""


@torch.no_grad()
def detect(
    model: VideoDetector | EndToEndDetector,
    dataset: WholeFrames,
    people: People = true_people,
    *,
    extension: tuple[float, float] = TEST_EXTENSION,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    precision: str = "auto",
    progress: Progress | None = None,
) -> Detections:
    """Scores of `people` in every key frame of `dataset`, boxes extended as published.

    An end-to-end detector finds its own: `people` and `extension` are not looked at, all its guesses are
    kept, and a score is that of the action times that of a person. Clips of one size are run together, up to
    `batch_size` at a time. Raises VideoError for a bad file unless the dataset's `bad_eval` is `count`.
    """
    device = torch.device(device)
    precision = resolve_precision(precision, device)
    was_training = model.training
    model.to(device).eval()
    frames, boxes, scores, failed = [], [], [], []
    for batch in build_loader(dataset, batch_size, shuffle=False, drop_last=False):
        failed += batch["failed"]
        index = batch["index"].tolist()
        by_size: dict[tuple[int, int], list[int]] = {}
        for k, clip in enumerate(batch["clip"]):
            by_size.setdefault(tuple(clip.shape[1:3]), []).append(k)
        for rows in by_size.values():
            video = torch.stack([batch["clip"][k] for k in rows])
            with autocast(precision, device):
                if isinstance(model, EndToEndDetector):
                    found = _found(model, clip_to_video(video, device))
                else:
                    given = [people(dataset.samples[index[k]]) for k in rows]
                    found = _said_of(model, video, given, extension, device)
            frames.append(np.array([index[rows[c]] for c in found[0]], np.int64))
            boxes.append(found[1])
            scores.append(found[2])
        if progress is not None:
            progress.update(len(index) + len(batch["failed"]))
    model.train(was_training)
    return Detections(
        samples=dataset.samples,
        frame=np.concatenate([np.empty(0, np.int64), *frames]),
        box=np.concatenate([np.empty((0, 4)), *boxes]),
        scores=np.concatenate([np.empty((0, model.num_classes), np.float32), *scores]),
        failed=failed,
    )


def _said_of(
    model: VideoDetector,
    video: Tensor,
    people: list[np.ndarray],
    extension: tuple[float, float],
    device: torch.device,
) -> Rows:
    """Of people that are given for each clip of `video`, uint8 [B, T, H, W, C]."""
    height, width = video.shape[2:4]
    table = np.concatenate(people)
    clips = np.repeat(np.arange(len(people)), [len(p) for p in people])
    if not len(table):
        return clips, table[:, :4], np.empty((0, model.num_classes), np.float32)
    pixels = extend_boxes(to_pixels(table[:, :4], height, width), height, width, extension)
    logits: Tensor = model(
        clip_to_video(video, device),
        torch.from_numpy(pixels).float().to(device),
        torch.from_numpy(clips).to(device),
    )
    own = torch.from_numpy(table[:, 4:]).float()
    return clips, table[:, :4], (logits.float().sigmoid().cpu() * own).numpy()


def _found(model: EndToEndDetector, video: Tensor) -> Rows:
    """The people that the model finds in clips [B, C, T, H, W], the likeliest first in each."""
    guesses: Guesses = model(video)
    person, order = guesses.person.sigmoid().sort(dim=1, descending=True, stable=True)
    box = guesses.box.gather(1, order[..., None].expand(-1, -1, 4))
    scores = guesses.actions.sigmoid().gather(1, order[..., None].expand_as(guesses.actions))
    scores = scores * person[..., None]
    clips = np.repeat(np.arange(len(video)), box.shape[1])
    return clips, box.flatten(0, 1).double().cpu().numpy(), scores.flatten(0, 1).cpu().numpy()


def score_detections(
    detections: Detections, classes: Iterable[int], *, max_per_frame: int | None = None
) -> DetectionResult:
    """Frame-mAP at IoU 0.5 over the action ids `classes`, of all key frames: those without people, and
    those whose file is bad, count with every true box missed."""
    truth = [
        (k, action, box.box)
        for k, sample in enumerate(detections.samples)
        for box in sample.boxes
        for action in box.actions
    ]
    wanted = np.array(sorted(set(classes)), np.int64)
    wanted = wanted[wanted <= detections.scores.shape[1]]
    people, kinds = len(detections.frame), len(wanted)
    return frame_map(
        Instances(
            source=np.array([t[0] for t in truth], np.int64),
            label=np.array([t[1] for t in truth], np.int64),
            extent=np.array([t[2] for t in truth], np.float64).reshape(-1, 4),
        ),
        Instances(
            source=np.repeat(detections.frame, kinds),
            label=np.tile(wanted, people),
            extent=np.repeat(detections.box, kinds, 0),
            score=detections.scores[:, wanted - 1].reshape(-1).astype(np.float64),
        ),
        classes,
        max_per_frame=max_per_frame,
    )


def write_detections(file: Path, detections: Detections, classes: Sequence[int]) -> None:
    """AVA's results, as its evaluation reads them: `video_id,timestamp,x1,y1,x2,y2,action_id,score`."""
    with replacing(file) as temporary, open(temporary, "w", encoding="utf-8") as f:
        for frame, box, scores in zip(detections.frame, detections.box, detections.scores, strict=True):
            sample = detections.samples[frame]
            where = ",".join(f"{v:.4f}" for v in box)
            for c in classes:
                f.write(f"{Path(sample.path).stem},{sample.time_s:g},{where},{c},{scores[c - 1]:.6f}\n")
