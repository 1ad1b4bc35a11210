"""Named recipes: one readable definition each. `get(name)` gives the configuration."""

from __future__ import annotations

import inspect
from bisect import bisect_right

from vmae.core.config import flatten
from vmae.core.errors import InputError, nearest
from vmae.experiments import stages
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.recipes import ava, demo, small_clips, small_data, videomae_v1, videomae_v2
from vmae.experiments.recipes.recipe import recipe

ALL: dict[str, recipe] = {
    found.name: found
    for module in (demo, small_clips, small_data, videomae_v1, videomae_v2, ava)
    for found in vars(module).values()
    if isinstance(found, recipe) and found.__module__ == module.__name__
}

REFERENCE_LOSS: dict[str, tuple[tuple[float, float], ...]] = {
    # (share of the run's epochs, epoch's mean training loss), from real runs only.
    # Built-in data set. Mean of the three pre-trainings of docs/results_finetune.md, none of which is
    # further from it than 3.3 % in any epoch.
    "demo_pretrain": (
        (1 / 26, 1.054), (3 / 26, 0.998), (6 / 26, 0.980), (8 / 26, 0.967), (10 / 26, 0.937),
        (12 / 26, 0.886), (14 / 26, 0.856), (16 / 26, 0.831), (18 / 26, 0.812), (20 / 26, 0.796),
        (22 / 26, 0.787), (24 / 26, 0.779), (1.0, 0.779),
    ),
    # From the first of them, seed 0; 63.3 % on the held-out list after the last epoch.
    "demo_finetune": (
        (0.1, 2.379), (0.2, 1.797), (0.3, 1.456), (0.4, 1.344), (0.5, 1.251), (0.6, 1.159), (0.7, 1.061),
        (0.8, 0.977), (0.9, 0.920), (1.0, 0.896),
    ),
    # "About 0.6 late in the run": users' reports of the official K400 ViT-S pre-training.
    "k400_small_pretrain": ((0.9, 0.6), (1.0, 0.6)),
}  # fmt: skip
"""Recorded loss curves, for `loss_comparison`."""
STARTS_FROM_WEIGHTS = ("demo_finetune",)
"""Recipes without `init` of their own whose curve was recorded from pre-trained weights."""


def get(name: str) -> ExperimentConfig:
    """The recipe's configuration; InputError names the nearest where there is none of that name."""
    if name not in ALL:
        raise InputError(f"expected a recipe of `vmae recipes`; got '{name}'{nearest(name, list(ALL))}")
    return ALL[name]()


def doc(name: str) -> str:
    """The recipe's docstring: what it is, what it costs, what it reached."""
    get(name)
    return inspect.getdoc(ALL[name]) or ""


def cost(config: ExperimentConfig) -> str:
    """What a recipe costs, computed: matrix-product FLOPs of a clip's step and of a video over the run.

    Forward and backward; repeated samples count, recomputed activations do not. Times the videos of a list:
    `vmae plan` makes hours of it.
    """
    work = stages.STAGES[config.job].flops
    assert work is not None
    flops = work(config)
    run = flops * config.data.repeats * config.train.epochs
    return f"{_three(flops / 1e9)} GFLOP a clip, {_three(run / 1e12)} TFLOP a video over the run"


def _three(value: float) -> str:
    """Three digits: 1,076 or 64.0 or 0.199."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


_DECIDES_THE_LOSS = ("model.", "mask.", "optim.", "finetune.", "detect.", "init")
_DECIDES_THE_LOSS_TOO = {
    "data": (
        "train_csv", "frames", "sampling", "sampling_rate", "size", "short_side", "augment", "flip",
        "rand_augment", "random_erasing", "repeats", "train_share",
    ),
    "train": ("epochs", "batch_size"),
}  # fmt: skip
_DOES_NOT = ("model.checkpoint_activations", "finetune.eval_every", "detect.eval_every")


def differences(config: ExperimentConfig) -> list[str]:
    """Dotted names of the settings that decide the training loss and are not its recipe's.

    Left out: the seed, what a recipe leaves to the user (its lists) and, of `init`, which weights.
    """
    own, given = flatten(get(config.recipe)), flatten(config)
    found = []
    for key, value in given.items():
        section, _, name = key.partition(".")
        decides = key.startswith(_DECIDES_THE_LOSS) or name in _DECIDES_THE_LOSS_TOO.get(section, ())
        if not decides or key in _DOES_NOT or key.startswith(stages.STAGES[config.job].unused):
            continue
        if key == "init":
            expected = config.recipe in STARTS_FROM_WEIGHTS or bool(own[key])
            if bool(value) != expected:
                found.append(key)
        elif own.get(key) != value and not (key == "data.train_csv" and not own[key]):
            found.append(key)
    return found


def loss_comparison(config: ExperimentConfig, share: float, loss: float) -> str | None:
    """Is my loss normal? One line that compares a run with its recipe's recorded curve.

    `share` in (0, 1] is how much of the run's epochs is done, `loss` the last epoch's mean training loss.
    None where no curve is recorded for the recipe, none for so early a time, or where the run is another
    than the recorded one (`differences`).
    """
    curve = REFERENCE_LOSS.get(config.recipe, ())
    if not curve or share < curve[0][0] or differences(config):
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
        f"is my loss normal? {loss:.3f} at {share:.0%} of {config.recipe}; "
        f"the recorded run had {expected:.3f}: {verdict}"
    )


def why_not_compared(config: ExperimentConfig) -> str | None:
    """A line that says why a run is not compared with its recipe's curve; None where it is, or has none."""
    if config.recipe not in REFERENCE_LOSS or not (changed := differences(config)):
        return None
    more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
    return (
        f"is my loss normal? Not compared with the recorded run of {config.recipe}: "
        f"{', '.join(changed[:4])}{more} differ"
    )
