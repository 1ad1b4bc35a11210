"""Named recipes: one readable definition each. `get(name)` gives the configuration."""

from __future__ import annotations

import inspect
from bisect import bisect_right
from collections.abc import Callable

from vmae.core.errors import InputError, nearest
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.recipes import demo, small_data, videomae_v1, videomae_v2

ALL: dict[str, Callable[[], ExperimentConfig]] = {
    f.__name__: f for f in (*demo.RECIPES, *small_data.RECIPES, *videomae_v1.RECIPES, *videomae_v2.RECIPES)
}

REFERENCE_LOSS: dict[str, tuple[tuple[float, float], ...]] = {
    # (share of the run's epochs, epoch's mean training loss), from real runs only.
    # "About 0.6 late in the run": users' reports of the official K400 ViT-S pre-training.
    # Seed 0, mask 0.75, built-in data set, 26 epochs: the trial of `make demo`.
    "demo_pretrain": (
        (1 / 26, 1.055), (3 / 26, 0.998), (6 / 26, 0.983), (8 / 26, 0.966), (10 / 26, 0.941),
        (12 / 26, 0.888), (14 / 26, 0.847), (16 / 26, 0.821), (18 / 26, 0.800), (20 / 26, 0.786),
        (22 / 26, 0.778), (24 / 26, 0.768), (1.0, 0.771),
    ),
    "k400_small_pretrain": ((0.9, 0.6), (1.0, 0.6)),
}  # fmt: skip
"""Recorded loss curves, for `loss_comparison`."""


def get(name: str) -> ExperimentConfig:
    """The recipe's configuration; InputError names the nearest where there is none of that name."""
    if name not in ALL:
        raise InputError(f"expected a recipe of `vmae recipes`; got '{name}'{nearest(name, list(ALL))}")
    return ALL[name]()


def doc(name: str) -> str:
    """The recipe's docstring: what it is, what it costs, what it reached."""
    get(name)
    return inspect.getdoc(ALL[name]) or ""


def loss_comparison(recipe: str, share: float, loss: float) -> str | None:
    """Is my loss normal? One line that compares a run with its recipe's recorded curve.

    `share` in (0, 1] is how much of the run's epochs is done, `loss` the last epoch's mean training loss.
    None where no curve is recorded for the recipe, or none for so early a time.
    """
    curve = REFERENCE_LOSS.get(recipe, ())
    if not curve or share < curve[0][0]:
        return None
    shares = [s for s, _ in curve]
    right = min(bisect_right(shares, share), len(curve) - 1)
    (s0, l0), (s1, l1) = curve[max(0, right - 1)], curve[right]
    part = 0.0 if s1 == s0 else min(1.0, (share - s0) / (s1 - s0))
    expected = l0 + part * (l1 - l0)
    difference = (loss - expected) / expected
    verdict = "as recorded" if abs(difference) <= 0.05 else f"{abs(difference):.0%} "
    if abs(difference) > 0.05:
        verdict += "above it: check the data and the learning rate" if difference > 0 else "below it"
    return (
        f"is my loss normal? {loss:.3f} at {share:.0%} of {recipe}; "
        f"the recorded run had {expected:.3f}: {verdict}"
    )
