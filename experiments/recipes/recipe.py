"""What makes a function a recipe."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

from vmae.experiments.config import ExperimentConfig


class recipe:
    """A function that gives a configuration, as the recipe of its name, which the configuration carries."""

    def __init__(self, make: Callable[[], ExperimentConfig]) -> None:
        self._make, self.name = make, make.__name__
        functools.update_wrapper(self, make)

    def __call__(self) -> ExperimentConfig:
        return replace(self._make(), name=self.name, recipe=self.name)
