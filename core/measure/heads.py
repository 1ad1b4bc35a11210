"""What a regression or multi-label head says of each video, and how well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from vmae.core.measure.precision import multilabel_map
from vmae.core.numerics import autocast, clip_to_video, resolve_precision
from vmae.core.progress import Progress
from vmae.core.video.clips import ClipDataset
from vmae.core.video.loader import build_loader

Kind = Literal["regression", "multilabel"]
Scale = Mapping[str, Sequence[float]]
"""`mean` and `deviation` of each value in the training list."""


@torch.no_grad()
def predict_videos(
    model: nn.Module,
    dataset: ClipDataset,
    *,
    kind: Kind,
    scale: Scale | None = None,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    precision: str = "auto",
    progress: Progress | None = None,
) -> np.ndarray:
    """float64 [M, K] in the list's order, the mean over a video's views: values, or probabilities of labels.

    A video that cannot be read gets the training list's mean, or the probability 0, where
    `data.bad_eval` is `count`; VideoError else.
    """
    device = torch.device(device)
    precision = resolve_precision(precision, device)
    was_training = model.training
    model.to(device).eval()
    sums: dict[int, Tensor] = {}
    views: dict[int, int] = {}
    width = 0
    for batch in build_loader(dataset, batch_size, shuffle=False, drop_last=False):
        if len(batch["index"]):
            with autocast(precision, device):
                outputs = model(clip_to_video(batch["clip"], device)).float()
            outputs = (outputs.sigmoid() if kind == "multilabel" else outputs).cpu().double()
            width = outputs.shape[1]
            for row, index in enumerate(batch["index"].tolist()):
                sums[index] = sums.get(index, torch.zeros(width, dtype=torch.float64)) + outputs[row]
                views[index] = views.get(index, 0) + 1
        if progress is not None:
            progress.update(len(set(batch["index"].tolist())) + len(batch["failed"]))
    model.train(was_training)
    found = np.zeros((len(dataset.samples), width))
    for index, total in sums.items():
        found[index] = (total / views[index]).numpy()
    if scale is not None:
        found = found * np.asarray(scale["deviation"]) + np.asarray(scale["mean"])
    return found


def measure_head(found: np.ndarray, truth: np.ndarray, kind: Kind) -> dict[str, float]:
    """Regression: `mae` and `r2` (means over the values; of a constant one R2 is NaN and left out), `chance`
    (R2 of the mean, 0) and `loss`, the mean squared error. Multi-label: `mean_ap` over the labels that occur,
    `chance` (the mean share of videos that have them) and `loss`, the mean binary cross-entropy."""
    if kind == "regression":
        error = found - truth
        spread = ((truth - truth.mean(0)) ** 2).sum(0)
        r2 = 1 - np.divide((error**2).sum(0), spread, out=np.full(len(spread), np.nan), where=spread > 0)
        known = r2[np.isfinite(r2)]
        return {
            "r2": float(known.mean()) if len(known) else float("nan"),
            "mae": float(np.abs(error).mean()),
            "chance": 0.0,
            "loss": float((error**2).mean()),
        }
    mean_ap, _ = multilabel_map(found, truth > 0.5)
    p = np.clip(found, 1e-7, 1 - 1e-7)
    occurs = truth.sum(0) > 0
    return {
        "mean_ap": mean_ap,
        "chance": float(truth.mean(0)[occurs].mean()),
        "loss": float(-(truth * np.log(p) + (1 - truth) * np.log(1 - p)).mean()),
    }
