"""Features of the overlapping windows of whole videos, as temporal localisation reads them."""

from __future__ import annotations

import numpy as np
import torch

from vmae.core.errors import InputError
from vmae.core.model.encoder import VideoModel
from vmae.core.numerics import autocast, clip_to_video, resolve_precision
from vmae.core.video.loader import read_ahead
from vmae.core.video.probe import VideoInfo
from vmae.core.video.windows import WindowConfig, read_windows


@torch.no_grad()
def window_features(
    model: VideoModel,
    path: str,
    config: WindowConfig,
    *,
    batch: int = 8,
    device: torch.device | str = "cpu",
    precision: str = "auto",
    info: VideoInfo | None = None,
    timeout_s: float = 30.0,
) -> np.ndarray:
    """The features of every window of a video, float32 [num_windows, D], the mean of its views.

    `batch` windows at a time, decoded in a thread beside the model's work. Pixels are normalised inside the
    model and the picture keeps its aspect ratio (V2's `extract_tad_feature.py` leaves the first out and
    squashes the second). Raises VideoError for a bad file, and InputError where a feature is not finite.
    """
    device = torch.device(device)
    precision = resolve_precision(precision, device)
    model.to(device).eval()
    parts = []
    for clips in read_ahead(read_windows(path, config, batch=batch, info=info, timeout_s=timeout_s), _same):
        flat = torch.from_numpy(clips.reshape(-1, *clips.shape[2:]))
        with autocast(precision, device):
            features = model.features(clip_to_video(flat, device)).float()
        parts.append(features.unflatten(0, clips.shape[:2]).mean(1).cpu().numpy())
    found = np.concatenate(parts)
    if not np.isfinite(found).all():
        raise InputError(f"{path}: expected finite features, got NaN or infinity from the model")
    return found


def _same(clips: np.ndarray) -> np.ndarray:
    return clips
