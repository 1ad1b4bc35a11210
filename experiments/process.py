"""A process in which stages work, and what it has opened for them."""

from __future__ import annotations

from pathlib import Path

import torch

from vmae.core.model.encoder import VideoModel
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.data import CacheProgress, Data, open_data
from vmae.experiments.run import default_device
from vmae.experiments.stages.stage import Context, Work
from vmae.experiments.weights import initial_weights


class Process:
    """Makes a stage's context. Lists and models are opened when they are asked for, once for all stages."""

    def __init__(self, cache: Path, device: torch.device | None = None) -> None:
        self.cache = cache
        self.device = device or default_device()
        self._data: dict[str, Data] = {}
        self._models: dict[str, VideoModel] = {}

    def data(self, config: ExperimentConfig, progress: CacheProgress | None = None) -> Data:
        """The lists of `config`; raises as `open_data`."""
        key = repr((config.data, config.train.seed))
        if key not in self._data:
            self._data[key] = open_data(config.data, config.train.seed, self.cache, progress)
        return self._data[key]

    def model(self, config: ExperimentConfig) -> VideoModel | None:
        """The model at `config.init` in the configuration's shape; None where that is empty."""
        if not config.init:
            return None
        key = _source(config)
        if key not in self._models:
            self._models[key] = initial_weights(config).model
        return self._models[key]

    def keep_model(self, config: ExperimentConfig, model: VideoModel) -> None:
        """`model` is the one at `config.init`, read already."""
        self._models[_source(config)] = model

    def context(self, work: Work) -> Context:
        """What a stage is given here."""
        return Context(
            config=work.config,
            home=work.home,
            watch=work.watch,
            device=self.device,
            cache=self.cache,
            data=lambda: self.data(work.config),
            model=lambda: self.model(work.config),
        )


def _source(config: ExperimentConfig) -> str:
    return repr((config.init, config.resize_patch_embed, config.model))
