"""What a frozen encoder makes of the validation list: features, neighbours, a map in two dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import streamlit as st
import torch
from torch import Tensor

from vmae.core.measure.films import colourise
from vmae.core.measure.probe import extract_features
from vmae.core.model.encoder import attention_maps
from vmae.core.video.clips import ClipDataset
from vmae.core.video.config import DataConfig
from vmae.core.video.samples import Sample
from vmae.dashboard.sources import DatasetEntry
from vmae.dashboard.viewer import load_videomae, use_threads

MOST_CLIPS = 600
CHUNK = 32
FEATURES_KEPT = 4
ATTENTION_KEPT = 16


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """Features of some clips of a list: `x` float32 [M, D], standardised; `index` int64 [M] into the list."""

    x: np.ndarray
    labels: np.ndarray
    index: np.ndarray


def list_features(
    path: str,
    stamp: int,
    samples: list[Sample],
    dataset: DatasetEntry,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> FeatureSet:
    """Features of (at most MOST_CLIPS, evenly chosen) clips, cut as the data set's run cut them.

    `progress` is called with (clips done, clips in all) after every CHUNK of them.
    """
    index = np.unique(
        np.linspace(0, len(samples) - 1, min(len(samples), MOST_CLIPS)).round().astype(np.int64)
    )
    parts, cut = [], (dataset.sampling, dataset.sampling_rate, dataset.fps)
    for start in range(0, len(index), CHUNK):
        places = tuple(int(i) for i in index[start : start + CHUNK])
        chosen = [samples[i] for i in places]
        parts.append(_chunk(path, stamp, f"{dataset.csv}:{len(samples)}", places, cut, chosen))
        progress(start + len(places), len(index))
    x = np.concatenate([p[0] for p in parts])
    x = (x - x.mean(0)) / (x.std(0, ddof=1) + 1e-6)
    return FeatureSet(x=x, labels=np.concatenate([p[1] for p in parts]), index=index)


@st.cache_data(max_entries=FEATURES_KEPT * -(-MOST_CLIPS // CHUNK), show_spinner=False)
def _chunk(
    path: str,
    stamp: int,
    list_key: str,
    places: tuple[int, ...],
    cut: tuple[Literal["dense", "uniform"], int, float],
    _samples: list[Sample],
) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 [m, D] and labels int64 [m] of the clips at some places of a list."""
    model = load_videomae(path, stamp)
    use_threads(model)
    c = model.config
    config = DataConfig(
        frames=c.frames,
        sampling=cut[0],
        sampling_rate=cut[1],
        fps=cut[2],
        size=(c.height, c.width),
        short_side=min(c.height, c.width),
        augment="none",
        workers=0,
    )
    found = extract_features(model, ClipDataset(_samples, config, "val"), pooling="time", batch_size=16)
    return found.x.float().numpy(), found.labels.numpy()


def similarities(x: np.ndarray) -> np.ndarray:
    """Cosine similarity float32 [M, M] of features [M, D]."""
    unit = x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-9)
    return unit @ unit.T


def neighbours(x: np.ndarray, row: int, count: int) -> list[tuple[int, float]]:
    """The nearest other rows of a row by cosine similarity: (row, similarity), nearest first."""
    near = similarities(x)[row]
    order = [int(i) for i in np.argsort(-near) if i != row][:count]
    return [(i, float(near[i])) for i in order]


def leave_one_out(x: np.ndarray, labels: np.ndarray, groups: Sequence[str], k: int = 5) -> float:
    """Accuracy in [0, 1] of a vote among each clip's k nearest clips of other groups; a clip for which there
    is none counts as wrong."""
    near = similarities(x)
    of = np.unique(np.asarray(groups), return_inverse=True)[1]
    near[of[:, None] == of[None, :]] = -np.inf
    order = np.argsort(-near, axis=1)[:, : min(k, len(x) - 1)]
    votes = np.where(np.isfinite(np.take_along_axis(near, order, axis=1)), labels[order], -1)  # [M, k]
    guess = np.array([np.bincount(v[v >= 0], minlength=1).argmax() if (v >= 0).any() else -1 for v in votes])
    return float((guess == labels).mean())


def pca(x: np.ndarray, dims: int = 2) -> np.ndarray:
    """The first principal components, float32 [M, dims]."""
    centred = x - x.mean(0)
    _, _, v = np.linalg.svd(centred, full_matrices=False)
    return (centred @ v[:dims].T).astype(np.float32)


@st.cache_data(max_entries=FEATURES_KEPT, show_spinner=False)
def embed(key: str, method: str, _x: np.ndarray) -> np.ndarray:
    """Two dimensions of features by `pca` or `tsne`; the cache knows them by `key`."""
    return pca(_x) if method == "pca" else tsne(_x)


