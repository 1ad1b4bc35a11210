"""Probes on a share of the labels: the same features, a few labelled videos of each class, several draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from vmae.core.errors import InputError
from vmae.core.measure.probe import Features, ProbeConfig, ProbeResult, probe
from vmae.core.video.samples import Sample, subset


@dataclass(frozen=True, kw_only=True)
class LowShot:
    """What a probe reaches with a share of the training list's labels."""

    share: float
    videos: int
    """Labelled, of each draw."""
    results: tuple[ProbeResult, ...]
    """A draw each."""

    @property
    def top1(self) -> float:
        """The mean over draws."""
        return float(np.mean([r.top1 for r in self.results]))

    @property
    def deviation(self) -> float:
        """Of the draws; NaN of one."""
        return (
            float(np.std([r.top1 for r in self.results], ddof=1)) if len(self.results) > 1 else float("nan")
        )


def low_shot(
    train: Features,
    test: Features,
    config: ProbeConfig,
    num_classes: int,
    *,
    shares: Sequence[float],
    seeds: int = 3,
    device: torch.device | str = "cpu",
) -> list[LowShot]:
    """Probe with each share of the training videos (of every class alike, at least one of each).

    Each seed draws other videos, and is the probe's seed too; of the whole list there is nothing to draw, and
    the seeds differ in the probe alone. A draw has its settings chosen inside itself, in two folds where it
    has fewer than `config.folds` videos a class. Raises InputError for shares outside (0, 1].
    """
    if not shares or not all(0 < s <= 1 for s in shares):
        raise InputError(f"expected shares in (0, 1], got {', '.join(f'{s:g}' for s in shares) or 'none'}")
    if seeds < 1:
        raise InputError(f"expected at least 1 seed, got {seeds}")
    listed = [Sample(path=str(k), label=int(label)) for k, label in enumerate(train.labels.tolist())]
    found = []
    for share in shares:
        results, count = [], 0
        for seed in range(config.seed, config.seed + seeds):
            keep = torch.tensor([int(s.path) for s in subset(listed, share, seed)])
            own = train.rows(keep)
            fewest = int(torch.bincount(own.labels)[own.labels.unique()].min())
            settings = replace(config, seed=seed, folds=max(2, min(config.folds, fewest)))
            results.append(probe(own, test, settings, num_classes, device))
            count = len(keep)
        found.append(LowShot(share=share, videos=count, results=tuple(results)))
    return found
