"""Training the localisation head on windowed features, and what it finds in a video."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vmae.core.config import to_dict
from vmae.core.errors import InputError
from vmae.core.files import replacing
from vmae.core.measure.localisation import soft_nms
from vmae.core.model.localiser import (
    Localiser,
    LocaliserConfig,
    localisation_loss,
    points_of,
    targets_of,
)
from vmae.core.numerics import derive_seed


@dataclass(frozen=True, kw_only=True)
class LocaliseConfig:
    """Windows, head, training and suppression. The windows' defaults are THUMOS14's."""

    annotations: str = ""
    """JSON of ActivityNet or THUMOS14 (`vmae.core.video.untrimmed`)."""
    videos: str = ""
    """Folder or list of the untrimmed videos: for a stage, which makes the features itself."""
    train_subset: str = ""
    """Empty: training, or where there is none validation."""
    test_subset: str = ""
    """Empty: validation, or where that is trained on test."""
    window: int = 16
    """Frames of the video that a feature spans."""
    stride: int = 4
    """Frames between two features."""
    head: LocaliserConfig = field(default_factory=LocaliserConfig)
    epochs: int = 40
    """Passes over the training videos."""
    warmup_epochs: int = 3
    """Of them, those in which the rate rises."""
    batch_size: int = 2
    """Videos of a step."""
    lr: float = 1e-3
    """Of AdamW, at its highest."""
    weight_decay: float = 0.05
    """Of AdamW."""
    seed: int = 0
    """Of the weights and the order of videos."""
    min_score: float = 0.001
    """Segments below it are left out."""
    sigma: float = 0.5
    """Of Soft-NMS."""
    max_segments: int = 200
    """Of a video."""

    def __post_init__(self) -> None:
        for name in ("window", "stride", "epochs", "batch_size", "max_segments"):
            if getattr(self, name) < 1:
                raise InputError(f"expected localise.{name} >= 1; got {getattr(self, name)}")
        if not self.lr > 0:
            raise InputError(f"expected localise.lr > 0; got {self.lr}")


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureVideo:
    """A video's features float32 [T, D], and its actions (`segments` [M, 2] in seconds, `labels` [M])."""

    name: str
    features: np.ndarray
    fps: float
    duration_s: float
    segments: np.ndarray
    labels: np.ndarray


def to_grid(seconds: np.ndarray, fps: float, config: LocaliseConfig) -> np.ndarray:
    """Seconds as a place on the grid of features (a feature stands in the middle of its window)."""
    grid: np.ndarray = (seconds * fps - config.window / 2) / config.stride
    return grid


def to_seconds(grid: np.ndarray, fps: float, config: LocaliseConfig) -> np.ndarray:
    """The inverse of `to_grid`."""
    seconds: np.ndarray = (grid * config.stride + config.window / 2) / fps
    return seconds


def train_localiser(
    videos: Sequence[FeatureVideo],
    num_classes: int,
    config: LocaliseConfig,
    *,
    state: Path | None = None,
    device: torch.device | str = "cpu",
    report: Callable[[int, float], None] = lambda epoch, loss: None,
) -> Localiser:
    """Train a head from fresh weights on the videos; `report(epoch, loss)` after each epoch.

    With `state`, a file that is rewritten after every epoch, a killed training goes on where it was to the
    same numbers. Raises InputError without an action to learn from, and where the loss is not finite.
    """
    if not sum(len(v.labels) for v in videos):
        raise InputError("expected actions in the videos to train on, got none")
    device, dim = torch.device(device), videos[0].features.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "localiser"))
        model = Localiser(config.head, dim, num_classes)
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    first = _resumed(state, config, model, optimizer)
    steps = math.ceil(len(videos) / config.batch_size)
    for epoch in range(first, config.epochs + 1):
        order = np.random.default_rng(derive_seed(config.seed, epoch, "order")).permutation(len(videos))
        losses = []
        for step in range(steps):
            batch = [videos[i] for i in order[step * config.batch_size : (step + 1) * config.batch_size]]
            for group in optimizer.param_groups:
                group["lr"] = config.lr * _schedule((epoch - 1) + step / steps, config)
            loss = _loss(model, batch, config, device)
            if not torch.isfinite(loss):
                raise InputError(
                    f"localise.lr: expected a rate at which the loss stays finite, got {config.lr}"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
        if state is not None:
            kept = {"config": to_dict(config), "epoch": epoch, "model": model.state_dict()}
            with replacing(state) as temporary:
                torch.save({**kept, "optimizer": optimizer.state_dict()}, temporary)
        report(epoch, float(np.mean(losses)))
    return model.eval()


def _resumed(
    state: Path | None, config: LocaliseConfig, model: Localiser, optimizer: torch.optim.Optimizer
) -> int:
    """The epoch to begin with, after what `state` holds of a training by this configuration."""
    if state is None or not state.exists():
        return 1
    kept: dict[str, Any] = torch.load(state, weights_only=True)
    if kept["config"] != to_dict(config):
        raise InputError(f"{state}: expected a training by this configuration, got another's")
    try:
        model.load_state_dict(kept["model"])
    except RuntimeError:
        raise InputError(
            f"{state}: expected a training on these features, got one of another width"
        ) from None
    optimizer.load_state_dict(kept["optimizer"])
    return int(kept["epoch"]) + 1


def _schedule(epoch: float, config: LocaliseConfig) -> float:
    warmup = min(config.warmup_epochs, config.epochs / 2)
    if epoch < warmup:
        return epoch / warmup + 1e-3
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / max(config.epochs - warmup, 1e-9)))


