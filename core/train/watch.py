"""Watching over a training: are gradients finite, has the model collapsed, does the loss move at all?"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vmae.core.errors import VmaeError
from vmae.core.files import read_json, write_json
from vmae.core.model.masking import TokenMask
from vmae.core.model.videomae import VideoMAE
from vmae.core.train.parallel import World
from vmae.core.train.task import Report

MIN_PREDICTION_VARIANCE = 1e-5
"""Of the target's variance; far below what even a barely trained decoder shows."""
FLAT_LOSS = 0.97
"""Share of the target's variance: a model that predicts the mean everywhere has 1."""
HELD_OUT = "val/loss"
"""An epoch's reconstruction error on held-out videos."""
TURNED = 0.02
"""Share by which the held-out error must stand above its lowest to be called rising."""
FLAT_CHANGE = 0.005
"""Relative improvement over the window below which the loss is called flat."""


class TrainingDiverged(VmaeError):
    """Too many steps in a row gave NaN or infinite gradients."""


class BadSteps:
    """Steps whose gradient was not finite: reported, named in `bad_batches.json`; too many end the run."""

    def __init__(self, run_dir: Path, limit: int, report: Report) -> None:
        self.in_a_row = 0
        self._entries: list[dict[str, Any]] = []
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
            self._keep({"step": step, "loss": str(loss), "paths": paths})
        if self.in_a_row >= self._limit:
            raise TrainingDiverged(
                f"expected finite gradients; {self.in_a_row} steps in a row up to step {step} had none "
                f"(loss {loss}); the clips of those steps are in {self._file}"
            )

    def _keep(self, entry: dict[str, Any]) -> None:
        """Add one to the file. No room, or a damaged file, is not worth the run's end."""
        try:
            with contextlib.suppress(ValueError):
                found = read_json(self._file)
                self._entries = found if isinstance(found, list) else self._entries
            self._entries.append(entry)
            write_json(self._file, self._entries)
        except OSError as e:
            self._report("warning", {"step": entry["step"], "text": f"{self._file} NOT written ({e})"})


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


def held_out_warnings(history: Sequence[dict[str, float]], of_variance: bool) -> dict[str, str]:
    """Lines, by kind, when the newest held-out error says that the model memorises its training videos.

    Args:
        history: metrics of the epochs so far: `epoch`, `loss`, and `HELD_OUT` of those that measured it.
        of_variance: whether an error of 1 is that of predicting each patch's mean (normalised target, MSE).

    `above`: the error is above 1 and was not; `turned`: the last two stand above the lowest by `TURNED`,
    while the training loss has fallen since.
    """
    measured = [h for h in history if HELD_OUT in h]
    now, values = measured[-1], [h[HELD_OUT] for h in measured]
    best = min(measured, key=lambda h: h[HELD_OUT])
    where = f"epoch {now['epoch']:g}: the error on held-out videos"
    found: dict[str, str] = {}
    if of_variance and values[-1] > 1 and min(values) < 1:
        found["above"] = (
            f"{where} rose above 1 ({values[-1]:.3f}): worse than predicting each patch's mean; "
            f"it was {best[HELD_OUT]:.3f} after epoch {best['epoch']:g}"
        )
    rising = [v > (1 + TURNED) * best[HELD_OUT] for v in values[-2:]]
    if len(values) > 2 and all(rising) and now["loss"] < best["loss"]:
        found["turned"] = (
            f"{where} rises ({best[HELD_OUT]:.3f} after epoch {best['epoch']:g}, {values[-1]:.3f} now) while "
            f"the training loss falls ({best['loss']:.3f} to {now['loss']:.3f}): it memorises; more videos, "
            "a higher mask ratio or fewer epochs"
        )
    return found
