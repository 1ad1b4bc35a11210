"""Classification accuracy over whole videos: several clips and crops of each, softmax averaged."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from vmae.core.errors import InputError
from vmae.core.measure.statistics import Interval, interval
from vmae.core.numerics import autocast, clip_to_video, resolve_precision
from vmae.core.progress import Progress
from vmae.core.train.parallel import World
from vmae.core.video.clips import ClipDataset
from vmae.core.video.loader import build_loader


@dataclass(frozen=True, kw_only=True)
class VideoPrediction:
    """What the model says of one video of the list; `probs` is None for one that could not be read."""

    index: int
    """Its place in the list: two entries may share a path."""
    path: str
    label: int
    probs: np.ndarray | None
    """float32 `[C]`, mean of the views' softmax."""
    views: int
    error: str = ""
    """Why it could not be read: the reason's name."""
    detail: str = ""

    @property
    def predicted(self) -> int:
        """The most probable class, -1 for an unreadable video."""
        return -1 if self.probs is None else int(self.probs.argmax())


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Accuracies in [0, 1] over all videos of the list; an unreadable video counts as wrong."""

    top1: float
    top5: float
    mean_class: float
    """Mean over the classes that occur of the share of their videos recognised."""
    loss: float
    """Mean of -log(probability of the label) over the readable videos."""
    confusion: np.ndarray
    """int64 `[C, C]`: rows the label, columns the prediction; unreadable videos are in no column."""
    predictions: list[VideoPrediction]

    @property
    def unreadable(self) -> int:
        """Videos that could not be read."""
        return sum(p.probs is None for p in self.predictions)

    def interval(self) -> Interval:
        """The top-1 accuracy with its interval over videos."""
        return interval([p.predicted == p.label for p in self.predictions])

    def metrics(self) -> dict[str, float]:
        """The numbers for a run's log."""
        return {
            "top1": self.top1,
            "top5": self.top5,
            "mean_class": self.mean_class,
            "loss": self.loss,
            "unreadable": float(self.unreadable),
        }


