"""What a frozen encoder knows: features, linear and attentive probes, nearest neighbours, and the
reconstruction error at one common mask ratio.

Hyperparameters (learning rate, weight decay, neighbours) are chosen inside the training list, by
cross-validation; the test list is looked at once, with the choice made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmae.core.errors import InputError
from vmae.core.measure.attentive import attentive_logits, fit_attentive, select_attentive
from vmae.core.model.masking import MaskConfig, TokenMask, sample_masks
from vmae.core.model.videomae import VideoMAE
from vmae.core.numerics import autocast, clip_to_video, make_generator, resolve_precision
from vmae.core.progress import Progress
from vmae.core.video.clips import ClipDataset
from vmae.core.video.loader import build_loader

Pooling = Literal["mean", "time", "tokens"]


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """How frozen features are read out."""

    kind: Literal["linear", "attentive", "knn"] = "linear"
    """linear: a linear classifier; attentive: one over a learnt pooling; knn: nearest neighbours."""
    pooling: Pooling = "time"
    """mean: over all tokens (VideoMAE's head); time: over space, time slots side by side, which keeps the
    order of events; tokens: all of them (the attentive probe takes this whatever is written here)."""
    depth: int = 1
    """Of the attentive probe, 1 to 4: blocks of self-attention before the query's, and that one."""
    views: int = 1
    """Clips of each held-out video, spread over it, whose probabilities are averaged."""
    lrs: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    """Learning rates tried, all at once."""
    weight_decays: tuple[float, ...] = (0.0, 1e-3, 1e-2)
    """Weight decays tried with each of them."""
    epochs: int = 60
    """Passes of the classifier over the features."""
    batch_size: int = 256
    """Features of one of its steps."""
    folds: int = 5
    """Folds of the cross-validation inside the training list that chooses among them."""
    neighbours: tuple[int, ...] = (1, 5, 10, 20, 50)
    """Neighbour counts tried by the kNN probe."""
    seed: int = 0
    """Of its weights, its folds and their order."""

    def __post_init__(self) -> None:
        for name in ("lrs", "weight_decays", "neighbours"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if not getattr(self, name):
                raise InputError(f"expected at least one value in probe.{name}; got none")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"expected probe.{name} >= 1; got {getattr(self, name)}")
        if not 1 <= self.depth <= 4:
            raise InputError(f"expected probe.depth of 1 to 4; got {self.depth}")
        if self.views < 1:
            raise InputError(f"expected probe.views >= 1; got {self.views}")
        if self.folds < 2:
            raise InputError(f"expected probe.folds >= 2; got {self.folds}")


@dataclass(frozen=True)
class Features:
    """Features of a list of clips: `x` float32 `[M, D]` (or `[M, N, D]` for tokens), `labels` int64 `[M]`.

    With `views` of each video `x` has `M * views` rows, those of a video side by side.
    """

    x: Tensor
    labels: Tensor
    paths: list[str]
    unread: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    """int64 `[K]`: labels of the clips that could not be read, of which there is no feature."""
    views: int = 1

    def rows(self, keep: Tensor) -> Features:
        """The videos that `keep`, int64 [K], chooses; of features with one view."""
        chosen = keep.tolist()
        return Features(self.x[keep], self.labels[keep], [self.paths[k] for k in chosen], self.unread)


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """Accuracies in [0, 1] over all clips of the test list; one that could not be read counts as wrong."""

    top1: float
    top5: float
    mean_class: float
    """Mean over classes of the share recognised."""
    chance: float
    """One over the number of classes."""
    selection_top1: float
    """Accuracy inside the training list, of the setting that was chosen: cross-validated, or of the attentive
    probe on one held-out part, after fewer epochs than the final one has."""
    chosen: dict[str, float]
    """The chosen setting, for example `{"lr": 0.1, "weight_decay": 0.0}`."""
    predictions: Tensor
    """int64 [M_test], of the clips that could be read"""
    kind: str
    unreadable: int = 0
    """Clips of the test list that could not be read."""


@torch.no_grad()
def extract_features(
    model: nn.Module,
    dataset: ClipDataset,
    *,
    pooling: Pooling = "mean",
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    precision: str = "auto",
    progress: Progress | None = None,
    failed: list[dict[str, Any]] | None = None,
) -> Features:
    """Run the frozen encoder over every clip of `dataset`, in its order (of mode `test`: over every view).

    With `data.bad_eval` `count`, and of a training list, clips that cannot be read have no features: their
    labels are in `unread`, and they are put into `failed` (`index`, `path`, `label`, `reason`, `detail`).

    `model` has `encode(video) -> [B, N, D]` (VideoMAE). `mean` gives `[M, D]`, `time` `[M, t*D]` (mean over
    space, time slots side by side), `tokens` `[M, N, D]` in float16.
    """
    device = torch.device(device)
    precision = resolve_precision(precision, device)
    encode = cast("Callable[[Tensor], Tensor]", model.encode)
    was_training = model.training
    model.to(device).eval()
    parts: list[Tensor] = []
    labels: list[Tensor] = []
    paths: list[str] = []
    failed = [] if failed is None else failed
    known = len(failed)
    for batch in build_loader(dataset, batch_size, shuffle=False, drop_last=False):
        failed += batch["failed"]
        if not batch["path"]:
            continue
        with autocast(precision, device):
            tokens = encode(clip_to_video(batch["clip"], device)).float()  # [B, N, D]
        parts.append(_pool(tokens, pooling, model).cpu())
        labels.append(batch["label"])
        paths += batch["path"]
        if progress is not None:
            progress.update(len(batch["label"]))
    model.train(was_training)
    if not parts:
        raise InputError("expected at least one clip to extract features from; got none")
    unread = torch.tensor([f["label"] for f in failed[known:]], dtype=torch.int64)
    views = dataset.clips_per_video
    return Features(torch.cat(parts), torch.cat(labels)[::views], paths[::views], unread, views)


def _pool(tokens: Tensor, pooling: Pooling, model: Any) -> Tensor:
    if pooling == "mean":
        return tokens.mean(1)
    if pooling == "time":
        b, _, d = tokens.shape
        t = model.config.grid.t
        return tokens.reshape(b, t, -1, d).mean(2).reshape(b, t * d)
    return tokens.half()


def probe(
    train: Features,
    test: Features,
    config: ProbeConfig,
    num_classes: int | None = None,
    device: torch.device | str = "cpu",
) -> ProbeResult:
    """Read out `train`, measure on `test`, with the probe of `config.kind`.

    `device` trains the attentive probe; the others take a second on the CPU. Raises InputError when the
    training list has fewer clips than folds, or a test label was never seen.
    """
    classes = _check(train, test, config, num_classes)
    if config.kind == "attentive":
        return attentive_probe(train, test, config, classes, device)
    read = linear_probe if config.kind == "linear" else knn_probe
    return read(train, test, config, classes)


def _check(train: Features, test: Features, config: ProbeConfig, num_classes: int | None) -> int:
    classes = num_classes or int(train.labels.max()) + 1
    if len(train.labels) < config.folds:
        raise InputError(f"expected at least {config.folds} training clips (folds); got {len(train.labels)}")
    every = torch.cat([train.labels, test.labels, test.unread])
    worst = int(every.max())
    if worst >= classes or int(every.min()) < 0:
        raise InputError(f"expected labels 0 to {classes - 1}; got {worst}")
    return classes


def folds_of(labels: Tensor, folds: int, seed: int) -> Tensor:
    """A fold 0..folds-1 for each clip, int64 [M]; every class is spread evenly."""
    generator = make_generator(seed, "folds")
    fold = torch.empty_like(labels)
    offset = 0
    for label in labels.unique():
        index = (labels == label).nonzero()[:, 0]
        index = index[torch.randperm(len(index), generator=generator)]
        fold[index] = (torch.arange(len(index)) + offset) % folds
        offset += len(index)
    return fold


def accuracies(logits: Tensor, labels: Tensor, unread: Tensor | None = None) -> tuple[float, float, float]:
    """top-1, top-5 and mean class accuracy, in [0, 1], of logits [M, C] against labels int64 [M].

    `unread` int64 [K] are labels of clips without logits, which count as wrong. The mean class accuracy is
    over the classes that occur in `labels` and `unread`.
    """
    top = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hit = top == labels[:, None]
    if unread is not None and len(unread):
        labels = torch.cat([labels, unread.to(labels)])
        hit = torch.cat([hit, hit.new_zeros(len(unread), hit.shape[1])])
    first = hit[:, 0].float()
    present = labels.unique()
    per_class = torch.stack([first[labels == c].mean() for c in present])
    return float(first.mean()), float(hit.any(1).float().mean()), float(per_class.mean())


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).float().mean())


