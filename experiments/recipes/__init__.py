"""Named recipes: one readable definition each. `get(name)` gives the configuration."""

from __future__ import annotations

from collections.abc import Callable

from vmae.core.errors import InputError, nearest
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.recipes.demo import demo_pretrain

ALL: dict[str, Callable[[], ExperimentConfig]] = {f.__name__: f for f in (demo_pretrain,)}


def get(name: str) -> ExperimentConfig:
    """The recipe's configuration; InputError names the nearest where there is none of that name."""
    if name not in ALL:
        raise InputError(f"expected a recipe among {', '.join(ALL)}; got '{name}'{nearest(name, list(ALL))}")
    return ALL[name]()