@torch.no_grad()
def evaluate(
    model: nn.Module,
    dataset: ClipDataset,
    *,
    num_classes: int,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    precision: str = "auto",
    progress: Progress | None = None,
) -> Evaluation:
    """Run `model` (clips to logits) over every view of every video of `dataset`.

    A dataset of mode `test` gives segments x crops views of a video, `val` one. `batch_size` counts videos.
    Under `torch.distributed` each process takes a share, and all get the whole result.
    Raises InputError when a label is not below `num_classes`, VideoError for an unreadable video unless
    `data.bad_eval` is `count`.
    """
    device = torch.device(device)
    precision = resolve_precision(precision, device)
    world = World.current()
    was_training = model.training
    model.to(device).eval()
    sums: dict[int, Tensor] = {}
    views: dict[int, int] = {}
    found: dict[int, VideoPrediction] = {}
    loader = build_loader(dataset, batch_size, shuffle=False, rank=world.rank, world_size=world.size)
    for batch in loader:
        n = len(batch["label"])
        if n:
            with autocast(precision, device):
                logits = model(clip_to_video(batch["clip"], device))
            probs = logits.float().softmax(1).cpu()
            for row, index in enumerate(batch["index"].tolist()):
                sums[index] = sums[index] + probs[row] if index in sums else probs[row]
                views[index] = views.get(index, 0) + 1
                found.setdefault(
                    index,
                    VideoPrediction(
                        index=index,
                        path=batch["path"][row],
                        label=int(batch["label"][row]),
                        probs=None,
                        views=0,
                    ),
                )
        for bad in batch["failed"]:
            found[bad["index"]] = VideoPrediction(
                index=bad["index"],
                path=bad["path"],
                label=int(bad["label"]),
                probs=None,
                views=0,
                error=bad["reason"],
                detail=bad["detail"],
            )
        if progress is not None:
            progress.update(n // dataset.clips_per_video + len(batch["failed"]))
    model.train(was_training)
    mine = [
        VideoPrediction(
            index=p.index,
            path=p.path,
            label=p.label,
            probs=(sums[p.index] / views[p.index]).numpy() if p.index in sums else None,
            views=views.get(p.index, 0),
            error=p.error,
            detail=p.detail,
        )
        for p in found.values()
    ]
    if world.size > 1:
        shares: list[Any] = [None] * world.size
        dist.all_gather_object(shares, mine)
        mine = [p for share in shares for p in share]
    return summarise(sorted(mine, key=lambda p: p.index), num_classes)


def summarise(predictions: Sequence[VideoPrediction], num_classes: int) -> Evaluation:
    """Accuracies and confusion matrix of per-video predictions.

    Raises InputError for an empty list or a label outside 0 to num_classes - 1.
    """
    if not predictions:
        raise InputError("expected at least one video to evaluate; got none")
    labels = np.array([p.label for p in predictions])
    if labels.min() < 0 or labels.max() >= num_classes:
        raise InputError(
            f"expected labels 0 to {num_classes - 1} (the checkpoint has {num_classes} classes); "
            f"got {labels.min()} to {labels.max()}"
        )
    k = min(5, num_classes)
    confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
    right1, right5, losses = np.zeros(len(labels)), np.zeros(len(labels)), []
    for i, p in enumerate(predictions):
        if p.probs is None:
            continue
        order = np.argsort(-p.probs, kind="stable")[:k]
        right1[i], right5[i] = order[0] == p.label, p.label in order
        confusion[p.label, order[0]] += 1
        losses.append(-float(np.log(max(float(p.probs[p.label]), 1e-12))))
    per_class = [right1[labels == c].mean() for c in np.unique(labels)]
    return Evaluation(
        top1=float(right1.mean()),
        top5=float(right5.mean()),
        mean_class=float(np.mean(per_class)),
        loss=float(np.mean(losses)) if losses else float("nan"),
        confusion=confusion,
        predictions=list(predictions),
    )


def write_predictions(path: Path, evaluation: Evaluation, class_names: Sequence[str] | None = None) -> None:
    """One csv line a video: full path, label, the five most probable classes and their probabilities.

    Keyed by the full path: videos of one name in two folders stay two.
    """
    names = class_names or [str(c) for c in range(len(evaluation.confusion))]
    k = min(5, len(names))
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        head = ["path", "label", "predicted", "correct", "views", "error"]
        writer.writerow(head + [f"{what}{i + 1}" for i in range(k) for what in ("class", "prob")])
        for p in evaluation.predictions:
            row: list[Any] = [p.path, names[p.label]]
            if p.probs is None:
                writer.writerow([*row, "", 0, 0, p.error])
                continue
            order = np.argsort(-p.probs, kind="stable")[:k]
            best = [v for c in order for v in (names[c], f"{p.probs[c]:.6f}")]
            writer.writerow([*row, names[p.predicted], int(p.predicted == p.label), p.views, "", *best])


def confusion_picture(confusion: np.ndarray, class_names: Sequence[str] | None = None) -> np.ndarray:
    """The confusion matrix as a picture, uint8 `[H, W, 3]`: rows labels, shares of each row in colour.

    Up to 30 classes carry their names, up to 20 their counts too.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n = len(confusion)
    share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    side = float(np.clip(0.45 * n + 2.5, 5, 14))
    figure = Figure(figsize=(side + 0.8, side), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="share of the label's videos", shrink=0.8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    axes.set_title(f"{int(np.trace(confusion))} of {int(confusion.sum())} right")
    if n <= 30:
        names = class_names or [str(c) for c in range(n)]
        axes.set_xticks(range(n), names, rotation=60, ha="right", fontsize=8)
        axes.set_yticks(range(n), names, fontsize=8)
    if n <= 20:
        for row in range(n):
            for column in range(n):
                if confusion[row, column]:
                    colour = "white" if share[row, column] > 0.5 else "black"
                    text = str(confusion[row, column])
                    axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
