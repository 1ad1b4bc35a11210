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


def true_people(sample: Sample) -> np.ndarray:
    """The annotated boxes, each with a score of 1."""
    return np.array([[*b.box, 1.0] for b in sample.boxes], np.float64).reshape(-1, 5)


def proposed_people(proposals: Proposals) -> People:
    """The boxes that a person detector found; none in key frames it does not know."""

    def people(sample: Sample) -> np.ndarray:
        found = proposals.of(sample)
        return np.empty((0, 5)) if found is None else found

    return people


@torch.no_grad()
def detect(
    model: VideoDetector,
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

    Clips of one size are run together, up to `batch_size` at a time. Raises VideoError for a bad file unless
    the dataset's `bad_eval` is `count`.
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
        for (height, width), rows in by_size.items():
            found = [people(dataset.samples[index[k]]) for k in rows]
            table = np.concatenate(found)
            if len(table):
                pixels = extend_boxes(to_pixels(table[:, :4], height, width), height, width, extension)
                clips = np.repeat(np.arange(len(rows)), [len(f) for f in found])
                video = clip_to_video(torch.stack([batch["clip"][k] for k in rows]), device)
                with autocast(precision, device):
                    logits: Tensor = model(
                        video,
                        torch.from_numpy(pixels).float().to(device),
                        torch.from_numpy(clips).to(device),
                    )
                own = torch.from_numpy(table[:, 4:]).float()
                scores.append((logits.float().sigmoid().cpu() * own).numpy())
                boxes.append(table[:, :4])
                frames.append(np.array([index[rows[c]] for c in clips]))
        if progress is not None:
            progress.update(len(index) + len(batch["failed"]))
    model.train(was_training)
    return Detections(
        samples=dataset.samples,
        frame=np.concatenate(frames) if frames else np.empty(0, np.int64),
        box=np.concatenate(boxes) if boxes else np.empty((0, 4)),
        scores=np.concatenate(scores) if scores else np.empty((0, model.num_classes), np.float32),
        failed=failed,
    )


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
