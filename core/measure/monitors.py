"""What features are worth without a probe: how many directions they use, and what neighbours tell.

Loss does not rank pre-trainings (its task changes with the mask), and labels may not exist. These numbers
need features of some clips only:

- `rankme`: RankMe (Garrido et al., arXiv 2210.02885, eqs. 1 and 2), **on centred features**. The published
  form does not centre; one large mean direction then hides the rest, and random weights rank above every
  trained model (measured, docs/monitors.md).
- `participation_ratio`: (sum l)^2 / sum l^2 of the covariance's eigenvalues l (Gao et al., 2017, eq. 4).
- `lidar`: LiDAR (Thilak et al., arXiv 2312.04000, eqs. 2 to 4) with a clip as the class and masks of it as
  its views: no labels.
- `knn_loo`, `linear_loo`: leave-one-out accuracy of neighbours and of a linear read-out, where labels exist.

All are compared with the same network before training, since their height depends on the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vmae.core.errors import InputError
from vmae.core.model.encoder import PretrainedModel
from vmae.core.model.masking import MaskConfig, sample_mask
from vmae.core.model.videomae import VideoMAEConfig
from vmae.core.numerics import autocast, clip_to_video, make_generator, resolve_precision
from vmae.core.plan import forward_flops, training_flops
from vmae.core.video.clips import ClipDataset
from vmae.core.video.loader import build_loader

EPS = 1e-7
"""RankMe's epsilon."""
LIDAR_MASKS = 8
"""Views of a clip."""
LIDAR_DELTA = 1e-4
"""Added to the within-clip covariance's diagonal (LiDAR's delta)."""


@dataclass(frozen=True, kw_only=True)
class MonitorConfig:
    """What is measured while a model is pre-trained, and what it may cost."""

    share: float = 0.01
    """Of the pre-training's floating-point operations, at most; 0: no monitors."""
    clips: int = 256
    """Clips of the training list looked at, at most; fewer where the share allows no more."""
    lidar: bool = False
    """Also LiDAR, which encodes each clip under 8 masks more."""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise InputError(f"monitor.share: expected 0 to 1, got {self.share}")
        if self.clips < MIN_CLIPS:
            raise InputError(f"monitor.clips: expected at least {MIN_CLIPS}, got {self.clips}")


MIN_CLIPS = 32
"""The spectrum of fewer clips says little."""


@dataclass(frozen=True)
class Schedule:
    """When the monitors look, and at how many clips: `epochs` are counted from 1."""

    clips: int
    epochs: tuple[int, ...]