def _result(
    kind: str, logits: Tensor, test: Features, *, selection: float, chosen: dict[str, float]
) -> ProbeResult:
    classes = logits.shape[1]
    if test.views > 1:
        logits = logits.softmax(1).unflatten(0, (-1, test.views)).mean(1).log()
    top1, top5, mean_class = accuracies(logits, test.labels, test.unread)
    return ProbeResult(
        top1=top1,
        top5=top5,
        mean_class=mean_class,
        chance=1 / classes,
        selection_top1=selection,
        chosen=chosen,
        predictions=logits.argmax(1),
        kind=kind,
        unreadable=len(test.unread),
    )


def linear_probe(train: Features, test: Features, config: ProbeConfig, num_classes: int) -> ProbeResult:
    """Linear classifiers for every learning rate x weight decay x fold, trained at once.

    Features are standardised by the training list (MAE's probe puts a batch norm without affine there).
    SGD with momentum 0.9 and a cosine, no augmentation (departure from P1: features are cached). The
    setting with the best cross-validated accuracy is trained again on the whole list.
    """
    x, mean, std = standardise(train.x)
    settings = [(lr, wd) for lr in config.lrs for wd in config.weight_decays]
    fold = folds_of(train.labels, config.folds, config.seed)
    # One "model" per (fold, setting); a clip of the model's own fold has weight 0.
    keep = torch.stack([(fold != f).float() for f in range(config.folds)]).repeat_interleave(len(settings), 0)
    target = F.one_hot(train.labels, num_classes).float()
    weight, bias = train_linear(x, target, keep, settings=settings * config.folds, config=config)
    with torch.no_grad():
        hits = torch.zeros(len(settings))
        for f in range(config.folds):
            held_out = fold == f
            models = slice(f * len(settings), (f + 1) * len(settings))
            logits = torch.einsum("md,gdc->gmc", x[held_out], weight[models]) + bias[models, None]
            hits += (logits.argmax(2) == train.labels[held_out]).float().sum(1)
    accuracy = hits / len(x)
    best = int(accuracy.argmax())
    lr, wd = settings[best]
    weight, bias = train_linear(x, target, torch.ones(1, len(x)), settings=[(lr, wd)], config=config)
    logits = ((test.x.float() - mean) / std) @ weight[0] + bias[0]
    chosen = {"lr": lr, "weight_decay": wd}
    return _result("linear", logits, test, selection=float(accuracy[best]), chosen=chosen)


