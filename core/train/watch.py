"""Watching over a training: are gradients finite, has the model collapsed, does the loss move at all?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vmae.core.errors import VmaeError
from vmae.core.model.masking import TokenMask
from vmae.core.model.videomae import VideoMAE
from vmae.core.train.parallel import World
from vmae.core.train.task import Report

MIN_PREDICTION_VARIANCE = 1e-5
"""Of the target's variance; far below what even a barely trained decoder shows."""
FLAT_LOSS = 0.97
"""Share of the target's variance: a model that predicts the mean everywhere has 1."""
FLAT_CHANGE = 0.005
"""Relative improvement over the window below which the loss is called flat."""


class TrainingDiverged(VmaeError):
    """Too many steps in a row gave NaN or infinite gradients."""


class BadSteps:
    """Steps whose gradient was not finite: reported, named in `bad_batches.json`; too many end the run."""

    def __init__(self, run_dir: Path, limit: int, report: Report) -> None:
        self.in_a_row = 0
        self._limit, self._report, self._file = limit, report, run_dir / "bad_batches.json"

    def add(self, step: int, loss: float, paths: list[str]) -> None:
        """Take note of one; raises TrainingDiverged after too many in a row.

        All processes call it together; `paths` are this one's clips, the file gets those of all.
        """
        self.in_a_row += 1
        world = World.current()
        paths = world.gather(paths)
        text = f"step {step}: loss {loss}, gradient not finite; step skipped"
        self._report("warning", {"step": step, "text": text})
        if world.rank == 0:
            previous = json.loads(self._file.read_text()) if self._file.exists() else []
            entry = {"step": step, "loss": str(loss), "paths": paths}
            self._file.write_text(json.dumps([*previous, entry], indent=1))
        if self.in_a_row >= self._limit:
            raise TrainingDiverged(
                f"expected finite gradients; {self.in_a_row} steps in a row up to step {step} had none "
                f"(loss {loss}); the clips of those steps are in {self._file}"
            )


@torch.no_grad()
def prediction_variance(model: VideoMAE, video: Tensor, mask: TokenMask) -> float:
    """How much predictions differ between tokens: variance over clips and masked tokens, mean over pixels."""
    pred = model.predict(video, mask).float()  # [B, N_mask, P]
    return float(pred.flatten(0, 1).var(0).mean())


def collapse_warning(variance: float, epoch: int) -> str | None:
    """A line when the predictions of all tokens are practically the same, else None."""
    if variance >= MIN_PREDICTION_VARIANCE:
        return None
    return (
        f"epoch {epoch}: collapse: predictions are the same for every token (variance {variance:.1e}, "
        f"expected above {MIN_PREDICTION_VARIANCE:g}); lower the learning rate or check the data"
    )


def flat_loss_warning(losses: Sequence[float], epochs: int) -> str | None:
    """A line when a normalised-target MSE has stood at the target's variance for a fifth of the run.

    `losses` are the epochs' mean losses so far, `epochs` the run's length. Predicting zero everywhere gives
    a loss of 1 (each patch has unit variance), so a loss that stays there means nothing is learnt.
    """
    window = max(3, epochs // 5)
    if len(losses) <= window:
        return None
    before, now = losses[-1 - window], losses[-1]
    if now < FLAT_LOSS or before - now > FLAT_CHANGE * before:
        return None
    return (
        f"epoch {len(losses)}: the loss is flat at the target's variance ({now:.3f}, {before:.3f} "
        f"{window} epochs ago; 1 is what predicting the mean gives): nothing is learnt yet; "
        "try a higher learning rate, a lower mask ratio, or larger structures per patch"
    )