def _loss(
    model: Localiser, batch: Sequence[FeatureVideo], config: LocaliseConfig, device: torch.device
) -> Tensor:
    longest = max(len(v.features) for v in batch)
    x = torch.zeros(len(batch), batch[0].features.shape[1], longest)
    mask = torch.zeros(len(batch), longest, dtype=torch.bool)
    wanted: list[tuple[list[Tensor], list[Tensor]]] = []
    for k, video in enumerate(batch):
        x[k, :, : len(video.features)] = torch.from_numpy(video.features.T)
        mask[k, : len(video.features)] = True
        grid = torch.from_numpy(to_grid(video.segments, video.fps, config)).float()
        labels = torch.from_numpy(video.labels)
        wanted.append(targets_of(config.head, longest, grid, labels, model.num_classes))
    scores, extents, masks = model(x.to(device), mask.to(device))
    there = torch.cat([m.reshape(-1) for m in masks])
    classes, ends = (
        torch.cat(
            [torch.stack([w[part][level] for w in wanted]).flatten(0, 1) for level in range(len(masks))]
        )
        for part in (0, 1)
    )
    said, reach = (torch.cat([t.flatten(0, 1) for t in tensors])[there] for tensors in (scores, extents))
    return localisation_loss(said, reach, classes.to(device)[there], ends.to(device)[there])


@torch.no_grad()
def localise(
    model: Localiser, video: FeatureVideo, config: LocaliseConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the head finds: segments [K, 2] in seconds, labels int64 [K], scores [K], best first.

    Points from `min_score` on (at most 2000 a level), Soft-NMS within a class, the best `max_segments`.
    """
    device = next(model.parameters()).device
    x = torch.from_numpy(video.features.T.copy())[None].to(device)
    mask = torch.ones(1, x.shape[2], dtype=torch.bool, device=device)
    segments, labels, scores = [], [], []
    for at, raw, extent in zip(points_of(config.head, x.shape[2]), *model(x, mask)[:2], strict=True):
        p = raw[0].float().sigmoid().cpu().reshape(-1)  # [t * C]
        best = p.topk(min(2000, len(p))).indices
        best = best[p[best] >= config.min_score]
        point, label = best // model.num_classes, best % model.num_classes
        ends = extent[0].float().cpu()[point]
        segments.append(torch.stack((at[point] - ends[:, 0], at[point] + ends[:, 1]), 1).numpy())
        labels.append(label.numpy())
        scores.append(p[best].numpy())
    found = np.concatenate(segments).astype(np.float64)
    found = np.clip(to_seconds(found, video.fps, config), 0, video.duration_s)
    return _suppressed(found, np.concatenate(labels), np.concatenate(scores), config)


def _suppressed(
    segments: np.ndarray, labels: np.ndarray, scores: np.ndarray, config: LocaliseConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    kept: list[np.ndarray] = []
    new: list[np.ndarray] = []
    lengths = segments[:, 1] > segments[:, 0]
    for c in np.unique(labels):
        own = np.flatnonzero((labels == c) & lengths)
        rows, score = soft_nms(
            segments[own],
            scores[own],
            sigma=config.sigma,
            min_score=config.min_score,
            max_kept=config.max_segments,
        )
        kept.append(own[rows])
        new.append(score)
    rows, score = np.concatenate(kept), np.concatenate(new)
    order = np.argsort(-score, kind="stable")[: config.max_segments]
    return segments[rows[order]], labels[rows[order]].astype(np.int64), score[order]
