"""Probes for numbers and several labels: right where features tell, at chance where not, chosen inside."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from vmae.core.errors import InputError
from vmae.core.measure.probe import Features, ProbeConfig
from vmae.core.measure.target_probe import Kind, probe_targets

CONFIG = ProbeConfig(epochs=40, batch_size=32, lrs=(0.1, 0.3), weight_decays=(0.0, 1e-3), folds=4)


def case(kind: Kind, signal: float, *, seed: int = 0, tokens: int = 0) -> tuple[Any, np.ndarray]:
    """Features of which two directions carry two numbers, or two labels; of tokens each carries them."""
    n, g = 120, torch.Generator().manual_seed(seed)
    values = torch.randn(n, 2, generator=g).double()
    target = values.numpy() * (3.0, 0.5) + (10.0, -1.0)
    if kind == "multilabel":
        target = (values > 0).double().numpy()
    x = torch.randn(n, *([tokens] if tokens else []), 32, generator=g)
    x[..., :2] = signal * (values[:, None] if tokens else values).float() + 0.1 * x[..., :2]
    return Features(x, torch.full((n,), -1), [str(k) for k in range(n)]), target


@pytest.mark.parametrize("kind", ["regression", "multilabel"])
@pytest.mark.parametrize("read", ["linear", "attentive"])
def test_what_features_tell_is_read_and_noise_is_not(kind: Kind, read: str) -> None:
    config = replace(CONFIG, kind=read)
    tokens, word = (6 if read == "attentive" else 0), "r2" if kind == "regression" else "mean_ap"
    scores = []
    for signal in (2.0, 0.0):
        (train, target), (test, truth) = (case(kind, signal, seed=s, tokens=tokens) for s in (0, 1))
        found = probe_targets(train, test, target, truth, config, kind)
        scores.append(found.numbers[word])
        assert found.kind == read and found.found.shape == truth.shape and set(found.chosen)
    assert scores[0] > 0.85 and scores[1] < (0.2 if kind == "regression" else 0.7)


def test_ridge_is_the_normal_equations_in_the_units_of_the_list() -> None:
    (train, target), (test, truth) = (case("regression", 2.0, seed=s) for s in (0, 1))
    found = probe_targets(train, test, target, truth, CONFIG, "regression")
    x = train.x.double().numpy()
    mean, std = x.mean(0), x.std(0, ddof=1) * 32**0.5
    a, b = (x - mean) / std, (test.x.double().numpy() - mean) / std
    weight = np.linalg.solve(a.T @ a + found.chosen["penalty"] * np.eye(32), a.T @ (target - target.mean(0)))
    np.testing.assert_allclose(found.found, b @ weight + target.mean(0), atol=1e-3)


def test_views_are_averaged_and_wrong_use_is_refused() -> None:
    (train, target), (test, truth) = (case("regression", 2.0, seed=s) for s in (0, 1))
    twice = Features(test.x.repeat_interleave(2, 0), test.labels, test.paths, views=2)
    once, both = (probe_targets(train, t, target, truth, CONFIG, "regression") for t in (test, twice))
    np.testing.assert_allclose(once.found, both.found, atol=1e-5)
    with pytest.raises(InputError, match="expected linear or attentive for regression, got knn"):
        probe_targets(train, test, target, truth, replace(CONFIG, kind="knn"), "regression")
    few = Features(train.x[:3], train.labels[:3], train.paths[:3])
    with pytest.raises(InputError, match="expected at least 4 training clips"):
        probe_targets(few, test, target[:3], truth, CONFIG, "regression")
