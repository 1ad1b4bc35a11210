"""How alike the encoders of a sweep's trials are: CKA of their features of the same held-out videos."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vmae.core.errors import InputError
from vmae.experiments.layout import SweepDir
from vmae.experiments.stages import pretrain
from vmae.experiments.sweeps.spec import Plan, Trial
from vmae.experiments.sweeps.status import DONE, trial_states

Progress = Callable[[int, int], None]
"""Told (done, total): trials whose features are there."""


@dataclass(frozen=True, kw_only=True)
class Alike:
    """`matrix` float64 [K, K] of K trials by their ids, and of how many videos."""

    trials: list[str]
    matrix: np.ndarray
    videos: int


def alike(plan: Plan, sweep: SweepDir, progress: Progress | None = None) -> Alike:
    """Linear CKA (unbiased) between every two finished trials, of features averaged over all tokens.

    Each encoder sees the held-out list as its own trial cut it. Raises InputError for fewer than two trials
    whose weights are here, and where they were held out on other lists.
    """
    from vmae.core.measure.probe import extract_features
    from vmae.core.measure.similarity import linear_cka
    from vmae.core.weights.checkpoint import load_model
    from vmae.experiments.data import open_data
    from vmae.experiments.run import default_device

    done = [s.trial for s in trial_states(plan, sweep) if s.status == DONE]
    there = [t for t in done if _model(sweep, t).is_dir()]
    if len(there) < 2:
        raise InputError(
            f"{plan.name}: expected two finished trials whose weights are here, got {len(there)} of "
            f"{len(done)}"
        )
    features, paths = [], None
    for number, trial in enumerate(there):
        config = trial.config(plan.base)
        dataset = open_data(config.data, config.train.seed, sweep.runs.cache).val
        if dataset is None:
            raise InputError(f"{plan.name}: expected trials with a held-out list, got none")
        model, _ = load_model(_model(sweep, trial))
        found = extract_features(model, dataset, pooling="mean", device=default_device())
        if paths is not None and found.paths != paths:
            raise InputError(f"{plan.name}: expected trials held out on the same videos, {trial.id} is not")
        paths = found.paths
        features.append(found.x)
        if progress is not None:
            progress(number + 1, len(there))
    matrix = np.eye(len(there))
    for i, j in zip(*np.triu_indices(len(there), 1), strict=True):
        matrix[i, j] = matrix[j, i] = linear_cka(features[i], features[j])
    return Alike(trials=[t.id for t in there], matrix=matrix, videos=len(paths or []))


def _model(sweep: SweepDir, trial: Trial) -> Path:
    return sweep.trial(trial.id).stage(pretrain.STAGE.name).model


def save(found: Alike, sweep: SweepDir) -> list[Path]:
    """cka.csv and cka.png in the sweep's folder."""
    from vmae.core.files import replacing

    table = sweep.path / "cka.csv"
    with replacing(table) as temporary, open(temporary, "w", encoding="utf-8", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["trial", *found.trials])
        for name, row in zip(found.trials, found.matrix, strict=True):
            writer.writerow([name, *(f"{v:.4f}" for v in row)])
    figure = sweep.figure("cka")
    _draw(found, figure)
    return [table, figure]


def _draw(found: Alike, file: Path) -> None:
    from matplotlib.figure import Figure

    count = len(found.trials)
    side = 1.8 + 0.42 * max(4, count)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    ax = figure.add_subplot()
    image = ax.imshow(found.matrix, vmin=0, vmax=1, cmap="viridis")
    ax.set_xticks(range(count), found.trials, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
    ax.set_yticks(range(count), found.trials, fontsize=8)
    if count <= 16:
        for (i, j), value in np.ndenumerate(found.matrix):
            ink = "black" if value > 0.6 else "white"
            ax.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=6.5, color=ink)
    ax.set_title(f"linear CKA of features of {found.videos} held-out videos", fontsize=9)
    figure.colorbar(image, ax=ax, shrink=0.7)
    figure.savefig(file, dpi=150)
