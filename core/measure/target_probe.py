"""Probes of frozen features for numbers (regression) and several labels a video (multi-label)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vmae.core.errors import InputError
from vmae.core.measure.attentive import attentive_logits, fit_attentive, select_attentive
from vmae.core.measure.heads import Kind, measure_head
from vmae.core.measure.probe import Features, ProbeConfig, folds_of, standardise, train_linear

PENALTIES = tuple(10.0**k for k in range(-4, 3))
"""Of ridge regression, tried for the linear probe of numbers: features have a mean square of 1 over all."""


@dataclass(frozen=True, kw_only=True)
class TargetResult:
    """How well numbers or labels are read out of features of the test list."""

    kind: str
    """`linear` or `attentive`."""
    numbers: dict[str, float]
    """`measure_head` of the test list."""
    selection: float
    """R2 or mAP in cross-validation inside the training list, of the setting that was chosen."""
    chosen: dict[str, float]
    found: np.ndarray
    """float64 [M, K]: values, or probabilities of labels."""


def probe_targets(
    train: Features,
    test: Features,
    target: np.ndarray,
    truth: np.ndarray,
    config: ProbeConfig,
    kind: Kind,
    device: torch.device | str = "cpu",
) -> TargetResult:
    """Learn `target` [M, K] (numbers, or 1 for each label) from `train`, measure against `truth` on `test`.

    linear: ridge regression in closed form for numbers, else a logistic regression a label, as the
    classifying probe is trained; attentive: the same pooling, with the squared error or a sigmoid a label.
    Settings are chosen by R2 or mAP inside the training list (linear: cross-validation, attentive: one
    held-out fold). Of several views of a test video outputs are averaged. `device` trains the attentive one.
    Raises InputError for nearest neighbours, and for fewer clips than folds.
    """
    if config.kind == "knn":
        raise InputError(f"probe.kind: expected linear or attentive for {kind}, got knn")
    if len(train.x) < config.folds:
        raise InputError(f"expected at least {config.folds} training clips (folds); got {len(train.x)}")
    mean, deviation = np.zeros(target.shape[1]), np.ones(target.shape[1])
    if kind == "regression":
        mean, deviation = target.mean(0), target.std(0)
        deviation = np.where(deviation > 0, deviation, 1.0)
    wanted = torch.from_numpy((target - mean) / deviation).float()
    if config.kind == "attentive":
        outputs, selection, chosen = _attentive(train, test, wanted, config, kind, device)
    else:
        read = _ridge if kind == "regression" else _logistic
        outputs, selection, chosen = read(train, test, wanted, config, kind)
    outputs = outputs.double().unflatten(0, (-1, test.views))
    found = (outputs.sigmoid() if kind == "multilabel" else outputs).mean(1).numpy() * deviation + mean
    return TargetResult(
        kind=config.kind,
        numbers=measure_head(found, truth, kind),
        selection=selection,
        chosen=chosen,
        found=found,
    )


Read = tuple[Tensor, float, dict[str, float]]
"""Outputs of the test rows [M, K], the chosen setting's score inside the training list, the setting."""


def _score(outputs: Tensor, wanted: Tensor, kind: Kind) -> float:
    """R2 or mAP of outputs [M, K]; minus infinity where there is none."""
    numbers = measure_head(outputs.double().numpy(), wanted.double().numpy(), kind)
    score = numbers["r2" if kind == "regression" else "mean_ap"]
    return score if np.isfinite(score) else float("-inf")


def _ridge(train: Features, test: Features, wanted: Tensor, config: ProbeConfig, kind: Kind) -> Read:
    x, mean, std = standardise(train.x)
    fold = folds_of(torch.zeros(len(x), dtype=torch.int64), config.folds, config.seed)
    said = torch.zeros(len(PENALTIES), *wanted.shape)
    for f in range(config.folds):
        inside, outside = fold != f, fold == f
        for k, (weight, bias) in enumerate(_ridges(x[inside], wanted[inside], PENALTIES)):
            said[k, outside] = x[outside] @ weight + bias
    scores = [_score(s, wanted, kind) for s in said]
    best = int(np.argmax(scores))
    ((weight, bias),) = _ridges(x, wanted, PENALTIES[best : best + 1])
    outputs = ((test.x.float() - mean) / std) @ weight + bias
    return outputs, scores[best], {"penalty": PENALTIES[best]}


def _ridges(x: Tensor, y: Tensor, penalties: tuple[float, ...]) -> list[tuple[Tensor, Tensor]]:
    """Weight [D, K] and bias [K] of each penalty, in float64 inside; the bias is not penalised."""
    centre_x, centre_y = x.double().mean(0), y.double().mean(0)
    u, s, vh = torch.linalg.svd(x.double() - centre_x, full_matrices=False)
    turned = u.T @ (y.double() - centre_y)  # [R, K]
    found = []
    for penalty in penalties:
        weight = vh.T @ ((s / (s**2 + penalty))[:, None] * turned)
        found.append((weight.float(), (centre_y - centre_x @ weight).float()))
    return found


def _logistic(train: Features, test: Features, wanted: Tensor, config: ProbeConfig, kind: Kind) -> Read:
    x, mean, std = standardise(train.x)
    settings = [(lr, wd) for lr in config.lrs for wd in config.weight_decays]
    fold = folds_of(torch.zeros(len(x), dtype=torch.int64), config.folds, config.seed)
    said = torch.zeros(len(settings), *wanted.shape)
    for f in range(config.folds):
        keep = (fold != f).float().expand(len(settings), -1)
        weight, bias = train_linear(x, wanted, keep, settings=settings, config=config, several=True)
        outside = fold == f
        said[:, outside] = torch.einsum("md,gdc->gmc", x[outside], weight) + bias[:, None]
    scores = [_score(s.sigmoid(), wanted, kind) for s in said]
    best = int(np.argmax(scores))
    lr, wd = settings[best]
    ones = torch.ones(1, len(x))
    weight, bias = train_linear(x, wanted, ones, settings=[settings[best]], config=config, several=True)
    outputs = ((test.x.float() - mean) / std) @ weight[0] + bias[0]
    return outputs, scores[best], {"lr": lr, "weight_decay": wd}


def _attentive(
    train: Features,
    test: Features,
    wanted: Tensor,
    config: ProbeConfig,
    kind: Kind,
    device: torch.device | str = "cpu",
) -> Read:
    how: dict[str, Any] = {"num_classes": wanted.shape[1], "depth": config.depth, "epochs": config.epochs}
    how |= {"batch_size": config.batch_size, "seed": config.seed, "device": device}
    how["loss_of"] = F.mse_loss if kind == "regression" else F.binary_cross_entropy_with_logits
    settings = [(lr / 100, wd) for lr in config.lrs for wd in config.weight_decays]
    inside = folds_of(torch.zeros(len(train.x), dtype=torch.int64), config.folds, config.seed) != 0

    def score(outputs: Tensor, told: Tensor) -> float:
        return _score(outputs.sigmoid() if kind == "multilabel" else outputs, told, kind)

    best, selection = select_attentive(train.x, wanted, inside, settings, score, **how)
    fitted = fit_attentive(train.x, wanted, [settings[best]], **how)
    lr, wd = settings[best]
    outputs = attentive_logits(fitted, test.x, config.batch_size)[0]
    return outputs, selection, {"lr": lr, "weight_decay": wd}