def standardise(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features [M, D] by their mean and deviation [D], over the root of the width; and both."""
    x = x.float()
    mean, std = x.mean(0), x.std(0).clamp_min(1e-6)
    # Divided by the root of the width too, so that one learning rate suits every width.
    std = std * x.shape[1] ** 0.5
    return (x - mean) / std, mean, std


def train_linear(
    x: Tensor,
    target: Tensor,
    keep: Tensor,
    *,
    settings: list[tuple[float, float]],
    config: ProbeConfig,
    several: bool = False,
) -> tuple[Tensor, Tensor]:
    """Train G linear classifiers on the same clips: weight [G, D, C], bias [G, C].

    `target` float32 [M, C] is 1 for a clip's class or, with `several`, for each of its labels (a sigmoid each
    instead of one softmax). `keep` [G, M] weighs each clip in each model; `settings` gives (lr, weight decay)
    of each.
    """
    g, (m, d), classes = len(settings), x.shape, target.shape[1]
    batch = min(config.batch_size, m)
    lrs = torch.tensor([s[0] for s in settings])[:, None, None] * d**0.5
    decays = torch.tensor([s[1] for s in settings])[:, None, None]
    weight, bias = torch.zeros(g, d, classes), torch.zeros(g, classes)
    v_weight, v_bias = torch.zeros_like(weight), torch.zeros_like(bias)
    generator = make_generator(config.seed, "linear")
    steps = config.epochs * -(-m // batch)
    step = 0
    for _ in range(config.epochs):
        order = torch.randperm(m, generator=generator)
        for index in order.split(batch):
            xb, kb = x[index], keep[:, index, None]  # [b, D], [G, b, 1]
            # One matrix product for all models: [b, D] x [D, G*C].
            logits = (xb @ weight.permute(1, 0, 2).reshape(d, g * classes)).reshape(-1, g, classes)
            logits = logits.permute(1, 0, 2) + bias[:, None]
            said = logits.sigmoid() if several else logits.softmax(2)
            grad = (said - target[index]) * kb / kb.sum(1, keepdim=True).clamp_min(1)
            grad_weight = (xb.T @ grad.permute(1, 0, 2).reshape(-1, g * classes)).reshape(d, g, classes)
            factor = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / steps)))
            v_weight.mul_(0.9).add_(grad_weight.permute(1, 0, 2) + decays * weight)
            v_bias.mul_(0.9).add_(grad.sum(1))
            weight -= lrs * factor * v_weight
            bias -= lrs[:, 0] * factor * v_bias
            step += 1
    return weight, bias


def knn_probe(train: Features, test: Features, config: ProbeConfig, num_classes: int) -> ProbeResult:
    """Weighted nearest neighbours by cosine similarity (temperature 0.07, as in DINO); k by leave-one-out."""
    mean = train.x.float().mean(0)
    a = F.normalize(train.x.float().flatten(1) - mean.flatten(), dim=1)
    b = F.normalize(test.x.float().flatten(1) - mean.flatten(), dim=1)
    target = F.one_hot(train.labels, num_classes).float()
    counts = [k for k in config.neighbours if k < len(a)] or [1]

    def votes(query: Tensor, leave_out: bool) -> dict[int, Tensor]:
        similarity = query @ a.T
        if leave_out:
            similarity.fill_diagonal_(-torch.inf)
        values, index = similarity.topk(max(counts), dim=1)
        weights = (values / 0.07).exp()[..., None] * target[index]  # [Q, k, C]
        sums = weights.cumsum(1)
        return {k: sums[:, k - 1] for k in counts}

    own = votes(a, True)
    accuracy = {k: float((v.argmax(1) == train.labels).float().mean()) for k, v in own.items()}
    best = max(counts, key=lambda k: accuracy[k])
    chosen = {"k": float(best)}
    return _result("knn", votes(b, False)[best], test, selection=accuracy[best], chosen=chosen)


def attentive_probe(
    train: Features,
    test: Features,
    config: ProbeConfig,
    num_classes: int,
    device: torch.device | str = "cpu",
) -> ProbeResult:
    """A learnt pooling of all tokens and a linear layer on it, by AdamW; `train.x` is `[M, N, D]`.

    Settings are trained together and chosen among by one held-out fold, in a part of the epochs
    (`select_attentive`); the chosen one, or the only one (`selection_top1` is NaN), is then trained on the
    whole list, on tokens standardised by it. The rates tried are a hundredth of `config.lrs` (AdamW's scale).
    Raises InputError for features that are not tokens.
    """
    if train.x.ndim != 3:
        raise InputError(f"expected token features [M, N, D] (pooling 'tokens'); got {tuple(train.x.shape)}")
    how: dict[str, Any] = {"num_classes": num_classes, "depth": config.depth, "epochs": config.epochs}
    how |= {"batch_size": config.batch_size, "seed": config.seed, "device": device}
    settings = [(lr / 100, wd) for lr in config.lrs for wd in config.weight_decays]
    inside = folds_of(train.labels, config.folds, config.seed) != 0
    best, selection = select_attentive(train.x, train.labels, inside, settings, _accuracy, **how)
    fitted = fit_attentive(train.x, train.labels, [settings[best]], **how)
    logits = attentive_logits(fitted, test.x, config.batch_size)[0]
    lr, wd = settings[best]
    return _result("attentive", logits, test, selection=selection, chosen={"lr": lr, "weight_decay": wd})


@torch.no_grad()
def evaluation_loss(
    model: VideoMAE,
    dataset: ClipDataset,
    mask: MaskConfig,
    *,
    seed: int = 0,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    precision: str = "auto",
) -> float:
    """Mean reconstruction loss over `dataset` at one mask type and ratio, so that models can be compared.

    Each clip's mask depends on `seed` and its place in the list alone: every model gets the same masks.
    """
    device = torch.device(device)
    precision = resolve_precision(precision, device)
    was_training = model.training
    model.to(device).eval()
    total, count = 0.0, 0
    for batch in build_loader(dataset, batch_size, shuffle=False, drop_last=False):
        n = len(batch["label"])
        if not n:
            continue
        drawn = [
            sample_masks(mask, model.config.grid, 1, generator=make_generator(seed, index, "evaluation"))
            for index in batch["index"].tolist()
        ]
        visible = torch.cat([m.visible for m, _ in drawn])
        masked = torch.cat([m.masked for m, _ in drawn])
        decoded = [d for _, d in drawn if d is not None]
        decode = torch.cat(decoded) if decoded else None
        with autocast(precision, device):
            loss = model(
                clip_to_video(batch["clip"], device),
                TokenMask(visible, masked).to(device),
                None if decode is None else decode.to(device),
            )
        total += float(loss) * n
        count += n
    model.train(was_training)
    if not count:
        raise InputError("expected at least one clip to evaluate; got none")
    return total / count