def tsne(x: np.ndarray, perplexity: float = 20.0, steps: int = 350, seed: int = 0) -> np.ndarray:
    """t-SNE (van der Maaten and Hinton 2008, exact, no tree), float32 [M, 2].

    On the first 30 principal components, started from the first two; early exaggeration 12 for a quarter of
    the steps, momentum 0.5 then 0.8, step size M / 12.
    """
    m = len(x)
    if m < 5:
        return pca(np.pad(x, ((0, 0), (0, max(0, 2 - x.shape[1])))))
    reduced = torch.from_numpy(pca(x, min(30, m, x.shape[1])))
    target = _joint_probabilities(torch.cdist(reduced, reduced).square(), min(perplexity, (m - 1) / 3))
    y = reduced[:, :2] / (reduced[:, 0].std() + 1e-9) * 1e-4
    y = y + 1e-5 * torch.randn(m, 2, generator=torch.Generator().manual_seed(seed))
    velocity = torch.zeros_like(y)
    gains = torch.ones_like(y)
    for step in range(steps):
        p = target * 12 if step < steps // 4 else target
        weight = 1 / (1 + torch.cdist(y, y).square())
        weight.fill_diagonal_(0)
        force = (p - weight / weight.sum()) * weight  # [M, M]
        gradient = 4 * (force.sum(1, keepdim=True) * y - force @ y)
        same = torch.sign(gradient) == torch.sign(velocity)
        gains = torch.where(same, gains * 0.8, gains + 0.2).clamp_(min=0.01)
        velocity = (0.5 if step < steps // 4 else 0.8) * velocity - max(m / 12, 10) * gains * gradient
        y = y + velocity
        y = y - y.mean(0)
    return y.numpy().astype(np.float32)


def _joint_probabilities(distance: Tensor, perplexity: float) -> Tensor:
    """Symmetric neighbour probabilities [M, M]; each row's entropy is log(perplexity), found by bisection."""
    m = len(distance)
    low, high = torch.zeros(m, 1), torch.full((m, 1), float("inf"))
    beta = torch.full((m, 1), 1 / (distance.mean().item() + 1e-9))
    goal = torch.log(torch.tensor(perplexity))
    off = distance - (distance + torch.eye(m) * 1e12).min(1, keepdim=True).values
    for _ in range(60):
        p = torch.exp(-off * beta)
        p.fill_diagonal_(0)
        p = p / p.sum(1, keepdim=True)
        entropy = -(p * torch.log(p.clamp_min(1e-12))).sum(1, keepdim=True)
        wide = entropy > goal
        low, high = torch.where(wide, beta, low), torch.where(wide, high, beta)
        beta = torch.where(torch.isinf(high), beta * 2, (low + high) / 2)
    return ((p + p.T) / (2 * m)).clamp_min(1e-12)


@st.cache_data(max_entries=ATTENTION_KEPT, show_spinner=False)
def attention_row(
    path: str, stamp: int, frames_key: str, _frames: np.ndarray, layer: int, token: int
) -> np.ndarray:
    """How much one token looks at every other, float32 [heads, t, h, w]; rows sum to 1."""
    model = load_videomae(path, stamp)
    use_threads(model)
    video = torch.from_numpy(_frames).permute(3, 0, 1, 2)[None]
    weights = attention_maps(model, video, layer)[0, :, token]  # [heads, N]
    grid = model.grid
    return weights.reshape(-1, grid.t, grid.h, grid.w).numpy().astype(np.float32)


def overlay(
    frames: np.ndarray, weights: np.ndarray, top: float, tubelet: int, mark: tuple[int, int, int]
) -> np.ndarray:
    """Attention over frames: uint8 [T, H, W, 3].

    `weights` [t, h, w] are drawn in the error map's colours, from 0 to `top`, over the darkened clip; the
    chosen token `mark` (slot, row, column) is framed white.
    """
    share = (weights / max(top, 1e-12)).clip(0, 1)
    colours = colourise(share)  # [t, h, w, 3]
    size = frames.shape[1] // weights.shape[1]
    big = colours.repeat(tubelet, 0).repeat(size, 1).repeat(size, 2).astype(np.float32)
    alpha = share.repeat(tubelet, 0).repeat(size, 1).repeat(size, 2)[..., None] * 0.75 + 0.1
    grey = frames.astype(np.float32).mean(-1, keepdims=True) * 0.75
    out = (grey * (1 - alpha) + big * alpha).clip(0, 255).astype(np.uint8)
    slot, row, column = mark
    y, x = row * size, column * size
    inside = out[slot * tubelet : (slot + 1) * tubelet, y : y + size, x : x + size]
    inside[:, [0, -1], :] = 255
    inside[:, :, [0, -1]] = 255
    return out