def plan_monitors(
    config: MonitorConfig,
    model: VideoMAEConfig,
    mask: MaskConfig,
    *,
    videos: int,
    clips_an_epoch: int,
    epochs: int,
) -> Schedule | None:
    """The epochs and clips that `config.share` of a pre-training's operations pay for.

    The random network and the last epoch are always looked at, then as many between them, evenly, as fit.
    None where the share does not pay for two looks at 32 clips (or the list has fewer). It depends on the
    configuration alone: a resumed run looks at the same epochs.
    """
    one = forward_flops(model)
    if config.lidar:
        one += LIDAR_MASKS * forward_flops(model, mask)
    budget = config.share * epochs * clips_an_epoch * training_flops(model, mask) / one
    clips = min(config.clips, videos, int(budget // 2))
    if clips < MIN_CLIPS:
        return None
    looks = min(int(budget // clips) - 1, epochs)
    every = -(-epochs // looks)
    return Schedule(clips, tuple(range(epochs, 0, -every))[::-1])


def spectrum(x: Tensor) -> Tensor:
    """Singular values float64 `[min(M, D)]` of features `[M, D]` less their mean, largest first."""
    if x.ndim != 2 or len(x) < 2:
        raise InputError(f"expected features [M, D] of at least 2 clips, got {list(x.shape)}")
    x = x.double()
    return torch.linalg.svdvals(x - x.mean(0))


def rankme(values: Tensor) -> float:
    """exp(entropy) of the singular values over their sum, in [1, min(M, D)]; 1.0 where all are zero."""
    p = values.double() / values.double().sum().clamp_min(EPS) + EPS
    return float((-(p * p.log()).sum()).exp()) if float(values.sum()) > 0 else 1.0


def participation_ratio(values: Tensor) -> float:
    """(sum l)^2 / sum l^2 with l the squared singular values, in [1, min(M, D)]; 1.0 where all are zero."""
    energy = values.double().square()
    total = float(energy.square().sum())
    return float(energy.sum()) ** 2 / total if total > 0 else 1.0


def lidar(views: Tensor) -> float:
    """LiDAR of features `[clips, views, D]`, in [1, min(clips - 1, D)]: a clip is a class.

    exp(entropy) of the eigenvalues of W^-1/2 B W^-1/2, with B the covariance of the clips' means and W the
    mean covariance within a clip plus delta on its diagonal.
    """
    if views.ndim != 3 or min(views.shape[:2]) < 2:
        raise InputError(f"expected features [clips, views, D], at least 2 of each, got {list(views.shape)}")
    x = views.double()
    n, q, d = x.shape
    centre = x.mean(1)
    between = (centre - centre.mean(0)).T @ (centre - centre.mean(0)) / (n - 1)
    inside = (x - centre[:, None]).reshape(-1, d)
    within = inside.T @ inside / (n * (q - 1)) + LIDAR_DELTA * torch.eye(d, dtype=x.dtype, device=x.device)
    factor = torch.linalg.cholesky(within)  # similar to W^-1/2 B W^-1/2, so the eigenvalues are the same
    half = torch.linalg.solve_triangular(factor, between, upper=False)
    whitened = torch.linalg.solve_triangular(factor, half.T, upper=False)
    values = torch.linalg.eigvalsh((whitened + whitened.T) / 2).clamp_min(0)
    if float(values.sum()) == 0:
        return 1.0
    p = values / values.sum() + EPS
    return float((-(p * p.log()).sum()).exp())


def knn_loo(x: Tensor, labels: Tensor, k: int = 10) -> float:
    """Leave-one-out accuracy, in [0, 1], of `k` neighbours by cosine on centred features `[M, D]`.

    Votes weigh exp(similarity / 0.07), as DINO's; labels int64 `[M]`.
    """
    unit = F.normalize(x.float() - x.float().mean(0), dim=1)
    similarity = (unit @ unit.T).fill_diagonal_(-torch.inf)
    values, index = similarity.topk(min(k, len(x) - 1), dim=1)
    votes = torch.zeros(len(x), int(labels.max()) + 1)
    votes.scatter_add_(1, labels[index], (values / 0.07).exp())
    return float((votes.argmax(1) == labels).float().mean())


def linear_loo(x: Tensor, labels: Tensor, decays: Sequence[float] = (1e-3, 1e-2, 1e-1, 1.0)) -> float:
    """Leave-one-out accuracy, in [0, 1], of a linear read-out of standardised features `[M, D]`.

    Ridge regression onto one-hot labels, whose leave-one-out predictions have a closed form (PRESS), so that
    nothing is trained; the decay (a share of the kernel's mean diagonal) is the one of least leave-one-out
    squared error. A departure from the field's online probe (one SGD head beside the training): the encoder
    sees masked clips in training, this one sees whole clips, and no gradient reaches it either way.
    """
    x = x.double()
    x = (x - x.mean(0)) / x.std(0).clamp_min(1e-6)
    target = F.one_hot(labels, int(labels.max()) + 1).double()
    target -= target.mean(0)
    values, basis = torch.linalg.eigh(x @ x.T)
    values, seen = values.clamp_min(0), basis.T @ target
    best = (float("inf"), 0.0)
    for decay in decays:
        kept = values / (values + decay * values.mean().clamp_min(EPS))
        leverage = basis.square() @ kept
        fitted = basis @ (kept[:, None] * seen)
        left_out = target - (target - fitted) / (1 - leverage).clamp_min(1e-9)[:, None]
        error = float((left_out - target).square().mean())
        accuracy = float((left_out.argmax(1) == labels).double().mean())
        best = min(best, (error, accuracy), key=lambda pair: pair[0])
    return best[1]


@torch.no_grad()
def monitor(
    model: PretrainedModel,
    dataset: ClipDataset,
    *,
    masks: MaskConfig | None = None,
    device: torch.device | str = "cpu",
    precision: str = "auto",
    batch_size: int = 32,
) -> dict[str, float]:
    """Every monitor of `model` on the clips of `dataset`, `{name: value}`; `linear` and `knn` need labels.

    Features are means over all tokens, `[M, D]`; `masks` asks for `lidar` too, over 8 masks of each clip
    (the same for every model). No global random state is used, and the model is left in the mode it was in.
    """
    device = torch.device(device)
    precision = resolve_precision(precision, device)
    was_training = model.training
    model.to(device).eval()
    parts, views, labels = [], [], []
    try:
        for batch in build_loader(dataset, batch_size, shuffle=False, drop_last=False):
            if not batch["path"]:
                continue
            video = clip_to_video(batch["clip"], device)
            with autocast(precision, device):
                parts.append(model.encode(video).float().mean(1).cpu())
                if masks is not None:
                    views.append(_views(model, video, masks, batch["index"].tolist()))
            labels.append(batch["label"])
    finally:
        model.train(was_training)
    if not parts:
        raise InputError("expected at least one clip to look at; got none")
    return of_features(torch.cat(parts), torch.cat(labels), torch.cat(views) if views else None)


def _views(model: PretrainedModel, video: Tensor, masks: MaskConfig, clips: list[int]) -> Tensor:
    """Means over visible tokens `[B, 8, D]`; a clip's masks depend on its place in the list."""
    generators = [make_generator(clip, "lidar") for clip in clips]
    found = []
    for _ in range(LIDAR_MASKS):
        drawn = [sample_mask(masks.type, masks.ratio, model.config.grid, 1, g) for g in generators]
        visible = torch.cat([mask.visible for mask in drawn]).to(video.device)
        found.append(model.encoder(video, visible).float().mean(1).cpu())
    return torch.stack(found, 1)


def of_features(x: Tensor, labels: Tensor, views: Tensor | None = None) -> dict[str, float]:
    """The monitors of features `[M, D]`, labels int64 `[M]` (below 0: none) and `lidar`'s `[M, views, D]`.

    Features that are not finite give NaN everywhere.
    """
    told = bool((labels >= 0).all()) and len(labels.unique()) > 1
    if not torch.isfinite(x).all():
        names = ["rankme", "participation", *(["knn", "linear"] if told else [])]
        return dict.fromkeys([*names, *(["lidar"] if views is not None else [])], float("nan"))
    values = spectrum(x)
    found = {"rankme": rankme(values), "participation": participation_ratio(values)}
    if views is not None:
        found["lidar"] = lidar(views)
    if told:
        found |= {"knn": knn_loo(x, labels), "linear": linear_loo(x, labels)}
    return found


def against(found: Mapping[str, float], fresh: Mapping[str, float]) -> dict[str, Any]:
    """`found` with the value of the network before training beside each, as `NAME_random`."""
    return {**found, **{f"{name}_random": value for name, value in fresh.items() if name in found}}
